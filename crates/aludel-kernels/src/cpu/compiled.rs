//! Keeps what the evaluations of one formula have in common: its schedule, and the programs of its passes.
//!
//! In: a formula. Out: programs, each compiled when it is first asked for. A model of experts has one formula and tens of thousands
//! of tensors, most of them so small that compiling takes longer than computing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::program::Program;
use crate::formula::{Formula, NodeId, Schedule};

/// A formula and its compiled passes, for any number of evaluations at once.
#[derive(Debug)]
pub struct Compiled {
    formula: Arc<Formula>,
    pub(super) schedule: Schedule,
    programs: Mutex<HashMap<Completes, Arc<Program>>>,
}

/// What a program completes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Completes {
    Output,
    Reductions(Vec<NodeId>),
    /// A value for each element, which is stored.
    Value(NodeId),
}

impl Compiled {
    /// Compiles nothing yet.
    pub fn new(formula: Arc<Formula>) -> Self {
        Self { schedule: Schedule::of(&formula), formula, programs: Mutex::default() }
    }

    /// The formula.
    pub fn formula(&self) -> &Formula {
        &self.formula
    }

    /// The program that completes these reductions.
    pub(super) fn reducing(&self, reductions: &[NodeId]) -> Arc<Program> {
        let compile = || Program::reducing(&self.formula, reductions);
        self.program(Completes::Reductions(reductions.to_vec()), compile)
    }

    /// The program that writes the output.
    pub(super) fn writing(&self) -> Arc<Program> {
        self.program(Completes::Output, || Program::writing(&self.formula))
    }

    /// The program that stores one value for each element.
    pub(super) fn storing(&self, node: NodeId) -> Arc<Program> {
        self.program(Completes::Value(node), || Program::storing(&self.formula, node))
    }

    fn program(&self, completes: Completes, compile: impl FnOnce() -> Program) -> Arc<Program> {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(programs.entry(completes).or_insert_with(|| Arc::new(compile())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formula::{Axis, Graph};

    #[test]
    fn a_program_is_compiled_once() {
        let graph = Graph::new();
        let x = graph.input(0);
        let norm = x.norm(Axis::Tensor);
        let compiled = Compiled::new(Arc::new(graph.finish(x / norm).unwrap()));
        let reductions = compiled.schedule.passes[0].reductions.clone();
        assert!(Arc::ptr_eq(&compiled.writing(), &compiled.writing()));
        assert!(Arc::ptr_eq(&compiled.reducing(&reductions), &compiled.reducing(&reductions)));
        assert!(!Arc::ptr_eq(&compiled.reducing(&reductions), &compiled.reducing(&[])));
    }
}
