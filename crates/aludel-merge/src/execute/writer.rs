//! Writes encoded tiles from one thread, so that several never contend for one file.
//!
//! In: tiles and where they belong, in any order. Out: the shard files. Buffers are made once and go round: a thread that
//! has no free buffer waits for the writer.

use std::time::{Duration, Instant};

use aludel_checkpoint::{Error, Placement, ShardWriter};
use crossbeam_channel::{Receiver, Sender, bounded};

/// An encoded tile on its way to the file.
struct Tile {
    placement: Placement,
    offset: u64,
    bytes: Vec<u8>,
}

/// The end that writes.
pub(super) struct Writer {
    shards: ShardWriter,
    tiles: Receiver<Tile>,
    free: Sender<Vec<u8>>,
}

/// The end that threads hand their tiles to.
#[derive(Clone)]
pub(super) struct Sink {
    tiles: Sender<Tile>,
    free: Receiver<Vec<u8>>,
}

/// Both ends, with so many buffers between them.
pub(super) fn channel(shards: ShardWriter, buffers: usize) -> (Writer, Sink) {
    let (tiles, incoming) = bounded(buffers);
    let (free, empty) = bounded(buffers);
    for _ in 0..buffers {
        // There is room for all of them, and the other end is in `empty`.
        let _ = free.send(Vec::new());
    }
    (Writer { shards, tiles: incoming, free }, Sink { tiles, free: empty })
}

impl Writer {
    /// Writes until every sink is gone, then checks that nothing is missing; the seconds spent writing.
    pub(super) fn run(mut self) -> Result<f64, Error> {
        let mut busy = Duration::ZERO;
        while let Ok(tile) = self.tiles.recv() {
            let begin = Instant::now();
            self.shards.write_at(&tile.placement, tile.offset, &tile.bytes)?;
            busy += begin.elapsed();
            let _ = self.free.send(tile.bytes); // Fails when all threads have ended.
        }
        self.shards.finish()?;
        Ok(busy.as_secs_f64())
    }
}

impl Sink {
    /// An empty buffer of this length; `None` when the writer is gone.
    pub(super) fn buffer(&self, length: usize) -> Option<Vec<u8>> {
        let mut buffer = self.free.recv().ok()?;
        buffer.resize(length, 0);
        Some(buffer)
    }

    /// Hands a tile over; `false` when the writer is gone.
    pub(super) fn write(&self, placement: Placement, offset: u64, bytes: Vec<u8>) -> bool {
        self.tiles.send(Tile { placement, offset, bytes }).is_ok()
    }
}
