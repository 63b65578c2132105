//! Names the places in files that some elements lie at, so that a whole group of small tensors is one piece of a file.
//!
//! In: ranges of stored tensors. Out: ranges of files, neighbours joined, and what is asked of the system about them.

use std::ops::Range;

use aludel_checkpoint::{TensorEntry, WeightMap};

/// Ranges of the sources' files.
#[derive(Debug, Default)]
pub(super) struct Windows {
    places: Vec<Place>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    source: usize,
    file: usize,
    start: u64,
    end: u64,
}

impl Windows {
    /// Adds the bytes `range` of a tensor of a source.
    pub(super) fn add(&mut self, source: usize, entry: &TensorEntry, range: Range<u64>) {
        if !range.is_empty() {
            let (start, end) = (entry.offset + range.start, entry.offset + range.end);
            self.places.push(Place { source, file: entry.file, start, end });
        }
    }

    /// In the order of the files, with what lies between close ones.
    pub(super) fn joined(mut self) -> Self {
        self.places.sort_unstable();
        self.places.dedup_by(|next, place| {
            let is_close = (next.source, next.file) == (place.source, place.file)
                && next.start <= place.end.saturating_add(CLOSE);
            if is_close {
                place.end = place.end.max(next.end);
            }
            is_close
        });
        self
    }

    /// Asks for all of it, without waiting.
    pub(super) fn request(&self, maps: &[WeightMap]) {
        self.each(|place, range| maps[place.source].request(place.file, range));
    }

    /// Waits for all of it, and maps it.
    pub(super) fn load(&self, maps: &[WeightMap]) {
        self.each(|place, range| maps[place.source].load(place.file, range));
    }

    /// Both.
    pub(super) fn fetch(&self, maps: &[WeightMap]) {
        self.request(maps);
        self.load(maps);
    }

    /// Gives the pages of all of it back.
    pub(super) fn release(&self, maps: &[WeightMap]) {
        self.each(|place, range| maps[place.source].release_range(place.file, range));
    }

    /// Drops all of it from the page cache.
    pub(super) fn leave_cache(&self, maps: &[WeightMap]) {
        self.each(|place, range| maps[place.source].leave_cache(place.file, range));
    }

    fn each(&self, act: impl Fn(&Place, &Range<u64>)) {
        self.places.iter().for_each(|place| act(place, &(place.start..place.end)));
    }
}

/// Bytes between two ranges that are read along rather than asked for apart: what a disk reads in the time of a request.
const CLOSE: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use aludel_checkpoint::Dtype;

    use super::*;

    #[test]
    fn neighbours_are_one_window() {
        let entry =
            |file, offset| TensorEntry { dtype: Dtype::U8, shape: vec![100], file, offset, bytes: 100 };
        let mut windows = Windows::default();
        for (source, file, offset) in
            [(0, 0, 500), (0, 0, 300), (1, 0, 400), (0, 1, 400), (0, 0, 400), (0, 0, 600 + CLOSE + 1)]
        {
            windows.add(source, &entry(file, offset), 0..100);
        }
        windows.add(0, &entry(0, 0), 7..7);
        let place = |source, file, start, end| Place { source, file, start, end };
        let expected = [
            place(0, 0, 300, 600),
            place(0, 0, 601 + CLOSE, 701 + CLOSE),
            place(0, 1, 400, 500),
            place(1, 0, 400, 500),
        ];
        assert_eq!(windows.joined().places, expected);
    }
}
