//! Splits a formula at its reductions into passes over the tensor.
//!
//! In: a formula. Out: for each pass the reductions that it completes; the last pass completes none and writes the
//! output, or reads nothing where the formula measures. A reduction runs in the first pass in which everything that it depends on is known.

use super::{Formula, NodeId, Op};

/// One sweep over all elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    /// The reductions whose values are known after this pass; empty in the last pass, which writes the output.
    pub reductions: Vec<NodeId>,
    /// The inputs that are read in this pass, ascending.
    pub reads: Vec<u16>,
}

/// The passes of a formula, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// At least one; the last one writes the output. Where the formula measures, the last one has nothing to do.
    pub passes: Vec<Pass>,
}

impl Schedule {
    /// Assigns every reduction that the output needs to a pass.
    pub fn of(formula: &Formula) -> Self {
        let needed = needed(formula);
        let levels = levels(formula);
        let last = formula.outcome().nodes().iter().map(|node| levels[node.index()]).max().unwrap_or(0);
        let mut passes: Vec<Pass> = Vec::new();
        for level in 0..=last {
            let is_here = |node: &NodeId| {
                needed[node.index()] && formula.op(*node).is_reduction() && levels[node.index()] == level + 1
            };
            let reductions: Vec<NodeId> = formula.ids().filter(is_here).collect();
            let reads = if level == last {
                formula.output().map_or_else(Vec::new, |output| reads(formula, &[output]))
            } else {
                let swept = |&r: &NodeId| formula.op(r).swept_operands();
                let operands: Vec<_> = reductions.iter().flat_map(swept).collect();
                reads(formula, &operands)
            };
            passes.push(Pass { reductions, reads });
        }
        Self { passes }
    }
}

/// The operations that the output depends on.
fn needed(formula: &Formula) -> Vec<bool> {
    let mut needed = vec![false; formula.nodes().len()];
    formula.outcome().nodes().iter().for_each(|node| needed[node.index()] = true);
    for node in formula.ids().collect::<Vec<_>>().into_iter().rev() {
        if needed[node.index()] {
            formula.op(node).operands().for_each(|x| needed[x.index()] = true);
        }
    }
    needed
}

/// How many passes must be over before each value can be computed.
pub(super) fn levels(formula: &Formula) -> Vec<usize> {
    let mut levels: Vec<usize> = Vec::with_capacity(formula.nodes().len());
    for op in formula.nodes() {
        let operands = op.operands().map(|x| levels[x.index()]).max().unwrap_or(0);
        levels.push(operands + usize::from(op.is_reduction()));
    }
    levels
}

/// The inputs read to compute `roots` per element, reductions below them being known. A mask of largest magnitudes is
/// known as a threshold only, so its operand is read again.
fn reads(formula: &Formula, roots: &[NodeId]) -> Vec<u16> {
    let mut stack = roots.to_vec();
    let mut visited = vec![false; formula.nodes().len()];
    let mut inputs = Vec::new();
    while let Some(node) = stack.pop() {
        if std::mem::replace(&mut visited[node.index()], true) {
            continue;
        }
        match formula.op(node) {
            Op::Input(input) => inputs.push(input),
            Op::Sum(..) | Op::Dot(..) | Op::Largest(..) | Op::Greatest(..) | Op::Kth(..) => {}
            Op::Top(x, _) | Op::RowTop(x, _) => stack.push(x),
            op => stack.extend(op.operands()),
        }
    }
    inputs.sort_unstable();
    inputs
}

#[cfg(test)]
mod tests {
    use super::super::{Axis, Graph};
    use super::*;

    #[test]
    fn an_elementwise_formula_is_one_pass() {
        let graph = Graph::new();
        let out = graph.input(0) * 0.5 + graph.input(1) * 0.5;
        let schedule = Schedule::of(&graph.finish(out).unwrap());
        assert_eq!(schedule.passes, [Pass { reductions: vec![], reads: vec![0, 1] }]);
    }

    #[test]
    fn a_formula_that_measures_ends_with_its_last_reduction() {
        let graph = Graph::new();
        let (b, x) = (graph.input(0), graph.input(1));
        let mean = x.sum(Axis::Tensor) * 0.25;
        let formula = graph.measure(&[b.norm(Axis::Tensor), (x - mean).abs().sum(Axis::Tensor)]).unwrap();
        let reads: Vec<_> = Schedule::of(&formula).passes.into_iter().map(|pass| pass.reads).collect();
        assert_eq!(reads, [vec![0, 1], vec![1], vec![]]);
    }

    #[test]
    fn a_reduction_over_a_reduction_waits_for_it() {
        let graph = Graph::new();
        let (b, x) = (graph.input(0), graph.input(1));
        let kept = (x - b) * (x - b).top(2);
        let ratio = (x - b).abs().sum(Axis::Tensor) / kept.abs().sum(Axis::Tensor);
        let unused = b.sum(Axis::Row);
        let formula = graph.finish(b + kept * ratio).unwrap();
        let _ = unused;
        let schedule = Schedule::of(&formula);
        let counts: Vec<usize> = schedule.passes.iter().map(|pass| pass.reductions.len()).collect();
        // The threshold and the whole sum first, then the sum of what is kept, then the output.
        assert_eq!(counts, [2, 1, 0]);
        assert_eq!(schedule.passes[1].reads, [0, 1]);
        assert_eq!(schedule.passes[2].reads, [0, 1]);
    }
}
