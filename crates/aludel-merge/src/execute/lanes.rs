//! Feeds a device: lanes read inputs into its memory, have batches computed, and hand outputs to the writer.
//!
//! In: the steps that the device takes. Out: their tiles, through the same sink as those that the CPU computes. A lane is a thread with pinned memory
//! of its own; all of them take pieces of the batches under way, so that one batch is read while another is computed and a third
//! written. Outputs come first: they make room. A tensor that the device leaves to the CPU is computed by the lane that finds out.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aludel_kernels::cpu::{Scratch, WaveKind};
use aludel_kernels::gpu::{Backend, Batch, Tensor, Verdict};

use super::queue::Queue;
use super::share::{BATCHES, Share, alternating};
use super::writer::{Sink, Span};
use super::{DeviceReport, MergeError, Run};
use crate::methods::RowLayout;
use crate::plan::Action;

/// Bytes of a lane's pinned memory: what is moved at once.
const PIECE: usize = 8 << 20;

/// Lanes at the most: more do not read faster.
const LANES: usize = 16;

/// Tensors of a batch at the most, where many are computed at once.
const TENSORS: usize = 512;

/// The work of a device, shared by its lanes.
pub(super) struct Lanes<'d, B: Backend> {
    device: &'d Arc<B>,
    share: &'d Share,
    /// Tensors of a batch at the most.
    most: usize,
    state: Mutex<State<B>>,
    changed: Condvar,
    /// Steps that the device left to the CPU.
    left: AtomicUsize,
}

struct State<B: Backend> {
    /// The next of the share's steps.
    next: usize,
    /// Batches under way, those that a lane is making room for included.
    open: usize,
    flights: Vec<Flight<B>>,
    /// Memory of batches that are over.
    spare: Vec<Batch<B>>,
}

/// A batch under way.
struct Flight<B: Backend> {
    number: usize,
    batch: Arc<Batch<B>>,
    /// The share's steps that it has.
    steps: Range<usize>,
    pieces: Vec<Piece>,
    next: usize,
    /// Pieces that are not done.
    left: usize,
    is_output: bool,
}

/// Bytes of an input, or of an output.
#[derive(Clone, Debug)]
struct Piece {
    tensor: usize,
    input: usize,
    bytes: Range<u64>,
}

enum Work<B: Backend> {
    Begin(Range<usize>, Option<Batch<B>>),
    Move(Move<B>),
}

/// A piece on its way between a file and a batch's memory.
struct Move<B: Backend> {
    flight: usize,
    batch: Arc<Batch<B>>,
    /// Of the share's steps, the batch's first one.
    first: usize,
    piece: Piece,
    is_output: bool,
}

/// What a run sees of a device's lanes, whosever device it is.
pub(super) trait Feeding: Sync {
    /// How many lanes there are, for so many threads.
    fn count(&self, threads: usize) -> usize;

    /// What the device did, once all is over.
    fn report(&self) -> DeviceReport;

    /// Works until all steps are written, or the run is stopped.
    fn work(&self, run: &Run<'_>, queue: &Queue<'_>, sink: &Sink<'_>);
}

impl<B: Backend> Feeding for Lanes<'_, B>
where
    MergeError: From<B::Error>,
{
    fn count(&self, threads: usize) -> usize {
        if self.share.steps.is_empty() { 0 } else { threads.clamp(2, LANES) }
    }

    fn report(&self) -> DeviceReport {
        let left = self.left.load(Relaxed);
        let mut on_cpu = self.share.kept.clone();
        if left > 0 {
            on_cpu.insert(B::LEFT, left);
        }
        DeviceReport {
            name: self.device.name().to_owned(),
            tensors: self.share.steps.len() - left,
            on_cpu,
            compiled: self.device.compiled(),
        }
    }

    fn work(&self, run: &Run<'_>, queue: &Queue<'_>, sink: &Sink<'_>) {
        let _stop = queue.stop_on_panic();
        if let Err(error) = self.try_work(run, queue, sink) {
            queue.fail(error);
        }
        self.changed.notify_all();
    }
}

impl<'d, B: Backend> Lanes<'d, B>
where
    MergeError: From<B::Error>,
{
    /// `has_batches` says whether tensors are computed many at once.
    pub(super) fn new(device: &'d Arc<B>, share: &'d Share, has_batches: bool) -> Self {
        let most = if has_batches { TENSORS } else { 1 };
        let state = State { next: 0, open: 0, flights: Vec::new(), spare: Vec::new() };
        let (state, left) = (Mutex::new(state), AtomicUsize::new(0));
        Self { device, share, most, state, changed: Condvar::new(), left }
    }

    fn try_work(&self, run: &Run<'_>, queue: &Queue<'_>, sink: &Sink<'_>) -> Result<(), MergeError> {
        let mut lane = self.device.lane(PIECE)?;
        while let Some(work) = self.claim(|| queue.is_stopped() || run.options.cancel.load(Relaxed)) {
            match work {
                Work::Begin(steps, earlier) => self.begin(steps, earlier)?,
                Work::Move(moved) if moved.is_output => {
                    if !self.write(run, &mut lane, &moved, sink)? {
                        return Ok(()); // The writer has failed and says why.
                    }
                    let flight = moved.flight;
                    drop(moved);
                    if self.is_last(flight) {
                        self.end(flight);
                    }
                }
                Work::Move(moved) => {
                    self.read(run, &mut lane, &moved)?;
                    if self.is_last(moved.flight) {
                        self.compute(run, queue, &moved, sink)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The next piece of work; waits for one. `None` when there is none left or the run is stopped.
    fn claim(&self, is_stopped: impl Fn() -> bool) -> Option<Work<B>> {
        let mut state = self.lock();
        loop {
            if is_stopped() {
                return None;
            }
            if let Some(work) = state.piece(true) {
                return Some(work);
            }
            // The next batch is begun before the pieces of this one run out.
            if state.open < BATCHES && state.next < self.share.steps.len() {
                let steps = self.next_steps(state.next);
                state.next = steps.end;
                state.open += 1;
                let spare = state.spare.pop();
                return Some(Work::Begin(steps, spare));
            }
            if let Some(work) = state.piece(false) {
                return Some(work);
            }
            if state.open == 0 && state.next == self.share.steps.len() {
                self.changed.notify_all();
                return None;
            }
            let timeout = Duration::from_millis(50); // A stop wakes nobody.
            state = self.changed.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The steps of the batch that begins here.
    fn next_steps(&self, start: usize) -> Range<usize> {
        let (mut bytes, most) = (0, self.device.batch_bytes());
        let fits = |(_, _, step): &&(usize, Tensor, u64)| {
            bytes += step;
            bytes <= most
        };
        let count = self.share.steps[start..].iter().take(self.most).take_while(fits).count();
        start..start + count.max(1)
    }

    fn begin(&self, steps: Range<usize>, earlier: Option<Batch<B>>) -> Result<(), MergeError> {
        let tensors: Vec<Tensor> =
            self.share.steps[steps.clone()].iter().map(|(_, tensor, _)| tensor.clone()).collect();
        let mut pieces = Vec::new();
        for (at, tensor) in tensors.iter().enumerate() {
            for (input, element) in tensor.inputs.iter().enumerate() {
                let bytes = tensor.geometry.elements * element.size() as u64;
                pieces.extend(pieces_of(bytes, PIECE as u64).map(|bytes| Piece { tensor: at, input, bytes }));
            }
        }
        let batch = Arc::new(Batch::new(self.device, tensors, earlier)?);
        let (next, left) = (0, pieces.len());
        let number = steps.start;
        self.lock().flights.push(Flight { number, batch, steps, pieces, next, left, is_output: false });
        self.changed.notify_all();
        Ok(())
    }

    fn read(&self, run: &Run<'_>, lane: &mut B::Lane, moved: &Move<B>) -> Result<(), MergeError> {
        let Move { batch, first, piece, .. } = moved;
        let source = run.source(self.share.steps[first + piece.tensor].0, 0);
        let Range { start, end } = piece.bytes;
        let place = (piece.tensor, piece.input);
        batch.upload(lane, place, start, (end - start) as usize, |to| {
            source.copy_bytes(piece.input, piece.bytes.clone(), to);
        })?;
        run.counters.read.fetch_add(end - start, Relaxed);
        Ok(())
    }

    /// Has the batch computed whose inputs are in place by this move, and computes here what the device leaves.
    fn compute(
        &self,
        run: &Run<'_>,
        queue: &Queue<'_>,
        last: &Move<B>,
        sink: &Sink<'_>,
    ) -> Result<(), MergeError> {
        let &Move { flight, ref batch, first, .. } = last;
        let verdicts = batch.compute()?;
        let mut pieces = Vec::new();
        for (at, (tensor, verdict)) in batch.tensors().iter().zip(verdicts).enumerate() {
            if verdict != Verdict::Done {
                self.left.fetch_add(1, Relaxed);
                // The device's passes come to nothing.
                if !on_the_cpu(run, queue, self.share.steps[first + at].0, sink)? {
                    return Ok(());
                }
                continue;
            }
            run.counters.sweeps.fetch_add(passes_of(run, self.share.steps[first + at].0), Relaxed);
            let width = tensor.output.size() as u64;
            let tile = run.plan.work.tile * width;
            let whole_tiles = (PIECE as u64 / tile).max(1) * tile;
            let bytes = tensor.geometry.elements * width;
            let of_tensor = pieces_of(bytes, whole_tiles.min(PIECE as u64));
            pieces.extend(of_tensor.map(|bytes| Piece { tensor: at, input: 0, bytes }));
        }
        let shard = |piece: &Piece| run.plan.shard(self.share.steps[first + piece.tensor].0);
        let pieces = alternating(pieces, shard);
        let mut state = self.lock();
        let is_over = pieces.is_empty();
        if let Some(flight) = state.flights.iter_mut().find(|known| known.number == flight) {
            (flight.left, flight.next, flight.is_output) = (pieces.len(), 0, true);
            flight.pieces = pieces;
        }
        drop(state);
        if is_over {
            self.end(flight);
        }
        self.changed.notify_all();
        Ok(())
    }

    /// Hands a piece of an output to the writer, tile by tile; `false` when the writer is gone.
    fn write(
        &self,
        run: &Run<'_>,
        lane: &mut B::Lane,
        moved: &Move<B>,
        sink: &Sink<'_>,
    ) -> Result<bool, MergeError> {
        let Move { batch, first, piece, .. } = moved;
        let step = self.share.steps[first + piece.tensor].0;
        let Range { start, end } = piece.bytes;
        let tile = run.plan.work.tile as usize * batch.tensors()[piece.tensor].output.size();
        let span = Span { tensor: step, offset: start, length: (end - start) as usize };
        batch.download(lane, piece.tensor, start, span.length, |bytes| sink.write_from(span, bytes, tile))?
    }

    /// Says that a piece is done; whether it was the last one.
    fn is_last(&self, flight: usize) -> bool {
        let mut state = self.lock();
        let Some(flight) = state.flights.iter_mut().find(|known| known.number == flight) else {
            return false;
        };
        flight.left -= 1;
        flight.left == 0
    }

    fn end(&self, flight: usize) {
        let mut state = self.lock();
        if let Some(at) = state.flights.iter().position(|known| known.number == flight) {
            let flight = state.flights.swap_remove(at);
            // A lane that still looks at it keeps its memory from being used again, which costs an allocation.
            state.spare.extend(Arc::into_inner(flight.batch));
            state.open -= 1;
        }
        drop(state);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Backend> State<B> {
    /// A piece of an output or of an input, of the batch that began first.
    fn piece(&mut self, is_output: bool) -> Option<Work<B>> {
        let is_ready =
            |flight: &&mut Flight<B>| flight.is_output == is_output && flight.next < flight.pieces.len();
        let flight = self.flights.iter_mut().filter(is_ready).min_by_key(|flight| flight.number)?;
        let piece = flight.pieces[flight.next].clone();
        flight.next += 1;
        let (batch, first) = (Arc::clone(&flight.batch), flight.steps.start);
        Some(Work::Move(Move { flight: flight.number, batch, first, piece, is_output }))
    }
}

/// Sweeps that a step takes.
fn passes_of(run: &Run<'_>, step: usize) -> u64 {
    match run.plan.steps[step].action {
        Action::Compute { formula, .. } => run.plan.formulas[formula].passes as u64,
        Action::Copy => 1,
        Action::Scales => 0,
    }
}

/// Cuts so many bytes into pieces.
fn pieces_of(bytes: u64, most: u64) -> impl Iterator<Item = Range<u64>> {
    (0..bytes).step_by(most as usize).map(move |start| start..bytes.min(start + most))
}

/// Computes a step on this thread; `false` when the writer is gone.
fn on_the_cpu(run: &Run<'_>, queue: &Queue<'_>, index: usize, sink: &Sink<'_>) -> Result<bool, MergeError> {
    let step = &run.plan.steps[index];
    let Action::Compute { formula, columns, bands } = step.action else {
        unreachable!("a device takes nothing but formulas");
    };
    let source = run.source(index, 0);
    let width = source.output_width();
    let mut scratch = Scratch::default();
    let evaluated =
        run.all_passes(queue.job(step, formula, RowLayout { columns, bands }), |wave, unit| {
            if wave.kind() != WaveKind::Write {
                source.run(wave, unit, &mut scratch, &mut [])?;
                return Ok(true);
            }
            let elements = wave.unit(unit).elements;
            let length = (elements.end - elements.start) as usize * width;
            let Some(mut tile) = sink.buffer(length) else { return Ok(false) };
            source.run(wave, unit, &mut scratch, &mut tile)?;
            sink.write(&[Span { tensor: index, offset: elements.start * width as u64, length }], tile)
        })?;
    Ok(evaluated.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_all_bytes_once() {
        let pieces: Vec<_> = pieces_of(10, 4).collect();
        assert_eq!(pieces, [0..4, 4..8, 8..10]);
        assert_eq!(pieces_of(8, 4).count(), 2);
        assert_eq!(pieces_of(0, 4).count(), 0);
    }
}
