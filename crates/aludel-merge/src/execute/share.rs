//! Says which steps of a plan a device takes, and what it is to compute of each.
//!
//! In: a plan, a device, the steps that are done. Out: for each step that the device takes the tensor as the device knows it; for all others why
//! the CPU keeps them. It is decided by the plan and the device's memory alone, before anything is read.

use std::collections::BTreeMap;
use std::sync::Arc;

use aludel_kernels::element::Encoding;
use aludel_kernels::gpu::{Backend, Batch, Tensor};

use super::queue::{output_of, streams_of};
use crate::plan::{Action, Plan, element_of};

/// The steps that a device takes.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// The step, what is computed, and the bytes that it takes of the device's memory; steps of all output files alternate.
    pub steps: Vec<(usize, Tensor, u64)>,
    /// Why the CPU computes the others, and how many for each reason.
    pub kept: BTreeMap<&'static str, usize>,
}

/// Batches of tensors that are in the device's memory at once: one that is read, one that is computed, one that is written.
pub(super) const BATCHES: usize = 3;

impl Share {
    /// Decides. Kernels are compiled by that.
    pub(super) fn of<B: Backend>(plan: &Plan, device: &B, done: &[bool]) -> Result<Self, B::Error> {
        Self::within(plan, device, done, device.room(BATCHES as u64)?)
    }

    /// As [`Share::of`], of tensors that take no more than these bytes each.
    pub(super) fn within<B: Backend>(
        plan: &Plan,
        device: &B,
        done: &[bool],
        room: u64,
    ) -> Result<Self, B::Error> {
        let mut share = Self::default();
        for step in 0..plan.steps.len() {
            if done.get(step).copied().unwrap_or(false) || plan.steps[step].elements() == 0 {
                continue;
            }
            let tensor = tensor(plan, step);
            let tensor = tensor.and_then(|tensor| device.obstacle(&tensor).map_or(Ok(tensor), Err));
            match tensor {
                Ok(tensor) => {
                    let bytes = Batch::bytes_of(device, &tensor)?.all();
                    if bytes <= room {
                        share.steps.push((step, tensor, bytes));
                    } else {
                        share.keep("it is too large for the device's memory");
                    }
                }
                Err(reason) => share.keep(reason),
            }
        }
        share.steps = alternating(share.steps, |&(step, ..)| plan.shard(step));
        Ok(share)
    }

    /// The steps that the CPU has nothing to do with: those of the device, and those that are done.
    pub(super) fn and_done(&self, plan: &Plan, done: &[bool]) -> Vec<bool> {
        let mut elsewhere = done.to_vec();
        elsewhere.resize(plan.steps.len(), false);
        self.steps.iter().for_each(|(step, ..)| elsewhere[*step] = true);
        elsewhere
    }

    /// Bytes that are not read again for every pass: what the device has read stays in its memory.
    pub(super) fn bytes_spared(&self, plan: &Plan) -> u64 {
        let spared = |&(step, ..): &(usize, Tensor, u64)| {
            plan.bytes_read(step).saturating_sub(plan.input_width(step) * plan.steps[step].elements())
        };
        self.steps.iter().map(spared).sum()
    }

    fn keep(&mut self, reason: &'static str) {
        *self.kept.entry(reason).or_default() += 1;
    }
}

/// The same items, in an order in which the groups alternate and each one's items keep theirs: who writes to one file waits for who else
/// writes to it, so several are written at once.
pub(super) fn alternating<T, G: Ord>(items: Vec<T>, group: impl Fn(&T) -> G) -> Vec<T> {
    let mut counts: BTreeMap<G, u64> = BTreeMap::new();
    items.iter().for_each(|item| *counts.entry(group(item)).or_default() += 1);
    let mut seen: BTreeMap<G, u64> = BTreeMap::new();
    let mut placed: Vec<(u64, T)> = Vec::with_capacity(items.len());
    for item in items {
        let group = group(&item);
        let count = counts[&group];
        let before = seen.entry(group).or_default();
        // Of the group's way from 0 to 1 in as many steps as it has items, the middle of this one.
        placed.push((((2 * *before + 1) << 24) / (2 * count), item));
        *before += 1;
    }
    placed.sort_by_key(|&(place, _)| place);
    placed.into_iter().map(|(_, item)| item).collect()
}

/// A step as the device computes it, or why it does not.
fn tensor(plan: &Plan, index: usize) -> Result<Tensor, &'static str> {
    let step = &plan.steps[index];
    let formula = match step.action {
        Action::Compute { formula, .. } => formula,
        Action::Copy => return Err("it is copied"),
        Action::Scales => return Err("it is written with what it scales"),
    };
    if let Some(obstacle) = plan.formulas[formula].only_on_cpu {
        return Err(obstacle);
    }
    if step.elements() > u64::from(u32::MAX) {
        return Err("it has more elements than the device counts");
    }
    let stored = |input: &crate::plan::StepInput| {
        let entry = plan.checkpoint(input).tensor(&input.tensor).filter(|_| input.made.is_none())?;
        element_of(entry.dtype)
    };
    let inputs = step.inputs.iter().map(stored).collect::<Option<Vec<_>>>();
    let inputs = inputs.ok_or("an input is made while it is read")?;
    let Encoding::Plain(output) = output_of(step) else {
        return Err("it is stored in FP8");
    };
    let formula = Arc::clone(&plan.formulas[formula].formula);
    let geometry = step.geometry().ok_or("it is not computed")?;
    Ok(Tensor { streams: streams_of(plan, step, &formula), formula, geometry, inputs, output })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_alternate_and_keep_their_order() {
        let items = vec![(0, 'a'), (0, 'b'), (0, 'c'), (0, 'd'), (1, 'e'), (1, 'f')];
        let order: String = alternating(items, |item| item.0).iter().map(|item| item.1).collect();
        assert_eq!(order, "aebcfd");
        assert!(alternating(Vec::new(), |&item: &u8| item).is_empty());
    }
}
