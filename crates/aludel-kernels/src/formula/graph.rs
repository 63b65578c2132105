//! Builds formulas with ordinary operators.
//!
//! In: a [`Graph`] and [`Expr`]s on it. Out: a verified [`Formula`]. Equal expressions become one operation, so a
//! shared term is computed once. No algebra is done: results stay bit for bit what was written.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::{Add, Div, Mul, Neg, Not, Sub};

use super::{Axis, Binary, Extent, Formula, FormulaError, Literal, NodeId, Op, Outcome, Unary};

/// A formula under construction.
///
/// ```
/// use aludel_kernels::formula::Graph;
/// let graph = Graph::new();
/// let (base, tuned) = (graph.input(0), graph.input(1));
/// let half_way = base + (tuned - base) * 0.5;
/// let formula = graph.finish(half_way).unwrap();
/// assert_eq!(formula.inputs(), 2);
/// ```
#[derive(Debug, Default)]
pub struct Graph {
    nodes: RefCell<Vec<Op>>,
    known: RefCell<HashMap<Op, NodeId>>,
    within: RefCell<Within>,
}

/// What inputs and streams mean while a formula is built into another one.
#[derive(Debug, Default)]
struct Within {
    /// The values that stand for inputs; `None` where inputs are tensors.
    inputs: Option<Vec<NodeId>>,
    first_stream: u16,
}

/// One value of a [`Graph`].
#[derive(Clone, Copy, Debug)]
pub struct Expr<'g> {
    graph: &'g Graph,
    node: NodeId,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// The elements of an input tensor, or the value that stands for it (see [`Graph::within`]).
    pub fn input(&self, input: u16) -> Expr<'_> {
        let stands_for_it =
            self.within.borrow().inputs.as_ref().and_then(|all| all.get(usize::from(input)).copied());
        stands_for_it.map_or_else(|| self.push(Op::Input(input)), |node| Expr { graph: self, node })
    }

    /// A constant.
    pub fn constant(&self, value: f64) -> Expr<'_> {
        self.push(Op::Constant(Literal(value)))
    }

    /// Uniform numbers in `[0, 1)`, one for each element, from a stream.
    pub fn random(&self, stream: u16) -> Expr<'_> {
        let first = self.within.borrow().first_stream;
        self.push(Op::Random(first.saturating_add(stream)))
    }

    /// Builds a formula into this one: in what `build` does, these expressions stand for the inputs, by their position, and
    /// streams are counted from `first_stream` on.
    pub fn within<'g, T>(&'g self, inputs: &[Expr<'g>], first_stream: u16, build: impl FnOnce() -> T) -> T {
        let inputs = Some(inputs.iter().map(|input| input.node).collect());
        let outer = self.within.replace(Within { inputs, first_stream });
        let built = build();
        self.within.replace(outer);
        built
    }

    /// Closes the graph with the value to write.
    ///
    /// # Errors
    /// [`FormulaError`] when an operation is used where it has no meaning (see [`Op`]).
    pub fn finish(&self, output: Expr<'_>) -> Result<Formula, FormulaError> {
        self.close(Outcome::Tensor(output.node))
    }

    /// Closes the graph with values per tensor that are to be known, in this order; nothing is written.
    ///
    /// # Errors
    /// [`FormulaError`] as for [`Graph::finish`], and for a value that is not one for the tensor or that no reduction is
    /// part of.
    pub fn measure(&self, figures: &[Expr<'_>]) -> Result<Formula, FormulaError> {
        self.close(Outcome::Figures(figures.iter().map(|figure| figure.node).collect()))
    }

    fn close(&self, outcome: Outcome) -> Result<Formula, FormulaError> {
        let nodes = self.nodes.borrow().clone();
        let bound =
            |count: fn(&Op) -> Option<u16>| nodes.iter().filter_map(count).map(|i| i + 1).max().unwrap_or(0);
        let inputs = bound(|op| if let Op::Input(i) = op { Some(*i) } else { None });
        let streams = bound(|op| if let Op::Random(i) = op { Some(*i) } else { None });
        let formula = Formula { nodes, outcome, inputs, streams };
        formula.verify()?;
        Ok(formula)
    }

    fn push(&self, op: Op) -> Expr<'_> {
        let node = *self.known.borrow_mut().entry(op).or_insert_with(|| {
            let mut nodes = self.nodes.borrow_mut();
            nodes.push(op);
            NodeId(nodes.len() as u32 - 1)
        });
        Expr { graph: self, node }
    }
}

impl<'g> Expr<'g> {
    /// `|x|`
    pub fn abs(self) -> Self {
        self.unary(Unary::Absolute)
    }

    /// The square root.
    pub fn sqrt(self) -> Self {
        self.unary(Unary::SquareRoot)
    }

    /// The exponential.
    pub fn exp(self) -> Self {
        self.unary(Unary::Exponential)
    }

    /// The exponential less 1.
    pub fn exp_m1(self) -> Self {
        self.unary(Unary::ExponentialLessOne)
    }

    /// The natural logarithm.
    pub fn ln(self) -> Self {
        self.unary(Unary::Logarithm)
    }

    /// The natural logarithm of 1 more.
    pub fn ln_1p(self) -> Self {
        self.unary(Unary::LogarithmOfOneMore)
    }

    /// The nearest number of E4M3.
    pub fn round_to_e4m3(self) -> Self {
        self.unary(Unary::RoundToE4m3)
    }

    /// The input that this is; `None` where it is anything else.
    pub fn as_input(self) -> Option<u16> {
        match self.graph.nodes.borrow()[self.node.index()] {
            Op::Input(input) => Some(input),
            _ => None,
        }
    }

    /// The cosine of a value per tensor or row, in radians.
    pub fn cos(self) -> Self {
        self.unary(Unary::Cosine)
    }

    /// The sine of a value per tensor or row, in radians.
    pub fn sin(self) -> Self {
        self.unary(Unary::Sine)
    }

    /// The arc cosine of a value per tensor or row, in radians.
    pub fn acos(self) -> Self {
        self.unary(Unary::ArcCosine)
    }

    /// The smaller value.
    pub fn min(self, other: impl IntoExpr<'g>) -> Self {
        self.binary(Binary::Minimum, other)
    }

    /// The larger value.
    pub fn max(self, other: impl IntoExpr<'g>) -> Self {
        self.binary(Binary::Maximum, other)
    }

    /// 1 where smaller than `other`, else 0.
    pub fn less(self, other: impl IntoExpr<'g>) -> Self {
        self.binary(Binary::Less, other)
    }

    /// 1 where at most `other`, else 0.
    pub fn less_or_equal(self, other: impl IntoExpr<'g>) -> Self {
        self.binary(Binary::LessOrEqual, other)
    }

    /// 1 where equal to `other`, else 0.
    pub fn equal(self, other: impl IntoExpr<'g>) -> Self {
        self.binary(Binary::Equal, other)
    }

    /// 1 where the sum of `self` and `other` (both 0 or 1) is not 0.
    pub fn or(self, other: Self) -> Self {
        self.max(other)
    }

    /// 1 where both `self` and `other` (both 0 or 1) are 1.
    pub fn and(self, other: Self) -> Self {
        self * other
    }

    /// `when_true` where `self` is not 0, else `when_false`.
    pub fn select(self, when_true: impl IntoExpr<'g>, when_false: impl IntoExpr<'g>) -> Self {
        let (a, b) = (when_true.on(self.graph), when_false.on(self.graph));
        self.graph.push(Op::Select(self.node, a.node, b.node))
    }

    /// The sum over `axis`.
    pub fn sum(self, axis: Axis) -> Self {
        self.graph.push(Op::Sum(self.node, axis))
    }

    /// The inner product over `axis`.
    pub fn dot(self, other: Self, axis: Axis) -> Self {
        self.graph.push(Op::Dot(self.node, other.node, axis))
    }

    /// The Euclidean norm over `axis`.
    pub fn norm(self, axis: Axis) -> Self {
        self.dot(self, axis).sqrt()
    }

    /// The largest magnitude over `axis`.
    pub fn largest(self, axis: Axis) -> Self {
        self.graph.push(Op::Largest(self.node, axis))
    }

    /// The greatest value over `axis`.
    pub fn greatest(self, axis: Axis) -> Self {
        self.graph.push(Op::Greatest(self.node, axis))
    }

    /// 1 for the `count` largest magnitudes of the tensor, the lowest flat index first among equals; else 0.
    pub fn top(self, count: impl IntoExpr<'g>) -> Self {
        let count = count.on(self.graph);
        self.graph.push(Op::Top(self.node, count.node))
    }

    /// 1 for the `count` largest magnitudes of each row, the lowest flat index first among equals; else 0.
    pub fn row_top(self, count: impl IntoExpr<'g>) -> Self {
        let count = count.on(self.graph);
        self.graph.push(Op::RowTop(self.node, count.node))
    }

    /// The magnitude at place `count`, from 1, among those of the tensor, the largest first.
    pub fn kth(self, count: impl IntoExpr<'g>) -> Self {
        let count = count.on(self.graph);
        self.graph.push(Op::Kth(self.node, count.node))
    }

    /// How many elements of its row are smaller in magnitude, or equal and earlier.
    pub fn rank(self) -> Self {
        self.graph.push(Op::Rank(self.node))
    }

    /// The extent of the value.
    pub fn extent(self) -> Extent {
        let nodes = self.graph.nodes.borrow()[..=self.node.index()].to_vec();
        let last =
            Formula { nodes, outcome: Outcome::Tensor(self.node), inputs: 0, streams: 0 }.extents().pop();
        last.unwrap_or(Extent::Tensor)
    }

    fn unary(self, op: Unary) -> Self {
        self.graph.push(Op::Unary(op, self.node))
    }

    fn binary(self, op: Binary, other: impl IntoExpr<'g>) -> Self {
        let other = other.on(self.graph);
        self.graph.push(Op::Binary(op, self.node, other.node))
    }
}

/// What can stand as an operand: another expression or a number.
pub trait IntoExpr<'g> {
    /// The operand as an expression of `graph`.
    fn on(self, graph: &'g Graph) -> Expr<'g>;
}

impl<'g> IntoExpr<'g> for Expr<'g> {
    fn on(self, graph: &'g Graph) -> Expr<'g> {
        assert!(std::ptr::eq(self.graph, graph), "an expression of another graph");
        self
    }
}

impl<'g> IntoExpr<'g> for f64 {
    fn on(self, graph: &'g Graph) -> Expr<'g> {
        graph.constant(self)
    }
}

/// A count; exact, as no tensor has 2^53 elements.
impl<'g> IntoExpr<'g> for u64 {
    fn on(self, graph: &'g Graph) -> Expr<'g> {
        graph.constant(self as f64)
    }
}

macro_rules! operators {
    ($($trait:ident $method:ident $op:ident),*) => {$(
        impl<'g, T: IntoExpr<'g>> $trait<T> for Expr<'g> {
            type Output = Expr<'g>;
            fn $method(self, other: T) -> Expr<'g> {
                self.binary(Binary::$op, other)
            }
        }
    )*};
}
operators!(Add add Add, Sub sub Subtract, Mul mul Multiply, Div div Divide);

/// 1 where the operand (0 or 1) is 0.
impl Not for Expr<'_> {
    type Output = Self;
    fn not(self) -> Self {
        self.equal(0.0)
    }
}

impl<'g> Neg for Expr<'g> {
    type Output = Self;
    fn neg(self) -> Self {
        self.unary(Unary::Negate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_term_is_one_operation() {
        let graph = Graph::new();
        let (b, x) = (graph.input(0), graph.input(1));
        let formula = graph.finish((x - b) * (x - b)).unwrap();
        assert_eq!(formula.nodes().len(), 4);
        assert_eq!(formula.op(formula.output().unwrap()), Op::Binary(Binary::Multiply, NodeId(2), NodeId(2)));
    }

    #[test]
    fn a_formula_is_built_into_another_one() {
        let graph = Graph::new();
        let (x, y) = (graph.input(0), graph.input(1));
        let half = || graph.input(0) * 0.5 + graph.random(1);
        let inner = graph.within(&[x + y], 3, half);
        let outer = graph.within(&[inner], 0, || graph.input(0) - graph.random(0));
        let formula = graph.finish(outer).unwrap();
        let by_hand = Graph::new();
        let (x, y) = (by_hand.input(0), by_hand.input(1));
        let expected = by_hand.finish((x + y) * 0.5 + by_hand.random(4) - by_hand.random(0)).unwrap();
        assert_eq!(formula, expected);
        assert_eq!((formula.inputs(), formula.streams()), (2, 5));
    }

    #[test]
    fn zero_and_minus_zero_are_different_constants() {
        let graph = Graph::new();
        let _ = (graph.constant(0.0), graph.constant(-0.0));
        assert_eq!(graph.nodes.borrow().len(), 2);
    }
}
