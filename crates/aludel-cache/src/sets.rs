//! Codes which columns a row has, by what the rows before it had.
//!
//! In: columns in ascending order. Out: bits. A token that was among a row's likeliest is often among the next row's: every known
//! column has a score, and whether it is there again is one bit with a probability for scores of its size. Columns that are not
//! known are counted past the known ones and coded by the distance from one to the next, in contexts for the magnitude of where
//! they are: vocabularies begin with frequent tokens. Nothing is carried from one record to another.

use aludel_coder::{Bit, Decoder, Encoder, Number};

/// What is known of the rows before.
#[derive(Debug)]
pub(crate) struct Sets {
    columns: u32,
    /// Ascending columns with their scores.
    known: Vec<(u32, u16)>,
    again: [Bit; 64],
    /// By the magnitude of the place before.
    gaps: [Number; 32],
}

/// What a column's score grows by when a row has it; an eighth of every score is lost from row to row.
const GAIN: u16 = 1 << 13;

/// Below it a column is forgotten.
const FORGOTTEN: u16 = 128;

impl Sets {
    pub(crate) fn new(columns: u32) -> Self {
        Self { columns, known: Vec::new(), again: [Bit::EVEN; 64], gaps: [const { Number::NEW }; 32] }
    }

    /// Codes ascending columns, whose number is known to the decoder.
    pub(crate) fn encode(&mut self, encoder: &mut Encoder, ids: &[u32]) {
        let mut wanted = ids.iter().peekable();
        let mut fresh = Vec::new();
        for (before, &(id, score)) in self.known.iter().enumerate() {
            while let Some(&&other) = wanted.peek().filter(|other| ***other < id) {
                fresh.push(other - before as u32);
                wanted.next();
            }
            let is_there = wanted.next_if(|other| **other == id).is_some();
            encoder.bit(&mut self.again[context(score)], is_there);
        }
        fresh.extend(wanted.map(|id| id - self.known.len() as u32));
        let mut next = 0;
        for place in fresh {
            encoder.number(&mut self.gaps[(next + 1u32).ilog2() as usize], place - next);
            next = place + 1;
        }
        self.learn(ids);
    }

    /// Reads so many columns into `ids`; `None` where the bits are of no such row.
    pub(crate) fn decode(
        &mut self,
        decoder: &mut Decoder<'_>,
        count: usize,
        ids: &mut Vec<u32>,
    ) -> Option<()> {
        let start = ids.len();
        for &(id, score) in &self.known {
            if decoder.bit(&mut self.again[context(score)]) {
                ids.push(id);
            }
        }
        let fresh = count.checked_sub(ids.len() - start)?;
        let (mut next, mut passed) = (0u32, 0);
        for _ in 0..fresh {
            let gap = decoder.number(&mut self.gaps[(next + 1).ilog2() as usize]);
            let place = next.checked_add(gap).filter(|place| *place < self.columns)?;
            while self.known.get(passed).is_some_and(|(known, _)| *known <= place + passed as u32) {
                passed += 1;
            }
            let id = place + passed as u32;
            if id >= self.columns {
                return None;
            }
            ids.push(id);
            next = place + 1;
        }
        ids[start..].sort_unstable();
        self.learn(&ids[start..]);
        Some(())
    }

    fn learn(&mut self, ids: &[u32]) {
        let mut merged = Vec::with_capacity(self.known.len() + ids.len());
        let mut ids = ids.iter().copied().peekable();
        for &(id, score) in &self.known {
            while let Some(new) = ids.next_if(|other| *other < id) {
                merged.push((new, GAIN));
            }
            let gain = if ids.next_if_eq(&id).is_some() { GAIN } else { 0 };
            let score = score - score.div_ceil(8) + gain;
            if score >= FORGOTTEN {
                merged.push((id, score));
            }
        }
        merged.extend(ids.map(|id| (id, GAIN)));
        self.known = merged;
    }
}

/// Four contexts for every doubling of the score.
fn context(score: u16) -> usize {
    let magnitude = score.ilog2();
    (4 * magnitude + u32::from(score >> (magnitude - 2) & 3)) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(columns: u32) -> impl Strategy<Value = Vec<u32>> {
        prop::collection::btree_set(0..columns, 0..40.min(columns as usize))
            .prop_map(|set| set.into_iter().collect())
    }

    proptest! {
        #[test]
        fn sets_come_back(rows in prop::collection::vec(row(60), 0..30), wide in prop::collection::vec(row(MANY), 0..10)) {
            for (columns, rows) in [(60, rows), (MANY, wide)] {
                let (mut sets, mut encoder) = (Sets::new(columns), Encoder::new());
                rows.iter().for_each(|row| sets.encode(&mut encoder, row));
                let bytes = encoder.finish();
                let (mut sets, mut decoder) = (Sets::new(columns), Decoder::new(&bytes));
                for row in &rows {
                    let mut ids = vec![7];
                    prop_assert_eq!(sets.decode(&mut decoder, row.len(), &mut ids), Some(()));
                    prop_assert_eq!(&ids[1..], row);
                }
                prop_assert!(decoder.is_at_end());
            }
        }
    }

    const MANY: u32 = 1 << 26;

    #[test]
    fn scores_stay_in_their_type() {
        let mut sets = Sets::new(10);
        for _ in 0..1000 {
            sets.learn(&[3]);
        }
        assert_eq!(sets.known, [(3, u16::MAX - 6)], "the fixed point");
        for _ in 0..60 {
            sets.learn(&[]);
        }
        assert!(sets.known.is_empty());
    }

    #[test]
    fn what_comes_again_takes_little() {
        let rows: Vec<u32> = (0..100).map(|at| at * 397).collect();
        let (mut sets, mut encoder) = (Sets::new(49152), Encoder::new());
        (0..1000).for_each(|_| sets.encode(&mut encoder, &rows));
        let bytes = encoder.finish().len();
        assert!(bytes < 1200, "{bytes}");
    }
}
