//! Carries out a plan that measures: reads tiles, reduces them, and keeps figures instead of writing.
//!
//! In: a plan whose formulas all measure. Out: the figures of each step. Threads, memory and the order of sums are those of a
//! merge, so that figures depend on the models alone.

use std::sync::atomic::Ordering::Relaxed;

use super::queue::Queue;
use super::run::{Run, map_inputs};
use super::{Counters, Done, ExecuteOptions, MergeError};
use crate::plan::Plan;

/// The figures of every step, and the bytes that were read for them. Empty for a step without elements.
pub(crate) fn measure(plan: &Plan, options: &ExecuteOptions<'_>) -> Result<(Vec<Vec<f64>>, u64), MergeError> {
    let counters = Counters::new(plan, options, &Done::default());
    let maps = map_inputs(plan, options)?;
    let run = Run::new(plan, options, &maps, counters);
    let queue = Queue::new(plan, &[], options.pipeline.groups);
    std::thread::scope(|scope| {
        run.read_ahead(scope, &queue);
        for _ in 0..plan.work.threads {
            scope.spawn(|| run.work(&queue, None));
        }
        run.report_progress(&queue, || true);
    });
    let figures = queue.into_figures()?;
    if options.cancel.load(Relaxed) {
        return Err(MergeError::Interrupted);
    }
    Ok((figures, run.counters.read.load(Relaxed)))
}
