//! Runs a group of small steps: all their passes over all their tensors, one step after the other, on one thread.
//!
//! In: steps that together are no larger than a tile, and lie side by side in the output. Out: one tile, written at once. Every element is
//! computed as it would be by itself; what is saved is what a thread does for a task besides computing.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use aludel_kernels::cpu::{Scratch, WaveKind};

use super::MergeError;
use super::queue::Queue;
use super::reader::StepSource;
use super::run::Run;
use super::task;
use super::windows::Windows;
use super::writer::{Sink, Span};
use crate::methods::RowLayout;
use crate::plan::Action;

impl Run<'_> {
    /// Runs a group; `false` when the writers are gone.
    pub(super) fn group(
        &self,
        steps: Range<usize>,
        queue: &Queue<'_>,
        scratch: &mut Scratch,
        sink: Option<&Sink<'_>>,
    ) -> Result<bool, MergeError> {
        let has_elements = |step: &usize| self.plan.steps[*step].elements() > 0;
        let steps: Vec<usize> = steps.filter(has_elements).collect();
        let sources: Vec<_> = steps.iter().map(|&step| self.source(step, u64::MAX)).collect();
        let mut windows = Windows::default();
        for (&step, source) in steps.iter().zip(&sources) {
            source.locate_all(&(0..self.plan.steps[step].elements()), &mut windows);
        }
        let windows = windows.joined();
        if !self.options.pipeline.overlaps {
            self.turns.transfer(|| windows.fetch(self.maps));
        }
        let span = |(&step, source): (&usize, &StepSource<'_>)| {
            let length = self.plan.steps[step].elements() as usize * source.output_width();
            Span { tensor: step, offset: 0, length }
        };
        let spans: Vec<Span> = steps.iter().zip(&sources).map(span).collect();
        let tile = match sink {
            Some(sink) => sink.buffer(spans.iter().map(|span| span.length).sum()),
            None => Some(Vec::new()),
        };
        let Some(mut tile) = tile else { return Ok(false) };
        let mut figures = Vec::new();
        self.turns.compute(|| {
            let mut rest = tile.as_mut_slice();
            for (source, span) in sources.iter().zip(&spans) {
                let (out, after) = rest.split_at_mut(span.length.min(rest.len()));
                rest = after;
                figures.push((span.tensor, self.whole(span.tensor, source, queue, scratch, out)?));
                source.release_made();
            }
            Ok::<(), MergeError>(())
        })?;
        if !self.stays {
            windows.release(self.maps);
        }
        let goes_on = match sink {
            Some(sink) => self.turns.transfer(|| sink.write(&spans, tile))?,
            None => true,
        };
        if self.leaves_cache && sink.is_some() {
            windows.leave_cache(self.maps);
        }
        queue.complete_group(figures);
        Ok(goes_on)
    }

    /// Runs all passes of one step; what it has measured.
    fn whole(
        &self,
        step: usize,
        source: &StepSource<'_>,
        queue: &Queue<'_>,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<Vec<f64>, MergeError> {
        let planned = &self.plan.steps[step];
        let elements = planned.elements();
        let Action::Compute { formula, columns, bands } = planned.action else {
            source.copy(0..elements, out)?;
            self.counters.read.fetch_add(elements * self.plan.input_width(step), Relaxed);
            self.counters.sweeps.fetch_add(1, Relaxed);
            return Ok(Vec::new());
        };
        let evaluation =
            self.all_passes(queue.job(planned, formula, RowLayout { columns, bands }), |wave, unit| {
                // No larger than a tile, so every wave is one unit.
                let out = if wave.kind() == WaveKind::Write { &mut *out } else { &mut [] };
                source.run(wave, unit, scratch, out)?;
                self.counters.read.fetch_add(task::bytes_read(self.plan, step, wave, elements), Relaxed);
                Ok(true)
            })?;
        evaluation.iter().for_each(|evaluation| queue.remember(step, evaluation));
        Ok(evaluation.map_or_else(Vec::new, |evaluation| evaluation.figures()))
    }
}
