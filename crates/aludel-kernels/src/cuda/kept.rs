//! Keeps small memory that was given back, for whoever asks for as much next.
//!
//! Of all that fits, the lowest address is given out: who asks for the same lengths in the same order, and gives them back, has the same addresses every
//! time. It holds addresses and asks no device for anything.

use std::collections::{BTreeSet, HashMap};

/// Addresses of free memory, by its length.
#[derive(Debug, Default)]
pub(super) struct Kept {
    free: HashMap<usize, BTreeSet<u64>>,
}

/// Memory of so many bytes is not kept: a device gives it to others meanwhile.
const LARGE: usize = crate::nn::device::LARGE_BUFFER;

/// Lengths below are rounded up to powers of two: tables of a few numbers more or less have the same place.
const SHORT: usize = 64 << 10;

const ALIGNMENT: usize = 512;

impl Kept {
    /// How many bytes are taken for so many.
    pub(super) fn room(bytes: usize) -> usize {
        match bytes {
            ..SHORT => bytes.max(ALIGNMENT).next_power_of_two(),
            SHORT..LARGE => bytes.next_multiple_of(ALIGNMENT),
            _ => bytes,
        }
    }

    /// Takes memory of [`Kept::room`] bytes out.
    pub(super) fn take(&mut self, bytes: usize) -> Option<u64> {
        self.free.get_mut(&Self::room(bytes))?.pop_first()
    }

    /// Keeps memory that was taken for so many bytes, unless it is large.
    pub(super) fn keep(&mut self, address: u64, bytes: usize) -> bool {
        let is_kept = bytes < LARGE;
        if is_kept {
            self.free.entry(Self::room(bytes)).or_default().insert(address);
        }
        is_kept
    }

    /// Takes everything out.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = u64> {
        self.free.drain().flat_map(|(_, addresses)| addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_that_fits_is_given_out() {
        let mut kept = Kept::default();
        for (address, bytes) in [(30, 700), (10, 1000), (20, 100_000)] {
            assert!(kept.keep(address, bytes));
        }
        assert!(!kept.keep(40, LARGE));
        assert_eq!([kept.take(513), kept.take(1024), kept.take(600)], [Some(10), Some(30), None]);
        assert_eq!([kept.take(99_500), kept.take(99_900)], [None, Some(20)]);
        assert_eq!(kept.drain().count(), 0);
    }

    #[test]
    fn what_is_kept_for_so_many_bytes_has_room_for_them() {
        for bytes in (0..3 * SHORT).chain([LARGE - 1, LARGE, LARGE + 1]) {
            let room = Kept::room(bytes);
            assert!(room >= bytes && (room < 2 * bytes || room == ALIGNMENT), "{room} for {bytes}");
        }
    }
}
