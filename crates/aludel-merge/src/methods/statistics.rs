//! Names what methods read of a model besides its weights.
//!
//! In: the sides of a tensor. Out: the sides that its statistics have. How they are collected is for others to say; how they
//! are used is in the methods.

/// Statistics of a member, in a file that a parameter of the member names: tensors of the names of the weights that they are
/// about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistics {
    /// The diagonal of the Fisher information: a value for each element.
    Fisher,
    /// The Gram matrix of a linear layer's inputs, of a row and a column for each input.
    Gram,
}

impl Statistics {
    /// The parameter that names the file, and the kind that the file says it is of.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fisher => "fisher",
            Self::Gram => "gram",
        }
    }

    /// The sides of the statistics of a tensor of these sides; `None` where it can have none.
    pub fn shape(self, tensor: &[usize]) -> Option<Vec<usize>> {
        match (self, tensor) {
            (Self::Fisher, _) => Some(tensor.to_vec()),
            (Self::Gram, &[_, inputs]) => Some(vec![inputs, inputs]),
            (Self::Gram, _) => None,
        }
    }

    /// Whether they have a place for each row of the tensor, and so do not fit it in another order.
    pub const fn is_by_row(self) -> bool {
        matches!(self, Self::Fisher)
    }
}
