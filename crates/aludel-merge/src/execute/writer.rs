//! Writes encoded tiles at their places, from threads of its own or from those that computed them.
//!
//! In: tiles and where they belong, in any order. Out: the shard files, and a journal of the tensors that are whole. Buffers are made
//! once and go round: a thread that has no free buffer waits for a writer.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use aludel_checkpoint::{Journal, ShardWriter, WrittenTensor, element_bytes};
use aludel_delta::{CHUNK, DeltaWriter, Values};
use crc32c::{crc32c, crc32c_combine};
use crossbeam_channel::{Receiver, Sender, bounded};

use super::MergeError;
use super::delta::{Chunk, Coder};
use super::memory::Memory;
use crate::plan::Plan;

/// An encoded tile on its way to the file: pieces that lie one after the other there.
struct Tile {
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
}

struct Piece {
    span: Span,
    content: Content,
}

/// Bytes of a tensor, so many from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub tensor: usize,
    pub offset: u64,
    pub length: usize,
}

/// What is written of a piece.
enum Content {
    /// Its bytes, which have this checksum.
    Bytes(u32),
    /// What it differs by from the base.
    Delta(Vec<Chunk>),
}

/// Where tiles are written to.
pub(super) enum Output {
    /// Files of weights, and the journal of their tensors.
    Shards(ShardWriter, Mutex<Journal>),
    /// What differs from the base, and the journal of its tensors.
    Delta(Mutex<(DeltaWriter, Journal)>),
}

/// Writes tiles; shared by all threads that do.
pub(super) struct Writer<'p> {
    plan: &'p Plan,
    output: Output,
    ledger: Mutex<Ledger>,
    nanoseconds: AtomicU64,
}

/// What has been written.
#[derive(Default)]
struct Ledger {
    tensors: Vec<WrittenTensor>,
    /// Of tensors that are not whole.
    begun: HashMap<usize, Pieces>,
}

/// What was written.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// Seconds spent writing, over all writers.
    pub seconds: f64,
    /// Tensors that are whole.
    pub tensors: Vec<WrittenTensor>,
    /// Bytes of a delta.
    pub delta_bytes: Option<u64>,
}

/// The end of a thread that writes.
#[derive(Clone)]
pub(super) struct Outlet {
    tiles: Receiver<Tile>,
    free: Sender<Vec<u8>>,
}

/// The end that threads hand their tiles to.
#[derive(Clone)]
pub(super) struct Sink<'a> {
    coder: Option<Coder<'a>>,
    tiles: Sender<Tile>,
    free: Receiver<Vec<u8>>,
    /// Who writes at once, where no thread does nothing but write.
    direct: Option<Direct<'a>>,
}

/// Writes in the thread that hands a tile over, which gives the buffer back at once.
#[derive(Clone)]
struct Direct<'a> {
    to: To<'a>,
    free: Sender<Vec<u8>>,
}

#[derive(Clone)]
enum To<'a> {
    Files(&'a Writer<'a>),
    Memory(&'a Memory<'a>),
}

impl<'p> Writer<'p> {
    /// For a plan of whose tensors these are written already.
    pub(super) fn new(plan: &'p Plan, output: Output, written: Vec<WrittenTensor>) -> Self {
        let ledger = Mutex::new(Ledger { tensors: written, begun: HashMap::new() });
        Self { plan, output, ledger, nanoseconds: AtomicU64::new(0) }
    }

    /// Both ends of the way to it, with so many buffers as the plan has between them; a delta is coded by `coder`. Without writing threads
    /// those that compute write themselves.
    pub(super) fn ends<'a>(&'a self, coder: Option<Coder<'a>>, has_threads: bool) -> (Outlet, Sink<'a>) {
        let buffers = self.plan.work.buffers;
        let (tiles, incoming) = bounded(buffers);
        let (free, empty) = buffers_in_turn(buffers);
        let direct = (!has_threads).then(|| Direct { to: To::Files(self), free: free.clone() });
        (Outlet { tiles: incoming, free }, Sink { coder, tiles, free: empty, direct })
    }

    /// A sink for a device's lanes, which write themselves where nobody waits for who else writes.
    pub(super) fn sink_of_lanes<'a>(&'a self, outlet: &Outlet, sink: &Sink<'a>) -> Sink<'a> {
        let is_direct = matches!(&self.output, Output::Shards(shards, _) if shards.writes_side_by_side());
        let direct = is_direct.then(|| Direct { to: To::Files(self), free: outlet.free.clone() });
        Sink { direct: direct.or_else(|| sink.direct.clone()), ..sink.clone() }
    }

    /// Writes until every sink is gone. After a failure, which `stop` is called for, buffers still go round, so that nobody waits for one
    /// forever.
    pub(super) fn run(&self, outlet: &Outlet, stop: impl Fn()) -> Result<(), MergeError> {
        let mut result = Ok(());
        for tile in &outlet.tiles {
            if result.is_ok() {
                result = self.write(&tile.bytes, &tile.pieces);
                if result.is_err() {
                    stop();
                }
            }
            let _ = outlet.free.send(tile.bytes); // Fails when all threads have ended.
        }
        result
    }

    /// Checks that nothing is missing.
    pub(super) fn finish(self) -> Result<Done, MergeError> {
        let Ledger { tensors, .. } = self.ledger.into_inner().unwrap_or_else(PoisonError::into_inner);
        let seconds = self.nanoseconds.into_inner() as f64 / 1e9;
        let mut done = Done { seconds, tensors, delta_bytes: None };
        match self.output {
            Output::Shards(shards, _) => shards.finish()?,
            Output::Delta(delta) => {
                let (base, values) =
                    self.plan.delta.as_ref().map_or(("", Values::Exact), |delta| (&delta.base, delta.values));
                let mut crcs = vec![None; self.plan.steps.len()];
                done.tensors.iter().for_each(|written| crcs[written.tensor] = written.base);
                let (delta, _) = delta.into_inner().unwrap_or_else(PoisonError::into_inner);
                done.delta_bytes = Some(delta.finish(base, values, &crcs)?.data_bytes);
            }
        }
        Ok(done)
    }

    fn write(&self, bytes: &[u8], pieces: &[Piece]) -> Result<(), MergeError> {
        let begin = Instant::now();
        match &self.output {
            Output::Shards(shards, journal) => {
                if let Some(Piece { span, .. }) = pieces.first() {
                    let placement = self.plan.layout.placement(span.tensor);
                    shards.write_file(placement.shard, placement.offset + span.offset, bytes)?;
                }
                let whole = self.note(pieces);
                if !whole.is_empty() {
                    journal.lock().unwrap_or_else(PoisonError::into_inner).add(&whole)?;
                }
            }
            Output::Delta(delta) => {
                let mut delta = delta.lock().unwrap_or_else(PoisonError::into_inner);
                let (delta, journal) = &mut *delta;
                for piece in pieces {
                    if let Some(whole) = self.add_chunks(delta, piece)? {
                        journal.add(&[whole])?;
                    }
                }
            }
        }
        self.nanoseconds.fetch_add(begin.elapsed().as_nanos() as u64, Relaxed);
        Ok(())
    }

    /// Takes note of pieces that are written; the tensors that are whole by them.
    fn note(&self, pieces: &[Piece]) -> Vec<WrittenTensor> {
        let mut ledger = self.ledger();
        let mut whole = Vec::new();
        for Piece { span: Span { tensor, offset, length }, content } in pieces {
            let &Content::Bytes(crc) = content else { unreachable!("a sink codes exactly for a delta") };
            let all = self.plan.layout.placement(*tensor).bytes;
            let crc = if *length as u64 == all {
                crc
            } else {
                let begun = ledger.begun.entry(*tensor).or_default();
                begun.add(*offset, *length, crc);
                if begun.bytes < all {
                    continue;
                }
                let crc = begun.crc();
                ledger.begun.remove(tensor);
                crc
            };
            whole.push(WrittenTensor { tensor: *tensor, crc, base: None });
        }
        ledger.tensors.extend(&whole);
        whole
    }

    /// Adds the chunks of a piece to a delta; the tensor, where it is whole by them.
    fn add_chunks(
        &self,
        delta: &mut DeltaWriter,
        piece: &Piece,
    ) -> Result<Option<WrittenTensor>, MergeError> {
        let Piece { span, content: Content::Delta(chunks) } = piece else {
            unreachable!("a sink codes exactly for a delta")
        };
        let width = element_bytes(self.plan.steps[span.tensor].dtype);
        let first = span.offset / width / CHUNK;
        let mut whole = None;
        for (number, chunk) in (first..).zip(chunks) {
            if let Some((crc, length)) = chunk.base {
                self.ledger().begun.entry(span.tensor).or_default().add(number, length, crc);
            }
            if let Some(crc) = delta.add(span.tensor, number, &chunk.coded)? {
                let mut ledger = self.ledger();
                let base = ledger.begun.remove(&span.tensor).map(|pieces| pieces.crc());
                let written = WrittenTensor { tensor: span.tensor, crc, base };
                ledger.tensors.push(written);
                whole = Some(written);
            }
        }
        Ok(whole)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// So many buffers, and the two ends of the way that they go round.
fn buffers_in_turn(count: usize) -> (Sender<Vec<u8>>, Receiver<Vec<u8>>) {
    let (free, empty) = bounded(count);
    for _ in 0..count {
        // There is room for all of them, and the other end is in `empty`.
        let _ = free.send(Vec::new());
    }
    (free, empty)
}

impl<'a> Sink<'a> {
    /// One that puts tiles into memory, by so many buffers.
    pub(super) fn into_memory(memory: &'a Memory<'a>, buffers: usize) -> Self {
        let (tiles, _) = bounded(0);
        let (free, empty) = buffers_in_turn(buffers);
        Self { coder: None, tiles, free: empty, direct: Some(Direct { to: To::Memory(memory), free }) }
    }

    /// An empty buffer of this length; `None` when the writers are gone.
    pub(super) fn buffer(&self, length: usize) -> Option<Vec<u8>> {
        let mut buffer = self.free.recv().ok()?;
        buffer.resize(length, 0);
        Some(buffer)
    }

    /// Hands over what lies one after the other in `bytes` and in the output; `false` when the writers are gone.
    pub(super) fn write(&self, spans: &[Span], bytes: Vec<u8>) -> Result<bool, MergeError> {
        if let Some(Direct { to: To::Memory(memory), free }) = &self.direct {
            memory.put(spans, &bytes);
            return Ok(free.send(bytes).is_ok());
        }
        let pieces = self.pieces(spans, &bytes);
        let Some(Direct { to: To::Files(writer), free }) = &self.direct else {
            return Ok(self.tiles.send(Tile { bytes, pieces }).is_ok());
        };
        writer.write(&bytes, &pieces)?;
        Ok(free.send(bytes).is_ok())
    }

    /// As [`Sink::write`], of bytes that stay their owner's: copied, tile by tile, where another thread writes them.
    pub(super) fn write_from(&self, span: Span, bytes: &[u8], tile: usize) -> Result<bool, MergeError> {
        if let Some(Direct { to: To::Files(writer), .. }) = &self.direct {
            writer.write(bytes, &self.pieces(&[span], bytes))?;
            return Ok(true);
        }
        for (at, bytes) in (span.offset..).step_by(tile).zip(bytes.chunks(tile)) {
            let Some(mut buffer) = self.buffer(bytes.len()) else { return Ok(false) };
            buffer.copy_from_slice(bytes);
            if !self.write(&[Span { offset: at, length: bytes.len(), ..span }], buffer)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What is written of bytes that lie one after the other.
    fn pieces(&self, spans: &[Span], bytes: &[u8]) -> Vec<Piece> {
        let mut at = 0;
        let piece = |&span: &Span| {
            let own = &bytes[at..at + span.length];
            at += span.length;
            let content = match &self.coder {
                None => Content::Bytes(crc32c(own)),
                Some(coder) => Content::Delta(coder.code(span.tensor, span.offset, own)),
            };
            Piece { span, content }
        };
        spans.iter().map(piece).collect()
    }
}

/// The checksums of a tensor's tiles, by their offsets.
#[derive(Default)]
struct Pieces {
    bytes: u64,
    crcs: BTreeMap<u64, (usize, u32)>,
}

impl Pieces {
    fn add(&mut self, offset: u64, length: usize, crc: u32) {
        self.bytes += length as u64;
        self.crcs.insert(offset, (length, crc));
    }

    /// The checksum of all of them, one after the other.
    fn crc(&self) -> u32 {
        let mut pieces = self.crcs.values();
        // Joining costs as much for short pieces as for long ones, and most tensors are one piece.
        let first = pieces.next().map_or(0, |&(_, crc)| crc);
        pieces.fold(first, |crc, &(length, next)| crc32c_combine(crc, next, length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_of_tiles_join_to_that_of_the_tensor() {
        let bytes: Vec<u8> = (0..1000u32).map(|at| (at * at / 7) as u8).collect();
        let mut pieces = Pieces::default();
        for range in [300..650, 0..300, 999..1000, 650..999] {
            pieces.add(range.start as u64, range.len(), crc32c(&bytes[range]));
        }
        assert_eq!((pieces.bytes, pieces.crc()), (1000, crc32c(&bytes)));
    }
}
