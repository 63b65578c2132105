//! Remembers what reductions over tensors have come to, for merges of the same models that follow.
//!
//! In: steps, their formulas, and what their evaluation has found. Out: what a later evaluation need not find again: a threshold whose density
//! is the same, a norm of tensors that are the same. A reduction is known by all that it depends on, so that nothing has to be said of what
//! has changed. Only what the last merge knew is kept.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use aludel_kernels::cpu::Statistic;
use aludel_kernels::formula::{Formula, NodeId, Op};

use crate::plan::{Action, Step, StepInput};

/// What is known, and what is found out.
#[derive(Debug, Default)]
pub(super) struct Statistics {
    known: HashMap<Key, Statistic>,
    found: Mutex<HashMap<Key, Statistic>>,
    reused: AtomicUsize,
    computed: AtomicUsize,
}

/// What a reduction depends on. Random streams are the tensor's own.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    tensor: String,
    inputs: Vec<StepInput>,
    /// Elements of each row, and how rows are grouped.
    rows: Option<(u64, Option<u64>)>,
    part: Vec<Op>,
}

impl Key {
    fn new(step: &Step, formula: &Formula, node: NodeId) -> Self {
        let rows = match step.action {
            Action::Compute { columns, bands, .. } => Some((columns, bands)),
            Action::Copy | Action::Scales => None,
        };
        Self { tensor: step.tensor.clone(), inputs: step.inputs.clone(), rows, part: formula.part(node) }
    }
}

impl Statistics {
    /// For the next merge: what the last one has found is known.
    pub(super) fn next(self) -> Self {
        let known = self.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        Self { known, ..Self::default() }
    }

    /// What is known of a step.
    pub(super) fn of(&self, step: &Step, formula: &Formula) -> Vec<(NodeId, Statistic)> {
        if self.known.is_empty() {
            return Vec::new();
        }
        let reductions = formula.ids().filter(|&node| formula.op(node).is_reduction());
        let known: Vec<_> = reductions
            .filter_map(|node| Some((node, self.known.get(&Key::new(step, formula, node))?.clone())))
            .collect();
        self.reused.fetch_add(known.len(), Relaxed);
        known
    }

    /// Keeps what the evaluation of a step knew in the end.
    pub(super) fn keep(&self, step: &Step, formula: &Formula, found: Vec<(NodeId, Statistic)>) {
        let keyed = found.into_iter().map(|(node, statistic)| (Key::new(step, formula, node), statistic));
        let keyed: Vec<_> = keyed.collect();
        self.computed.fetch_add(keyed.len(), Relaxed);
        self.found.lock().unwrap_or_else(PoisonError::into_inner).extend(keyed);
    }

    /// How many reductions were known before, and how many were computed.
    pub(super) fn counts(&self) -> (usize, usize) {
        let reused = self.reused.load(Relaxed);
        (reused, self.computed.load(Relaxed).saturating_sub(reused))
    }
}
