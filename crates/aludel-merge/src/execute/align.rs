//! Puts the experts of models in order before anything is merged: every thread takes a layer of a model.
//!
//! In: the orders that the steps of a plan depend on, of its own part of the output. Out: the same, found. Which tensors these are
//! of, and what they are made of, is the plan's; a step that reads experts finds their order there.

use std::sync::atomic::Ordering::Relaxed;

use super::{MergeError, Run};
use crate::derive::{Aligned, Alignment};
use crate::plan::{Plan, alignments};
use crate::threads::Threads;

/// The orders of experts that a plan's part of the output depends on.
pub(super) fn of_part(plan: &Plan) -> Vec<&Alignment> {
    let share = plan.part.shards(&plan.layout);
    let steps = plan.steps.iter().enumerate();
    alignments(
        steps.filter(|(step, _)| share.contains(&plan.layout.placement(*step).shard)).map(|(_, step)| step),
    )
}

impl Run<'_> {
    /// Finds the orders of all experts.
    pub(super) fn align(&self) -> Result<Vec<Aligned>, MergeError> {
        let weights = self.weights();
        let alignments = of_part(self.plan);
        if alignments.is_empty() {
            return Ok(Vec::new());
        }
        let order = |alignment: &Alignment| {
            alignment.order(&weights).cloned().map_err(|reason| MergeError::NotAligned {
                experts: alignment.experts.clone(),
                model: alignment.model.clone(),
                reason,
            })
        };
        let threads = Threads {
            count: self.plan.work.threads,
            cancel: self.options.cancel,
            on_progress: &|| self.report(),
        };
        threads.share(alignments.len() as u64, |number, ()| {
            let alignment = alignments[number as usize];
            let found = order(alignment).map(|_| ());
            self.counters.read.fetch_add(alignment.bytes, Relaxed);
            found
        })?;
        alignments.iter().map(|alignment| order(alignment)).collect()
    }
}
