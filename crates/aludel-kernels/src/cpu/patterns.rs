//! Recognises groups of operations that run faster as one instruction: no block is stored and loaded between them.
//!
//! In: a formula and a node. Out: what the node computes, where it has one of the shapes below. A group does the same
//! arithmetic in the same order as its operations one by one, so that no bit of a result depends on what is recognised
//! (held by a test of the compiler with and without). Recognised by shape, not by method: any formula may have them.

use crate::formula::{Binary, Extent, Formula, NodeId, Op, Unary};

/// The most values among which one sign is elected in one instruction.
pub(super) const ELECTORS: usize = 4;

/// Factors per tensor that a masked value takes along.
pub(super) const FACTORS: usize = 2;

/// `(x * mask) * factor * factor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Masked {
    pub x: NodeId,
    pub mask: Mask,
    pub factors: [Option<NodeId>; FACTORS],
}

/// What multiplies a value by 1 or 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mask {
    /// This selection of the value's own largest magnitudes.
    Top(NodeId),
    /// Whether a random number is below a value per tensor.
    Chance { stream: u16, below: NodeId },
}

/// The sum of the values whose sign is that of the sum of all (0 counting as positive), perhaps divided by the sum of
/// their weights (1 where that is 0).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Election {
    pub parts: Vec<NodeId>,
    /// The weights per tensor, `None` for 1; no weights where nothing is divided.
    pub weights: Option<Vec<Option<NodeId>>>,
}

/// What the operations of one program read.
#[derive(Debug)]
pub(super) struct Patterns<'f> {
    formula: &'f Formula,
    extents: Vec<Extent>,
    /// How many operations of the program read each value per element.
    readers: Vec<u32>,
}

impl<'f> Patterns<'f> {
    /// Looks at everything per element that `roots` are computed from.
    pub(super) fn new(formula: &'f Formula, roots: impl Iterator<Item = NodeId>) -> Self {
        let mut patterns =
            Self { formula, extents: formula.extents(), readers: vec![0; formula.nodes().len()] };
        let mut stack: Vec<NodeId> = roots.collect();
        while let Some(node) = stack.pop() {
            let readers = &mut patterns.readers[node.index()];
            *readers += 1;
            if *readers == 1 && patterns.extents[node.index()] == Extent::Element {
                stack.extend(formula.op(node).operands());
            }
        }
        patterns
    }

    pub(super) fn extent(&self, node: NodeId) -> Extent {
        self.extents[node.index()]
    }

    /// Whether the value is wanted by one operation only, which then may keep it to itself.
    fn is_private(&self, node: NodeId) -> bool {
        self.readers[node.index()] == 1
    }

    /// `input - other`, both per element: `(input, other)`.
    pub(super) fn difference(&self, node: NodeId) -> Option<(u16, NodeId)> {
        let (input, other) = self.binary(node, Binary::Subtract)?;
        match self.formula.op(input) {
            Op::Input(index) if self.is_private(input) && self.extent(other) == Extent::Element => {
                Some((index, other))
            }
            _ => None,
        }
    }

    pub(super) fn masked(&self, node: NodeId) -> Option<Masked> {
        let mut factors = [None; FACTORS];
        let mut node = node;
        for factor in factors.iter_mut().rev() {
            match self.binary(node, Binary::Multiply) {
                Some((x, scale)) if self.extent(scale) == Extent::Tensor && self.is_private(x) => {
                    *factor = Some(scale);
                    node = x;
                }
                _ => break,
            }
        }
        let (x, mask) = self.binary(node, Binary::Multiply)?;
        if self.extent(x) != Extent::Element || !self.is_private(mask) {
            return None;
        }
        let mask = match self.formula.op(mask) {
            Op::Top(of, _) if of == x => Mask::Top(mask),
            Op::Binary(Binary::Less, random, below) => match self.formula.op(random) {
                Op::Random(stream) if self.is_private(random) && self.extent(below) == Extent::Tensor => {
                    Mask::Chance { stream, below }
                }
                _ => return None,
            },
            _ => return None,
        };
        Some(Masked { x, mask, factors })
    }

    pub(super) fn election(&self, node: NodeId) -> Option<Election> {
        let Some((mixed, divisor)) = self.binary(node, Binary::Divide) else {
            let (parts, _) = self.mixed(node)?;
            return Some(Election { parts, weights: None });
        };
        let (parts, agreements) = self.mixed(mixed)?;
        let Op::Select(is_zero, one, divisor) = self.element(divisor)? else { return None };
        let (tested, zero) = self.binary(is_zero, Binary::Equal)?;
        if tested != divisor || !self.is_constant(zero, 0.0) || !self.is_constant(one, 1.0) {
            return None;
        }
        let weights = self.terms(divisor, parts.len())?;
        let weight = |(&term, &agreement): (&NodeId, &NodeId)| match self.binary(term, Binary::Multiply) {
            Some((of, weight)) if of == agreement && self.extent(weight) == Extent::Tensor => {
                Some(Some(weight))
            }
            _ => (term == agreement).then_some(None),
        };
        let weights = weights.iter().zip(&agreements).map(weight).collect::<Option<_>>()?;
        Some(Election { parts, weights: Some(weights) })
    }

    /// `sum x_i a_i`, where `a_i` says whether `x_i` has the sign of `sum x_i`: the `x_i` and the `a_i`.
    fn mixed(&self, node: NodeId) -> Option<(Vec<NodeId>, Vec<NodeId>)> {
        (2..=ELECTORS).rev().find_map(|count| {
            let product = |&term: &NodeId| self.binary(term, Binary::Multiply);
            let products: Vec<(NodeId, NodeId)> =
                self.terms(node, count)?.iter().map(product).collect::<Option<_>>()?;
            let (parts, agreements): (Vec<_>, Vec<_>) = products.into_iter().unzip();
            let agree = parts.iter().zip(&agreements).all(|(&x, &a)| self.is_agreement(x, a, &parts));
            agree.then_some((parts, agreements))
        })
    }

    /// Whether `a` is `(0 <= sum of all) ? 0 < x : x < 0`.
    fn is_agreement(&self, x: NodeId, a: NodeId, all: &[NodeId]) -> bool {
        let Op::Select(is_positive, above, below) = self.formula.op(a) else { return false };
        let is_zero = |node: NodeId| self.is_constant(node, 0.0);
        let compares = |node, op, test: &dyn Fn(NodeId, NodeId) -> bool| {
            self.binary(node, op).is_some_and(|(a, b)| test(a, b))
        };
        self.extent(x) == Extent::Element
            && compares(above, Binary::Less, &|zero, of| is_zero(zero) && of == x)
            && compares(below, Binary::Less, &|of, zero| of == x && is_zero(zero))
            && compares(is_positive, Binary::LessOrEqual, &|zero, votes| {
                is_zero(zero) && self.terms(votes, all.len()).is_some_and(|terms| terms == all)
            })
    }

    /// The terms of a sum that adds so many of them in order.
    fn terms(&self, node: NodeId, count: usize) -> Option<Vec<NodeId>> {
        let mut terms = Vec::with_capacity(count);
        let mut node = node;
        for _ in 1..count {
            let (rest, last) = self.binary(node, Binary::Add)?;
            terms.push(last);
            node = rest;
        }
        terms.push(node);
        terms.reverse();
        Some(terms)
    }

    fn binary(&self, node: NodeId, wanted: Binary) -> Option<(NodeId, NodeId)> {
        match self.element(node)? {
            Op::Binary(op, a, b) if op == wanted => Some((a, b)),
            _ => None,
        }
    }

    /// The operation of a value per element.
    fn element(&self, node: NodeId) -> Option<Op> {
        (self.extent(node) == Extent::Element).then(|| self.formula.op(node))
    }

    /// Minus zero is another constant, but compares as zero does; only zero is met.
    fn is_constant(&self, node: NodeId, value: f64) -> bool {
        matches!(self.formula.op(node), Op::Constant(constant) if constant.0.to_bits() == value.to_bits())
    }
}

/// The value per element whose magnitudes are summed by a sum of this node, where it sums magnitudes.
pub(super) fn magnitudes(formula: &Formula, extents: &[Extent], node: NodeId) -> Option<NodeId> {
    match formula.op(node) {
        Op::Unary(Unary::Absolute, x) if extents[x.index()] == Extent::Element => Some(x),
        _ => None,
    }
}
