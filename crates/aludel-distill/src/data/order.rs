//! Puts rows into a random order that is computed, not stored.
//!
//! In: a number of rows, a seed and an epoch. Out: which row stands at a position. It is a Feistel network over the smallest
//! even number of bits that holds all rows, with Philox as its round function; numbers past the last row are sent through
//! again until they fall inside ("cycle walking", Black and Rogaway 2002). So it is a permutation for any number of rows,
//! and a position is found without those before it.

use aludel_kernels::random::philox;

/// The order of one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    rows: u64,
    /// Bits of one half.
    half: u32,
    /// `None` keeps the rows as they are.
    shuffle: Option<(u64, u64)>,
}

const ROUNDS: u32 = 6;

impl Order {
    /// The rows as they stand in the files.
    pub fn straight(rows: u64) -> Self {
        Self { rows, half: 0, shuffle: None }
    }

    /// A random order that depends on the number of rows, the seed and the epoch alone.
    pub fn shuffled(rows: u64, seed: u64, epoch: u64) -> Self {
        let bits = u64::BITS - rows.saturating_sub(1).leading_zeros();
        Self { rows, half: bits.div_ceil(2).clamp(1, 32), shuffle: Some((seed, epoch)) }
    }

    /// How many rows there are.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The row at a position; `None` past the last.
    pub fn row(&self, position: u64) -> Option<u64> {
        if position >= self.rows {
            return None;
        }
        let Some((seed, epoch)) = self.shuffle else { return Some(position) };
        let mut row = self.turn(position, seed, epoch);
        // The network is over fewer than four times as many numbers as there are rows, so this ends soon.
        while row >= self.rows {
            row = self.turn(row, seed, epoch);
        }
        Some(row)
    }

    fn turn(&self, number: u64, seed: u64, epoch: u64) -> u64 {
        let mask = (1u64 << self.half) - 1;
        let (mut left, mut right) = (number >> self.half, number & mask);
        for round in 0..ROUNDS {
            let counter = [right as u32, round, epoch as u32, (epoch >> 32) as u32];
            let word = u64::from(philox(counter, [seed as u32, (seed >> 32) as u32])[0]);
            (left, right) = (right, left ^ (word & mask));
        }
        (left << self.half) | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(order: Order) -> Vec<u64> {
        (0..order.rows()).map(|position| order.row(position).unwrap()).collect()
    }

    #[test]
    fn every_row_has_one_position() {
        for rows in [0, 1, 2, 3, 4, 5, 16, 17, 41, 255, 256, 257, 1271, 4097] {
            let mut order = all(Order::shuffled(rows, 7, 3));
            order.sort_unstable();
            assert_eq!(order, (0..rows).collect::<Vec<_>>());
            assert_eq!(Order::shuffled(rows, 7, 3).row(rows), None);
        }
    }

    #[test]
    fn the_order_depends_on_seed_and_epoch() {
        let first = all(Order::shuffled(1000, 1, 0));
        assert_eq!(first, all(Order::shuffled(1000, 1, 0)));
        for (seed, epoch) in [(2, 0), (1, 1), (1 | 1 << 32, 0), (1, 1 << 32)] {
            let other = all(Order::shuffled(1000, seed, epoch));
            let same = first.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!(same < 10, "{same} rows kept their place for seed {seed} and epoch {epoch}");
        }
        assert_eq!(all(Order::straight(5)), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn rows_are_spread_evenly() {
        // Where the first row of 64 goes, over many epochs: 16 buckets of 256 expected, four deviations are 62.
        let mut buckets = [0u32; 16];
        for epoch in 0..4096 {
            buckets[(Order::shuffled(64, 5, epoch).row(0).unwrap() / 4) as usize] += 1;
        }
        assert!(buckets.iter().all(|&count| count.abs_diff(256) < 62), "{buckets:?}");
    }

    #[test]
    fn large_numbers_of_rows_need_no_memory() {
        let order = Order::shuffled(u64::MAX / 3, 1, 1);
        let row = order.row(12345).unwrap();
        assert!(row < order.rows() && order.row(12346) != Some(row));
    }
}
