//! Shares small memory out of chunks: the lowest address that fits.
//!
//! What is given back joins its free neighbours, so that lengths of all kinds have the same memory by turns; and who asks for the same lengths in the same
//! order, and gives them back, has the same addresses every time, whoever came in between. It holds addresses, and asks no device for anything.

use std::collections::BTreeMap;

/// Addresses of chunks, and what of them is free.
#[derive(Debug, Default)]
pub(super) struct Arena {
    /// Their lengths, by where they begin.
    chunks: BTreeMap<u64, usize>,
    /// Lengths of what is free, by where it begins; of one chunk each.
    free: BTreeMap<u64, usize>,
}

/// Memory of so many bytes is the device's own business.
const LARGE: usize = crate::nn::device::LARGE_BUFFER;

/// What arrays begin at multiples of.
const ALIGNMENT: usize = 512;

/// A chunk is no smaller than this, nor than a part of all chunks, so that there are few, and little lies idle.
const LEAST: usize = 1 << 20;
const PART: usize = 32;

impl Arena {
    /// Whether memory of so many bytes is shared out here.
    pub(super) const fn has(bytes: usize) -> bool {
        bytes < LARGE
    }

    /// How many bytes a block of so many takes.
    pub(super) fn room(bytes: usize) -> usize {
        bytes.max(1).next_multiple_of(ALIGNMENT)
    }

    /// How long the next chunk is to be, where there is no room for so many bytes.
    pub(super) fn next_chunk(&self, bytes: usize) -> usize {
        let all: usize = self.chunks.values().sum();
        Self::room(bytes).max(LEAST).max((all / PART).next_multiple_of(ALIGNMENT))
    }

    /// Adds a chunk that nobody uses.
    pub(super) fn add(&mut self, start: u64, bytes: usize) {
        self.chunks.insert(start, bytes);
        self.free.insert(start, bytes);
    }

    /// Takes [`Arena::room`] for so many bytes.
    pub(super) fn take(&mut self, bytes: usize) -> Option<u64> {
        let room = Self::room(bytes);
        let (start, len) =
            self.free.iter().find(|(_, len)| **len >= room).map(|(start, len)| (*start, *len))?;
        self.free.remove(&start);
        if len > room {
            self.free.insert(start + room as u64, len - room);
        }
        Some(start)
    }

    /// Gives back what was taken for so many bytes.
    pub(super) fn give(&mut self, start: u64, bytes: usize) {
        let (mut start, mut len) = (start, Self::room(bytes));
        // A chunk that begins here is another one, though it follows.
        if let Some(next) = self.free.get(&(start + len as u64)).copied()
            && !self.chunks.contains_key(&(start + len as u64))
        {
            self.free.remove(&(start + len as u64));
            len += next;
        }
        if let Some((before, before_len)) = self.free.range(..start).next_back().map(|(at, len)| (*at, *len))
            && before + before_len as u64 == start
            && !self.chunks.contains_key(&start)
        {
            self.free.remove(&before);
            (start, len) = (before, len + before_len);
        }
        self.free.insert(start, len);
    }

    /// Takes the chunks out that nobody uses.
    pub(super) fn unused(&mut self) -> Vec<u64> {
        let is_unused = |(start, len): &(&u64, &usize)| self.free.get(start) == Some(len);
        let unused: Vec<u64> = self.chunks.iter().filter(is_unused).map(|(start, _)| *start).collect();
        for start in &unused {
            self.chunks.remove(start);
            self.free.remove(start);
        }
        unused
    }

    /// Takes all chunks out.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = u64> {
        self.free.clear();
        std::mem::take(&mut self.chunks).into_keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: u64 = 1024;

    fn arena(chunks: &[(u64, usize)]) -> Arena {
        let mut arena = Arena::default();
        chunks.iter().for_each(|&(start, bytes)| arena.add(start, bytes));
        arena
    }

    #[test]
    fn what_is_given_back_joins_its_neighbours_but_no_other_chunk() {
        let mut arena = arena(&[(4 * K, 4096), (8 * K, 4096)]);
        let taken = [1000, 1024, 1025, 512].map(|bytes| arena.take(bytes).unwrap());
        assert_eq!(taken, [4 * K, 5 * K, 6 * K, 7 * K + 512]);
        assert_eq!((arena.take(4096), arena.take(1)), (Some(8 * K), None));
        for (start, bytes) in [(5 * K, 1024), (7 * K + 512, 512), (6 * K, 1025), (8 * K, 4096), (4 * K, 1000)]
        {
            arena.give(start, bytes);
        }
        assert_eq!(arena.free, BTreeMap::from([(4 * K, 4096), (8 * K, 4096)]));
        assert_eq!(arena.take(4000), Some(4 * K));
        assert_eq!(arena.unused(), [8 * K]);
        assert_eq!((arena.drain().collect::<Vec<_>>(), arena.take(1)), (vec![4 * K], None));
    }

    #[test]
    fn the_same_lengths_have_the_same_addresses_whatever_came_in_between() {
        let mut arena = arena(&[(0, 1 << 20), (1 << 20, 1 << 16)]);
        let mut round = |lengths: &[usize]| -> Vec<u64> {
            let taken: Vec<u64> = lengths.iter().map(|&bytes| arena.take(bytes).unwrap()).collect();
            // In an order of their own.
            let mut order: Vec<usize> = (0..lengths.len()).collect();
            order.sort_by_key(|at| at * 7 % lengths.len());
            order.iter().for_each(|&at| arena.give(taken[at], lengths[at]));
            taken
        };
        let first = round(&[700, 90_000, 12, 300_000, 5000]);
        assert_eq!(round(&[800_000, 3, 40_000]).len(), 3);
        assert_eq!(round(&[700, 90_000, 12, 300_000, 5000]), first);
    }

    #[test]
    fn chunks_grow_with_all_that_there_is() {
        assert_eq!(Arena::default().next_chunk(0), LEAST);
        assert_eq!(Arena::default().next_chunk(3 * LEAST), 3 * LEAST);
        assert_eq!(arena(&[(0, 64 << 20)]).next_chunk(1), 2 << 20);
    }
}
