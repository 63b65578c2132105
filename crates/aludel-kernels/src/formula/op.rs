//! Defines the whole instruction set of formulas.
//!
//! A [`Formula`] is a list of [`Op`]s in which operands precede their users. Values have one of four extents: one per
//! tensor, one per row, one per column, one per element. Element values are f32, all others f64; a lower extent spreads
//! over a higher one, rounded to f32 once when it meets elements. A value per row and one per column meet at elements.

/// The position of an operation in its formula.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(crate) u32);

impl NodeId {
    /// As an index into the formula's nodes.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A constant, compared by its bits.
#[derive(Clone, Copy, Debug)]
pub struct Literal(pub f64);

impl PartialEq for Literal {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}
impl Eq for Literal {}
impl std::hash::Hash for Literal {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

/// What a reduction runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Axis {
    /// All elements: one value per tensor.
    Tensor,
    /// The elements of each row: one value per row.
    Row,
    /// The elements at the same place of all rows: one value per column.
    Column,
}

/// How many values an operation has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// One for the tensor (f64).
    Tensor,
    /// One for each row (f64).
    Row,
    /// One for each column (f64).
    Column,
    /// One for each element (f32).
    Element,
}

impl Extent {
    /// The extent of an operation on values of two extents.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        match (self, other) {
            (Self::Tensor, extent) | (extent, Self::Tensor) => extent,
            (a, b) if a == b => a,
            _ => Self::Element,
        }
    }
}

/// Operations with one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unary {
    /// `-x`
    Negate,
    /// `|x|`
    Absolute,
    /// The square root.
    SquareRoot,
    /// The exponential.
    Exponential,
    /// The exponential less 1, exact to f32 near 0 too.
    ExponentialLessOne,
    /// The natural logarithm; NaN below 0.
    Logarithm,
    /// The natural logarithm of 1 more, exact to f32 near 0 too.
    LogarithmOfOneMore,
    /// The nearest number of E4M3, ties to even, and of what is beyond its greatest that one; on elements alone.
    RoundToE4m3,
    /// The sine; not on elements.
    Sine,
    /// The cosine; not on elements.
    Cosine,
    /// The arc cosine; not on elements.
    ArcCosine,
}

/// Operations with two operands. Comparisons give 1 or 0, and 0 where an operand is NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    /// `a + b`
    Add,
    /// `a - b`
    Subtract,
    /// `a * b`
    Multiply,
    /// `a / b`
    Divide,
    /// `b` where `b < a`, else `a`.
    Minimum,
    /// `b` where `b > a`, else `a`.
    Maximum,
    /// 1 where `a < b`.
    Less,
    /// 1 where `a <= b`.
    LessOrEqual,
    /// 1 where `a == b`.
    Equal,
}

/// One operation of a formula.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// An element of an input tensor, decoded to f32.
    Input(u16),
    /// A constant.
    Constant(Literal),
    /// The uniform number in `[0, 1)` of this element in a random stream.
    Random(u16),
    /// An operation on one value.
    Unary(Unary, NodeId),
    /// An operation on two values.
    Binary(Binary, NodeId, NodeId),
    /// The second operand where the first is not 0, else the third.
    Select(NodeId, NodeId, NodeId),
    /// `sum x`
    Sum(NodeId, Axis),
    /// `sum x y`, each product exact in f64.
    Dot(NodeId, NodeId, Axis),
    /// `max |x|`
    Largest(NodeId, Axis),
    /// `max x`
    Greatest(NodeId, Axis),
    /// 1 where `|x|` is among the given number (rounded down) of largest magnitudes of the tensor, else 0. Among equal
    /// magnitudes the lowest flat index wins; NaN counts as larger than infinity.
    Top(NodeId, NodeId),
    /// The magnitude that comes at the given place (rounded down, from 1) among those of the tensor, the largest first:
    /// infinity before the first, 0 after the last.
    Kth(NodeId, NodeId),
    /// How many elements of its row are smaller in magnitude, or equal and earlier: 0 for the smallest.
    Rank(NodeId),
    /// As [`Op::Top`], of each row by itself.
    RowTop(NodeId, NodeId),
}

impl Op {
    /// The operands, in order.
    pub fn operands(&self) -> impl Iterator<Item = NodeId> + use<> {
        let operands = match *self {
            Self::Input(_) | Self::Constant(_) | Self::Random(_) => [None; 3],
            Self::Unary(_, x)
            | Self::Sum(x, _)
            | Self::Largest(x, _)
            | Self::Greatest(x, _)
            | Self::Rank(x) => [Some(x), None, None],
            Self::Binary(_, a, b)
            | Self::Dot(a, b, _)
            | Self::Top(a, b)
            | Self::Kth(a, b)
            | Self::RowTop(a, b) => [Some(a), Some(b), None],
            Self::Select(c, a, b) => [Some(c), Some(a), Some(b)],
        };
        operands.into_iter().flatten()
    }

    /// The same operation on other operands.
    #[must_use]
    pub(super) fn renumbered(self, number: impl Fn(NodeId) -> NodeId) -> Self {
        match self {
            Self::Input(_) | Self::Constant(_) | Self::Random(_) => self,
            Self::Unary(op, x) => Self::Unary(op, number(x)),
            Self::Binary(op, a, b) => Self::Binary(op, number(a), number(b)),
            Self::Select(c, a, b) => Self::Select(number(c), number(a), number(b)),
            Self::Sum(x, axis) => Self::Sum(number(x), axis),
            Self::Dot(x, y, axis) => Self::Dot(number(x), number(y), axis),
            Self::Largest(x, axis) => Self::Largest(number(x), axis),
            Self::Greatest(x, axis) => Self::Greatest(number(x), axis),
            Self::Top(x, count) => Self::Top(number(x), number(count)),
            Self::Kth(x, count) => Self::Kth(number(x), number(count)),
            Self::Rank(x) => Self::Rank(number(x)),
            Self::RowTop(x, count) => Self::RowTop(number(x), number(count)),
        }
    }

    /// The operands of which a sweep computes every element: all but the count of a selection.
    pub fn swept_operands(&self) -> impl Iterator<Item = NodeId> + use<> {
        let is_counted = self.is_selection() || matches!(self, Self::RowTop(..));
        self.operands().take(if is_counted { 1 } else { 3 })
    }

    /// Whether all elements must be seen before this value is known.
    pub const fn is_reduction(&self) -> bool {
        matches!(
            self,
            Self::Sum(..) | Self::Dot(..) | Self::Largest(..) | Self::Greatest(..) | Self::RowTop(..)
        ) || self.is_selection()
    }

    /// Whether magnitudes are ranked over the whole tensor.
    pub const fn is_selection(&self) -> bool {
        matches!(self, Self::Top(..) | Self::Kth(..))
    }
}

/// What a formula is evaluated for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A tensor, written: this value for each element.
    Tensor(NodeId),
    /// A tensor, written, and beside it what its rows are to be multiplied by: a value for each element, then one for each row.
    Scaled([NodeId; 2]),
    /// Figures, kept: these values, one each for the tensor.
    Figures(Vec<NodeId>),
}

impl Outcome {
    /// The values asked for.
    pub fn nodes(&self) -> &[NodeId] {
        match self {
            Self::Tensor(output) => std::slice::from_ref(output),
            Self::Scaled(both) => both,
            Self::Figures(figures) => figures,
        }
    }

    /// The same, of operations that have other places.
    pub(super) fn moved(&self, to: impl Fn(NodeId) -> NodeId) -> Self {
        match self {
            Self::Tensor(output) => Self::Tensor(to(*output)),
            Self::Scaled(both) => Self::Scaled(both.map(to)),
            Self::Figures(figures) => Self::Figures(figures.iter().map(|&figure| to(figure)).collect()),
        }
    }
}

/// A verified formula: one output tensor from `inputs` tensors of the same shape, or a few figures of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Formula {
    pub(super) nodes: Vec<Op>,
    pub(super) outcome: Outcome,
    pub(super) inputs: u16,
    pub(super) streams: u16,
}

impl Formula {
    /// The operations; operands precede their users.
    pub fn nodes(&self) -> &[Op] {
        &self.nodes
    }

    /// The operation at `node`.
    pub fn op(&self, node: NodeId) -> Op {
        self.nodes[node.index()]
    }

    /// What it is evaluated for.
    pub const fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// The value that is encoded and written; `None` for a formula that measures.
    pub const fn output(&self) -> Option<NodeId> {
        match self.outcome {
            Outcome::Tensor(output) | Outcome::Scaled([output, _]) => Some(output),
            Outcome::Figures(_) => None,
        }
    }

    /// The values by row that are written beside the output.
    pub const fn scales(&self) -> Option<NodeId> {
        match self.outcome {
            Outcome::Scaled([_, scales]) => Some(scales),
            Outcome::Tensor(_) | Outcome::Figures(_) => None,
        }
    }

    /// Whether it measures, and writes nothing.
    pub const fn measures(&self) -> bool {
        matches!(self.outcome, Outcome::Figures(_))
    }

    /// The number of input tensors.
    pub const fn inputs(&self) -> usize {
        self.inputs as usize
    }

    /// The number of random streams.
    pub const fn streams(&self) -> usize {
        self.streams as usize
    }

    /// The extent of every operation.
    pub fn extents(&self) -> Vec<Extent> {
        let mut extents = Vec::with_capacity(self.nodes.len());
        for op in &self.nodes {
            let extent = match *op {
                Op::Input(_) | Op::Random(_) | Op::Top(..) | Op::Rank(_) | Op::RowTop(..) => Extent::Element,
                Op::Constant(_) | Op::Kth(..) => Extent::Tensor,
                Op::Sum(_, axis) | Op::Dot(_, _, axis) | Op::Largest(_, axis) | Op::Greatest(_, axis) => {
                    match axis {
                        Axis::Tensor => Extent::Tensor,
                        Axis::Row => Extent::Row,
                        Axis::Column => Extent::Column,
                    }
                }
                _ => op
                    .operands()
                    .map(|x| extents.get(x.index()).copied().unwrap_or(Extent::Element))
                    .fold(Extent::Tensor, Extent::join),
            };
            extents.push(extent);
        }
        extents
    }

    /// What a value is computed by: its operation, after all those that it depends on, numbered among themselves. Where two formulas
    /// have equal parts and equal inputs, the values are equal.
    pub fn part(&self, node: NodeId) -> Vec<Op> {
        let mut is_in = vec![false; node.index() + 1];
        is_in[node.index()] = true;
        for at in (0..=node.index()).rev() {
            if is_in[at] {
                self.nodes[at].operands().for_each(|x| is_in[x.index()] = true);
            }
        }
        let mut numbers = vec![NodeId(0); node.index() + 1];
        let mut part = Vec::new();
        for at in (0..=node.index()).filter(|&at| is_in[at]) {
            numbers[at] = NodeId(part.len() as u32);
            part.push(self.nodes[at].renumbered(|x| numbers[x.index()]));
        }
        part
    }

    /// Whether it has a value for each row or column, so that the length of rows matters.
    pub fn computes_by_row(&self) -> bool {
        let by_row = |extent: &Extent| matches!(extent, Extent::Row | Extent::Column);
        let sees_rows = |op: &Op| matches!(op, Op::Rank(_) | Op::RowTop(..));
        self.extents().iter().any(by_row) || self.nodes.iter().any(sees_rows)
    }

    /// All node ids, in order.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Graph;

    #[test]
    fn parts_are_equal_where_what_they_compute_is() {
        let top = |weight: f64, count: u64| {
            let graph = Graph::new();
            let (b, x) = (graph.input(0), graph.input(1));
            let d = x - b;
            let formula = graph.finish(b + d * d.top(count) * weight).unwrap();
            let node = formula.ids().find(|&node| formula.op(node).is_selection()).unwrap();
            formula.part(node)
        };
        assert_eq!(top(0.5, 3), top(0.25, 3));
        assert_ne!(top(0.5, 3), top(0.5, 4));
        assert_eq!(top(0.5, 3).len(), 5);
    }
}
