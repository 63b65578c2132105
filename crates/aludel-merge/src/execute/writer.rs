//! Writes encoded tiles from one thread, so that several never contend for one file.
//!
//! In: tiles and where they belong, in any order. Out: the shard files, and a journal of the tensors that are whole. Buffers are made
//! once and go round: a thread that has no free buffer waits for the writer.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use aludel_checkpoint::{Error, Journal, Layout, ShardWriter, WrittenTensor};
use crc32c::{crc32c, crc32c_combine};
use crossbeam_channel::{Receiver, Sender, bounded};

/// An encoded tile on its way to the file.
struct Tile {
    tensor: usize,
    offset: u64,
    bytes: Vec<u8>,
    crc: u32,
}

/// The end that writes.
pub(super) struct Writer<'l> {
    layout: &'l Layout,
    shards: ShardWriter,
    journal: Journal,
    /// Tensors that are whole.
    written: Vec<WrittenTensor>,
    /// What has been written of tensors that are not whole.
    begun: HashMap<usize, Pieces>,
    tiles: Receiver<Tile>,
    free: Sender<Vec<u8>>,
}

/// The end that threads hand their tiles to.
#[derive(Clone)]
pub(super) struct Sink {
    tiles: Sender<Tile>,
    free: Receiver<Vec<u8>>,
}

/// Both ends, with so many buffers between them; `written` has been written before.
pub(super) fn channel(
    layout: &Layout,
    shards: ShardWriter,
    journal: Journal,
    written: Vec<WrittenTensor>,
    buffers: usize,
) -> (Writer<'_>, Sink) {
    let (tiles, incoming) = bounded(buffers);
    let (free, empty) = bounded(buffers);
    for _ in 0..buffers {
        // There is room for all of them, and the other end is in `empty`.
        let _ = free.send(Vec::new());
    }
    let begun = HashMap::new();
    (Writer { layout, shards, journal, written, begun, tiles: incoming, free }, Sink { tiles, free: empty })
}

impl Writer<'_> {
    /// Writes until every sink is gone, then checks that nothing is missing; the seconds spent writing, and all tensors.
    pub(super) fn run(mut self) -> Result<(f64, Vec<WrittenTensor>), Error> {
        let mut busy = Duration::ZERO;
        while let Ok(tile) = self.tiles.recv() {
            let begin = Instant::now();
            self.write(&tile)?;
            busy += begin.elapsed();
            let _ = self.free.send(tile.bytes); // Fails when all threads have ended.
        }
        self.shards.finish()?;
        Ok((busy.as_secs_f64(), self.written))
    }

    fn write(&mut self, tile: &Tile) -> Result<(), Error> {
        let placement = self.layout.placement(tile.tensor);
        self.shards.write_at(&placement, tile.offset, &tile.bytes)?;
        let pieces = self.begun.entry(tile.tensor).or_default();
        pieces.add(tile.offset, tile.bytes.len(), tile.crc);
        if pieces.bytes == placement.bytes {
            let crc = pieces.crc();
            self.begun.remove(&tile.tensor);
            let written = WrittenTensor { tensor: tile.tensor, crc };
            self.journal.add(written)?;
            self.written.push(written);
        }
        Ok(())
    }
}

impl Sink {
    /// An empty buffer of this length; `None` when the writer is gone.
    pub(super) fn buffer(&self, length: usize) -> Option<Vec<u8>> {
        let mut buffer = self.free.recv().ok()?;
        buffer.resize(length, 0);
        Some(buffer)
    }

    /// Hands a tile over, which lies so many bytes from its tensor's start; `false` when the writer is gone.
    pub(super) fn write(&self, tensor: usize, offset: u64, bytes: Vec<u8>) -> bool {
        let crc = crc32c(&bytes);
        self.tiles.send(Tile { tensor, offset, bytes, crc }).is_ok()
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
        self.crcs.values().fold(0, |crc, &(length, next)| crc32c_combine(crc, next, length))
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
