//! Takes the tiles of an output into memory, where they belong.
//!
//! In: a buffer for each tensor, and tiles in any order, from any thread. Out: the tensors' bytes. Threads that put different tiles never wait
//! for each other.

use std::sync::{Mutex, PoisonError};

use super::writer::Span;

/// The tensors of an output, in pieces of a tile each.
#[derive(Debug)]
pub(super) struct Memory<'m> {
    tensors: Vec<Tiles<'m>>,
}

#[derive(Debug)]
struct Tiles<'m> {
    /// Bytes of a tile.
    tile: usize,
    tiles: Vec<Mutex<&'m mut [u8]>>,
}

impl<'m> Memory<'m> {
    /// Of tensors, each with the bytes of its tile.
    pub(super) fn new(tensors: impl Iterator<Item = (&'m mut [u8], usize)>) -> Self {
        let tiles = |(bytes, tile): (&'m mut [u8], usize)| {
            let tile = tile.max(1);
            Tiles { tile, tiles: bytes.chunks_mut(tile).map(Mutex::new).collect() }
        };
        Self { tensors: tensors.map(tiles).collect() }
    }

    /// Puts what lies one after the other in `bytes` into its tensors.
    pub(super) fn put(&self, spans: &[Span], bytes: &[u8]) {
        let mut rest = bytes;
        for span in spans {
            let Tiles { tile, tiles } = &self.tensors[span.tensor];
            let (first, at) = (span.offset as usize / tile, span.offset as usize % tile);
            let (mut own, after) = rest.split_at(span.length);
            rest = after;
            for (number, to) in tiles[first..].iter().enumerate() {
                if own.is_empty() {
                    break;
                }
                let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
                let to = &mut to[if number == 0 { at } else { 0 }..];
                let (here, later) = own.split_at(own.len().min(to.len()));
                to[..here.len()].copy_from_slice(here);
                own = later;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_lie_where_they_belong_however_they_are_cut() {
        let (mut a, mut b) = (vec![0; 10], vec![0; 3]);
        let memory = Memory::new([(&mut a[..], 4), (&mut b[..], 4)].into_iter());
        let span = |tensor, offset, length| Span { tensor, offset, length };
        memory.put(&[span(0, 8, 2), span(1, 0, 3)], &[8, 9, 20, 21, 22]);
        memory.put(&[span(0, 0, 8)], &[0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!((a, b), ((0..10).collect(), vec![20, 21, 22]));
    }
}
