//! Writes encoded tiles from one thread, so that several never contend for one file.
//!
//! In: tiles and where they belong, in any order. Out: the shard files, and a journal of the tensors that are whole. Buffers are made
//! once and go round: a thread that has no free buffer waits for the writer.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use aludel_checkpoint::{Journal, ShardWriter, WrittenTensor, element_bytes};
use aludel_delta::{CHUNK, DeltaWriter};
use crc32c::{crc32c, crc32c_combine};
use crossbeam_channel::{Receiver, Sender, bounded};

use super::MergeError;
use super::delta::{Chunk, Coder};
use crate::plan::Plan;

/// An encoded tile on its way to the file.
struct Tile {
    tensor: usize,
    offset: u64,
    bytes: Vec<u8>,
    content: Content,
}

/// What is written of a tile.
enum Content {
    /// Its bytes, which have this checksum.
    Bytes(u32),
    /// What it differs by from the base.
    Delta(Vec<Chunk>),
}

/// Where tiles are written to.
pub(super) enum Output {
    /// Files of weights, and the journal of their tensors.
    Shards(ShardWriter, Journal),
    Delta(DeltaWriter),
}

/// The end that writes.
pub(super) struct Writer<'p> {
    plan: &'p Plan,
    output: Output,
    done: Done,
    /// What has been written of tensors that are not whole.
    begun: HashMap<usize, Pieces>,
    tiles: Receiver<Tile>,
    free: Sender<Vec<u8>>,
}

/// What was written.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// Seconds spent writing.
    pub seconds: f64,
    /// Tensors of files of weights.
    pub tensors: Vec<WrittenTensor>,
    /// Bytes of a delta.
    pub delta_bytes: Option<u64>,
}

/// The end that threads hand their tiles to.
#[derive(Clone)]
pub(super) struct Sink<'a> {
    tiles: Sender<Tile>,
    free: Receiver<Vec<u8>>,
    coder: Option<Coder<'a>>,
}

/// Both ends, with so many buffers between them; `written` has been written before, and a delta is coded by `coder`.
pub(super) fn channel<'a>(
    plan: &'a Plan,
    output: Output,
    written: Vec<WrittenTensor>,
    coder: Option<Coder<'a>>,
) -> (Writer<'a>, Sink<'a>) {
    let buffers = plan.work.buffers;
    let (tiles, incoming) = bounded(buffers);
    let (free, empty) = bounded(buffers);
    for _ in 0..buffers {
        // There is room for all of them, and the other end is in `empty`.
        let _ = free.send(Vec::new());
    }
    let done = Done { tensors: written, ..Done::default() };
    let writer = Writer { plan, output, done, begun: HashMap::new(), tiles: incoming, free };
    (writer, Sink { tiles, free: empty, coder })
}

impl Writer<'_> {
    /// Writes until every sink is gone, then checks that nothing is missing.
    pub(super) fn run(mut self) -> Result<Done, MergeError> {
        let mut busy = Duration::ZERO;
        while let Ok(tile) = self.tiles.recv() {
            let begin = Instant::now();
            self.write(&tile)?;
            busy += begin.elapsed();
            let _ = self.free.send(tile.bytes); // Fails when all threads have ended.
        }
        self.done.seconds = busy.as_secs_f64();
        match self.output {
            Output::Shards(shards, _) => shards.finish()?,
            Output::Delta(delta) => {
                let base = self.plan.delta.as_ref().map_or("", |delta| &delta.base);
                let crcs: Vec<Option<u32>> =
                    (0..self.plan.steps.len()).map(|step| Some(self.begun.get(&step)?.crc())).collect();
                self.done.delta_bytes = Some(delta.finish(base, &crcs)?.data_bytes);
            }
        }
        Ok(self.done)
    }

    fn write(&mut self, tile: &Tile) -> Result<(), MergeError> {
        match (&mut self.output, &tile.content) {
            (Output::Shards(shards, journal), &Content::Bytes(crc)) => {
                let placement = self.plan.layout.placement(tile.tensor);
                shards.write_at(&placement, tile.offset, &tile.bytes)?;
                let pieces = self.begun.entry(tile.tensor).or_default();
                pieces.add(tile.offset, tile.bytes.len(), crc);
                if pieces.bytes == placement.bytes {
                    let written = WrittenTensor { tensor: tile.tensor, crc: pieces.crc() };
                    self.begun.remove(&tile.tensor);
                    journal.add(written)?;
                    self.done.tensors.push(written);
                }
            }
            (Output::Delta(delta), Content::Delta(chunks)) => {
                let width = element_bytes(self.plan.steps[tile.tensor].dtype);
                let first = tile.offset / width / CHUNK;
                for (number, chunk) in (first..).zip(chunks) {
                    delta.add(tile.tensor, number, &chunk.coded)?;
                    if let Some((crc, length)) = chunk.base {
                        self.begun.entry(tile.tensor).or_default().add(number, length, crc);
                    }
                }
            }
            _ => unreachable!("a sink codes exactly for a delta"),
        }
        Ok(())
    }
}

impl Sink<'_> {
    /// An empty buffer of this length; `None` when the writer is gone.
    pub(super) fn buffer(&self, length: usize) -> Option<Vec<u8>> {
        let mut buffer = self.free.recv().ok()?;
        buffer.resize(length, 0);
        Some(buffer)
    }

    /// Hands a tile over, which lies so many bytes from its tensor's start; `false` when the writer is gone.
    pub(super) fn write(&self, tensor: usize, offset: u64, bytes: Vec<u8>) -> bool {
        let content = match &self.coder {
            None => Content::Bytes(crc32c(&bytes)),
            Some(coder) => Content::Delta(coder.code(tensor, offset, &bytes)),
        };
        self.tiles.send(Tile { tensor, offset, bytes, content }).is_ok()
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
