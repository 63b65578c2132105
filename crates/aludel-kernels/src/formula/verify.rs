//! Checks that a formula has a meaning before anything runs it.

use super::{Extent, Formula, NodeId, Op, Unary};

/// Why a formula has no meaning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormulaError {
    /// An operand does not precede its user.
    #[error("operation {user} uses operation {operand}, which does not precede it")]
    Order {
        /// The index of the operation.
        user: usize,
        /// The index of its operand.
        operand: usize,
    },
    /// A reduction of something that is not one value per element.
    #[error("operation {user} reduces operation {operand}, which has no value per element")]
    NotElements {
        /// The index of the reduction.
        user: usize,
        /// The index of its operand.
        operand: usize,
    },
    /// Sine or arc cosine of elements.
    #[error("operation {user}: sine and arc cosine take a value per tensor or row, not elements")]
    Elements {
        /// The index of the operation.
        user: usize,
    },
    /// The output is not one value per element.
    #[error("the output has no value per element")]
    Output,
}

impl Formula {
    /// Checks order and extents of every operation.
    pub(super) fn verify(&self) -> Result<(), FormulaError> {
        for (user, op) in self.nodes.iter().enumerate() {
            if let Some(operand) = op.operands().map(NodeId::index).find(|&operand| operand >= user) {
                return Err(FormulaError::Order { user, operand });
            }
        }
        let extents = self.extents();
        for (user, op) in self.nodes.iter().enumerate() {
            let not_element = op.operands().map(NodeId::index).find(|&x| extents[x] != Extent::Element);
            if let (true, Some(operand)) = (op.is_reduction(), not_element) {
                return Err(FormulaError::NotElements { user, operand });
            }
            if matches!(op, Op::Unary(Unary::Sine | Unary::ArcCosine, _)) && extents[user] == Extent::Element
            {
                return Err(FormulaError::Elements { user });
            }
        }
        match extents.get(self.output.index()) {
            Some(Extent::Element) => Ok(()),
            _ => Err(FormulaError::Output),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Axis, Graph};
    use super::*;

    #[test]
    fn meaningless_formulas_are_refused() {
        let graph = Graph::new();
        let x = graph.input(0);
        let total = x.sum(Axis::Tensor);
        assert_eq!(graph.finish(total), Err(FormulaError::Output));

        let graph = Graph::new();
        let x = graph.input(0);
        let twice = x.sum(Axis::Tensor).sum(Axis::Tensor);
        assert_eq!(graph.finish(x * twice), Err(FormulaError::NotElements { user: 2, operand: 1 }));

        let graph = Graph::new();
        let x = graph.input(0);
        assert_eq!(graph.finish(x.sin()), Err(FormulaError::Elements { user: 1 }));

        let nodes = vec![Op::Unary(Unary::Negate, NodeId(1)), Op::Input(0)];
        let formula = Formula { nodes, output: NodeId(0), inputs: 1, streams: 0 };
        assert_eq!(formula.verify(), Err(FormulaError::Order { user: 0, operand: 1 }));
    }
}
