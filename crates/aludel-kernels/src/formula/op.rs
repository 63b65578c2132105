//! Defines the whole instruction set of formulas.
//!
//! A [`Formula`] is a list of [`Op`]s in which operands precede their users. Values have one of three extents: one per
//! tensor, one per row, one per element. Element values are f32, all others f64; a lower extent spreads over a higher
//! one, rounded to f32 once when it meets elements.

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
}

/// How many values an operation has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// One for the tensor (f64).
    Tensor,
    /// One for each row (f64).
    Row,
    /// One for each element (f32).
    Element,
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
    /// The sine; not on elements.
    Sine,
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
    /// 1 where `|x|` is among the given number of largest magnitudes of the tensor, else 0. Among equal magnitudes the
    /// lowest flat index wins; NaN counts as larger than infinity.
    Top(NodeId, u64),
}

impl Op {
    /// The operands, in order.
    pub fn operands(&self) -> impl Iterator<Item = NodeId> + use<> {
        let operands = match *self {
            Self::Input(_) | Self::Constant(_) | Self::Random(_) => [None; 3],
            Self::Unary(_, x) | Self::Sum(x, _) | Self::Largest(x, _) | Self::Top(x, _) => {
                [Some(x), None, None]
            }
            Self::Binary(_, a, b) | Self::Dot(a, b, _) => [Some(a), Some(b), None],
            Self::Select(c, a, b) => [Some(c), Some(a), Some(b)],
        };
        operands.into_iter().flatten()
    }

    /// Whether all elements must be seen before this value is known.
    pub const fn is_reduction(&self) -> bool {
        matches!(self, Self::Sum(..) | Self::Dot(..) | Self::Largest(..) | Self::Top(..))
    }
}

/// A verified formula: one output tensor from `inputs` tensors of the same shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Formula {
    pub(super) nodes: Vec<Op>,
    pub(super) output: NodeId,
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

    /// The value that is encoded and written.
    pub const fn output(&self) -> NodeId {
        self.output
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
                Op::Input(_) | Op::Random(_) | Op::Top(..) => Extent::Element,
                Op::Constant(_) => Extent::Tensor,
                Op::Sum(_, axis) | Op::Dot(_, _, axis) | Op::Largest(_, axis) => match axis {
                    Axis::Tensor => Extent::Tensor,
                    Axis::Row => Extent::Row,
                },
                _ => op.operands().map(|x| extents[x.index()]).max().unwrap_or(Extent::Tensor),
            };
            extents.push(extent);
        }
        extents
    }

    /// All node ids, in order.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }
}
