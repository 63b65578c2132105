//! Numbers of rows, and which of them are neighbours.

use std::ops::Range;

/// Rows that are padded to a multiple of the largest power of two that is at most a sixteenth of them, of 8 to 128: few shapes, and little in vain.
pub(crate) fn padded_rows(rows: usize) -> usize {
    rows.next_multiple_of(1 << (rows / 16).clamp(8, 128).ilog2())
}

/// Neighbouring rows as ranges, each with its place among all.
pub(crate) fn runs(rows: &[usize]) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
    rows.chunk_by(|a, b| a + 1 == *b).scan(0, |at, run| {
        let place = *at;
        *at += run.len();
        Some((place, run[0]..run[0] + run.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_rows_become_ranges_with_their_places() {
        let found: Vec<_> = runs(&[1, 2, 3, 7, 9, 10]).collect();
        assert_eq!(found, [(0, 1..4), (3, 7..8), (4, 9..11)]);
        assert_eq!(runs(&[]).count(), 0);
    }

    #[test]
    fn rows_are_padded_to_few_numbers() {
        let padded = [0, 1, 40, 129, 1000, 1023, 2041, 4097].map(padded_rows);
        assert_eq!(padded, [0, 8, 40, 136, 1024, 1024, 2048, 4224]);
        for rows in 1..20_000 {
            let padded = padded_rows(rows);
            assert!(padded >= rows && padded - rows < (rows / 16).max(8), "{rows} rows become {padded}");
            assert_eq!(padded_rows(padded), padded);
        }
    }
}
