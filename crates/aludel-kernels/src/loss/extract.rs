//! Takes out of a row of logits what a cache keeps of it: the likeliest columns, draws, or all columns in few bits.
//!
//! In: one row of logits. Out: columns in ascending order with their log-probabilities, and what all others have together, at each
//! temperature; how often each column was drawn; or a level for each column. Ties go to the lower column. Where rows come from and go
//! to is not known here.

use super::cpu::extract::{above, each_block, extent, levels, log_sum};
use crate::random::philox;

/// The likeliest columns of a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Likeliest {
    /// In ascending order.
    pub ids: Vec<u32>,
    /// Their log-probabilities at temperature 1.
    pub log_p: Vec<f32>,
    /// For each temperature, the probability of all other columns.
    pub tails: Vec<f32>,
    /// The log-sum-exp of the logits.
    pub log_sum: f32,
}

/// Columns that were drawn from a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Draws {
    /// In ascending order.
    pub ids: Vec<u32>,
    /// How often each was drawn.
    pub counts: Vec<u32>,
    /// The entropy of the distribution, in nats.
    pub entropy: f32,
}

/// The `k` likeliest columns, fewer where fewer have a finite logit. NaN shows in `log_sum`.
pub fn likeliest(logits: &[f32], k: usize, temperatures: &[f32]) -> Likeliest {
    let mut found: Vec<(u32, f32)> = above(logits, k);
    found.retain(|(_, z)| *z > f32::NEG_INFINITY);
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if found.len() > k {
        found.select_nth_unstable_by(k, order);
        found.truncate(k);
    }
    found.sort_unstable_by_key(|(id, _)| *id);
    let whole = log_sum(logits, 1.0);
    let tail = |&temperature: &f32| {
        let tau = f64::from(temperature);
        let sum = if temperature == 1.0 { whole } else { log_sum(logits, temperature) };
        let known: f64 = found.iter().map(|(_, z)| (f64::from(*z) / tau - sum).exp()).sum();
        // The difference of two sums near 1 has no digits below this.
        if found.len() == logits.len() { 0.0 } else { (1.0 - known).max(1e-7) as f32 }
    };
    Likeliest {
        tails: temperatures.iter().map(tail).collect(),
        ids: found.iter().map(|(id, _)| *id).collect(),
        log_p: found.iter().map(|(_, z)| (f64::from(*z) - whole).min(0.0) as f32).collect(),
        log_sum: whole as f32,
    }
}

/// `count` draws from `softmax(logits / temperature)`, by random numbers that depend on the seed and on these words alone.
pub fn draw(logits: &[f32], temperature: f32, count: u32, seed: u64, words: [u32; 3]) -> Draws {
    let key = [seed as u32, (seed >> 32) as u32];
    let mut points: Vec<f64> = (0..count)
        .map(|at| {
            let word = philox([words[0], words[1], words[2], at], key);
            (u64::from(word[0]) << 21 ^ u64::from(word[1]) >> 11) as f64 / (1u64 << 53) as f64
        })
        .collect();
    points.sort_unstable_by(f64::total_cmp);
    let (mut draws, mut passed, mut entropy, mut last) = (Draws::default(), 0.0, 0.0, 0);
    let mut points = points.into_iter().peekable();
    each_block(logits, temperature, |block| {
        entropy += block.entropy;
        let end = passed + block.sum;
        // Most blocks have no draw, and nobody asks which of their columns it would have been.
        if points.peek().is_some_and(|point| *point < end) {
            let columns = block.p.iter().zip(block.start..).filter(|(p, _)| **p > 0.0);
            for (&p, column) in columns {
                (passed, last) = (passed + f64::from(p), column as u32);
                draws.add(last, std::iter::from_fn(|| points.next_if(|point| *point < passed)).count());
            }
            // A sum in another order may be a little larger.
            draws.add(last, std::iter::from_fn(|| points.next_if(|point| *point < end)).count());
        }
        passed = end;
    });
    // Rounding may leave the sum a little below 1.
    let likely = logits.iter().rposition(|z| *z > f32::NEG_INFINITY).unwrap_or(0) as u32;
    let id = draws.ids.last().map_or(likely, |last| likely.max(*last));
    draws.add(id, points.count());
    Draws { entropy: entropy as f32, ..draws }
}

/// How many bits a level has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LevelBits {
    /// 255 levels within 24 nats of the greatest logit, and one for all that is below.
    Eight,
    /// 15 levels within 10 nats.
    Four,
}

impl LevelBits {
    /// The greatest level, and the nats that levels reach.
    const fn scale(self) -> (u8, f32) {
        match self {
            Self::Eight => (255, 24.0),
            Self::Four => (15, 10.0),
        }
    }
}

/// All logits of a row as levels `q`: with `Q` the greatest level, `q > 0` is the logit `top - (Q - q) step`.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantised {
    /// The greatest logit.
    pub top: f32,
    /// Between two levels.
    pub step: f32,
    /// What level 0 stands for: the logit of the mean probability of the columns that have it. Negative infinity where there is none.
    pub floor: f32,
    /// A byte for each column, or for two, the first in its low half.
    pub levels: Vec<u8>,
}

/// A row in few bits; `None` for NaN, infinity, or nothing but negative infinity.
pub fn quantise(logits: &[f32], bits: LevelBits) -> Option<Quantised> {
    let (most, reach) = bits.scale();
    let (least, top) = extent(logits)?;
    let step = ((top - least).min(reach) / f32::from(most - 1)).max(f32::MIN_POSITIVE);
    let mut found = vec![0; logits.len()];
    let mass = levels(logits, (top, step), most, &mut found);
    let below = found.iter().filter(|level| **level == 0).count();
    let has_finite = || logits.iter().zip(&found).any(|(z, level)| *level == 0 && z.is_finite());
    let floor = if mass > 0.0 {
        top + (mass / below as f64).ln() as f32
    } else if below > 0 && has_finite() {
        top - FAINT
    } else {
        f32::NEG_INFINITY
    };
    if bits == LevelBits::Four {
        let pair = |pair: &[u8]| pair[0] | pair.get(1).map_or(0, |high| high << 4);
        found = found.chunks(2).map(pair).collect();
    }
    Some(Quantised { top, step, floor, levels: found })
}

/// Nats below which a probability is none in f32.
const FAINT: f32 = 88.0;

impl Draws {
    /// Adds draws of the last column or of a later one.
    fn add(&mut self, id: u32, count: usize) {
        match (self.ids.last() == Some(&id), self.counts.last_mut()) {
            _ if count == 0 => {}
            (true, Some(before)) => *before += count as u32,
            _ => {
                self.ids.push(id);
                self.counts.push(count as u32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(count: usize) -> Vec<f32> {
        (0..count).map(|at| 3.0 * (0.3 + 1.7 * at as f32).sin() - (at % 7) as f32).collect()
    }

    #[test]
    fn the_likeliest_are_those_of_a_full_sort() {
        for (count, k) in [(1, 1), (41, 8), (401, 401), (1271, 20), (70_001, 128)] {
            let mut logits = logits(count);
            logits[count / 2] = f32::NEG_INFINITY;
            let got = likeliest(&logits, k, &[1.0, 2.0]);
            let mut order: Vec<usize> = (0..count).filter(|at| *at != count / 2).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
            order.truncate(k);
            order.sort_unstable();
            assert_eq!(got.ids, order.iter().map(|&at| at as u32).collect::<Vec<_>>());
            for (place, tau) in [(0, 1.0f64), (1, 2.0)] {
                let sum = |these: &mut dyn Iterator<Item = usize>| -> f64 {
                    these.map(|at| (f64::from(logits[at]) / tau).exp()).sum()
                };
                let (all, kept) = (sum(&mut (0..count)), sum(&mut order.iter().copied()));
                let tail = if all > 0.0 { 1.0 - kept / all } else { continue };
                assert!((f64::from(got.tails[place]) - tail).abs() < 1e-6, "{count} {k} {tau}");
                if place == 0 {
                    assert!((f64::from(got.log_sum) - all.ln()).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn draws_have_the_distribution_and_its_entropy() {
        let logits = [1.0f32, 0.0, f32::NEG_INFINITY, 2.0, -1.0];
        let p: Vec<f64> = logits.iter().map(|z| (f64::from(*z) / 2.0).exp()).collect();
        let sum: f64 = p.iter().sum();
        let got = draw(&logits, 2.0, 100_000, 5, [1, 2, 3]);
        assert_eq!(got.ids, [0, 1, 3, 4]);
        assert_eq!(got.counts.iter().sum::<u32>(), 100_000);
        for (&id, &count) in got.ids.iter().zip(&got.counts) {
            assert!((f64::from(count) / 1e5 - p[id as usize] / sum).abs() < 0.006);
        }
        let entropy: f64 = p.iter().filter(|p| **p > 0.0).map(|p| -p / sum * (p / sum).ln()).sum();
        assert!((f64::from(got.entropy) - entropy).abs() < 1e-5);
        assert_eq!(got, draw(&logits, 2.0, 100_000, 5, [1, 2, 3]));
        assert_ne!(got.counts, draw(&logits, 2.0, 100_000, 5, [1, 2, 4]).counts);
    }

    /// What a reader makes of a row.
    fn read(row: &Quantised, bits: LevelBits, columns: usize) -> Vec<f32> {
        let most = i32::from(bits.scale().0);
        let level = |at: usize| match bits {
            LevelBits::Eight => row.levels[at],
            LevelBits::Four => row.levels[at / 2] >> (4 * (at % 2)) & 15,
        };
        let logit =
            |q: u8| if q == 0 { row.floor } else { row.top - (most - i32::from(q)) as f32 * row.step };
        (0..columns).map(|at| logit(level(at))).collect()
    }

    #[test]
    fn levels_are_the_nearest_and_the_rest_keeps_its_mass() {
        for (bits, columns) in [
            (LevelBits::Eight, 1usize),
            (LevelBits::Eight, 2001),
            (LevelBits::Four, 1),
            (LevelBits::Four, 41),
            (LevelBits::Four, 2000),
        ] {
            let logits: Vec<f32> =
                (0..columns).map(|at| 3.0 * (0.7 + 1.3 * at as f32).sin() - at as f32 / 40.0).collect();
            let row = quantise(&logits, bits).unwrap();
            let (most, reach) = bits.scale();
            let top = logits.iter().copied().fold(f32::MIN, f32::max);
            let least = logits.iter().copied().fold(f32::MAX, f32::min);
            assert_eq!(
                (row.top, row.levels.len()),
                (top, if most == 255 { columns } else { columns.div_ceil(2) })
            );
            if columns > 1 {
                assert_eq!(row.step, (top - least).min(reach) / f32::from(most - 1));
            }
            let got = read(&row, bits, columns);
            let is_near = |(x, y): (&f32, &f32)| top - x > reach || (x - y).abs() <= 0.51 * row.step;
            assert!(logits.iter().zip(&got).all(is_near), "{bits:?} {columns}");
            let mass = |x: &[f32]| -> f64 {
                let below = x.iter().zip(&logits).filter(|(_, z)| top - **z > reach + 0.5 * row.step);
                below.map(|(x, _)| f64::from(x - top).exp()).sum()
            };
            assert!((mass(&got) - mass(&logits)).abs() <= 0.001 * mass(&logits), "{bits:?} {columns}");
        }
    }

    #[test]
    fn levels_of_logits_without_a_probability() {
        let inf = f32::INFINITY;
        for refused in [vec![1.0, f32::NAN], vec![inf, 0.0], vec![-inf, -inf], vec![]] {
            assert_eq!(quantise(&refused, LevelBits::Eight), None, "{refused:?}");
        }
        let row = quantise(&[2.0, -inf, 2.0], LevelBits::Eight).unwrap();
        assert_eq!((row.floor, row.levels), (-inf, vec![255, 0, 255]));
        let row = quantise(&[2.0, -500.0, -inf, 1.0], LevelBits::Four).unwrap();
        assert_eq!((row.floor, row.levels[0]), (2.0 - FAINT, 0x0f), "not impossible, only too faint to say");
    }
}
