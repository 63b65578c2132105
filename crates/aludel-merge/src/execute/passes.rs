//! Evaluates a step as a whole on one thread: all units of all its waves, in their order.

use std::sync::atomic::Ordering::Relaxed;

use aludel_kernels::cpu::{Evaluation, Job, Wave};

use super::MergeError;
use super::run::Run;

impl Run<'_> {
    /// Has `unit` run every unit, for as long as it says to go on; the evaluation at its end, `None` where it was not to go on.
    pub(super) fn all_passes(
        &self,
        job: Job,
        mut unit: impl FnMut(&Wave, usize) -> Result<bool, MergeError>,
    ) -> Result<Option<Evaluation>, MergeError> {
        let (mut evaluation, mut wave) = Evaluation::start(job);
        loop {
            for number in 0..wave.units() {
                if !unit(&wave, number)? {
                    return Ok(None);
                }
            }
            match evaluation.advance(&wave) {
                Some(next) => wave = next,
                None => break,
            }
        }
        self.counters.sweeps.fetch_add(evaluation.sweeps() as u64, Relaxed);
        Ok(Some(evaluation))
    }
}
