//! Checks that a formula has a meaning before anything runs it.

use super::schedule::levels;
use super::{Extent, Formula, NodeId, Op, Outcome, Unary};

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
    /// Sine, cosine or arc cosine of elements.
    #[error(
        "operation {user}: sine, cosine and arc cosine take a value per tensor, row or column, not elements"
    )]
    Elements {
        /// The index of the operation.
        user: usize,
    },
    /// A count that is not one value for the tensor.
    #[error("operation {user} counts by operation {operand}, which is not one value for the tensor")]
    Count {
        /// The index of the selection.
        user: usize,
        /// The index of its count.
        operand: usize,
    },
    /// A rank where whole rows are not at hand, or of random numbers.
    #[error(
        "operation {user} ranks or selects by operation {operand}, which itself needs whole rows or random numbers"
    )]
    Rank {
        /// The index of the rank or selection.
        user: usize,
        /// The index of what it may not depend on.
        operand: usize,
    },
    /// The output is not one value per element.
    #[error("the output has no value per element")]
    Output,
    /// A figure that is not one value for the tensor, or that its elements do not enter.
    #[error("figure {figure} is not one value that is measured over the tensor")]
    Figure {
        /// Its position among the figures.
        figure: usize,
    },
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
            let not_element = op.swept_operands().map(NodeId::index).find(|&x| extents[x] != Extent::Element);
            if let (true, Some(operand)) = (op.is_reduction() || matches!(op, Op::Rank(_)), not_element) {
                return Err(FormulaError::NotElements { user, operand });
            }
            let is_angle = matches!(op, Op::Unary(Unary::Sine | Unary::Cosine | Unary::ArcCosine, _));
            if is_angle && extents[user] == Extent::Element {
                return Err(FormulaError::Elements { user });
            }
            if let Op::Top(_, count) | Op::Kth(_, count) | Op::RowTop(_, count) = *op
                && extents[count.index()] != Extent::Tensor
            {
                return Err(FormulaError::Count { user, operand: count.index() });
            }
            self.verify_rows(user, *op)?;
        }
        self.verify_outcome(&extents)
    }

    fn verify_outcome(&self, extents: &[Extent]) -> Result<(), FormulaError> {
        let extent = |node: NodeId| extents.get(node.index());
        match &self.outcome {
            Outcome::Tensor(output) if extent(*output) == Some(&Extent::Element) => Ok(()),
            Outcome::Scaled([output, scales])
                if extent(*output) == Some(&Extent::Element) && extent(*scales) == Some(&Extent::Row) =>
            {
                Ok(())
            }
            Outcome::Tensor(_) | Outcome::Scaled(_) => Err(FormulaError::Output),
            Outcome::Figures(figures) => {
                let is_measured =
                    |&node: &NodeId| extent(node) == Some(&Extent::Tensor) && levels(self)[node.index()] > 0;
                let fault = figures.iter().position(|figure| !is_measured(figure));
                fault.map_or(Ok(()), |figure| Err(FormulaError::Figure { figure }))
            }
        }
    }

    /// Ranks are taken over whole rows before a block is computed, and selections look at samples of a few elements: what
    /// is ranked or selected by cannot itself need whole rows. Random numbers come in groups that rows may cut.
    fn verify_rows(&self, user: usize, op: Op) -> Result<(), FormulaError> {
        let ranks = matches!(op, Op::Rank(_) | Op::RowTop(..));
        if !ranks && !op.is_selection() {
            return Ok(());
        }
        let mut stack: Vec<NodeId> = op.swept_operands().collect();
        let mut visited = vec![false; self.nodes.len()];
        while let Some(node) = stack.pop() {
            if std::mem::replace(&mut visited[node.index()], true) {
                continue;
            }
            match self.op(node) {
                Op::Rank(_) => return Err(FormulaError::Rank { user, operand: node.index() }),
                Op::Random(_) if ranks => return Err(FormulaError::Rank { user, operand: node.index() }),
                Op::Sum(..) | Op::Dot(..) | Op::Largest(..) | Op::Greatest(..) | Op::Kth(..) => {}
                op => stack.extend(op.swept_operands()),
            }
        }
        Ok(())
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

        assert_eq!(graph.measure(&[total, x]), Err(FormulaError::Figure { figure: 1 }));
        assert_eq!(graph.measure(&[x.sum(Axis::Row)]), Err(FormulaError::Figure { figure: 0 }));
        assert_eq!(graph.measure(&[total, graph.constant(1.0)]), Err(FormulaError::Figure { figure: 1 }));

        let graph = Graph::new();
        let x = graph.input(0);
        let twice = x.sum(Axis::Tensor).sum(Axis::Tensor);
        assert_eq!(graph.finish(x * twice), Err(FormulaError::NotElements { user: 2, operand: 1 }));

        let graph = Graph::new();
        let x = graph.input(0);
        assert_eq!(graph.finish(x.sin()), Err(FormulaError::Elements { user: 1 }));

        let graph = Graph::new();
        let x = graph.input(0);
        let kept = x * x.top(x.sum(Axis::Row));
        assert_eq!(graph.finish(kept), Err(FormulaError::Count { user: 2, operand: 1 }));

        let graph = Graph::new();
        let x = graph.input(0);
        assert_eq!(graph.finish(x.rank().kth(1.0) * x), Err(FormulaError::Rank { user: 3, operand: 1 }));
        let graph = Graph::new();
        let ranked = (graph.input(0) + graph.random(0)).rank();
        assert_eq!(graph.finish(ranked), Err(FormulaError::Rank { user: 3, operand: 1 }));
        let graph = Graph::new();
        let kept = (graph.input(0) * graph.random(0)).row_top(1.0);
        assert_eq!(graph.finish(kept), Err(FormulaError::Rank { user: 4, operand: 1 }));

        let nodes = vec![Op::Unary(Unary::Negate, NodeId(1)), Op::Input(0)];
        let formula = Formula { nodes, outcome: Outcome::Tensor(NodeId(0)), inputs: 1, streams: 0 };
        assert_eq!(formula.verify(), Err(FormulaError::Order { user: 0, operand: 1 }));
    }
}
