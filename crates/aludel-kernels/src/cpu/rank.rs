//! Selects the k-th largest magnitude of a tensor exactly, in streaming passes and bounded memory.
//!
//! In: the magnitudes, as the bit patterns of non-negative f32 (their integer order is their order, NaN above
//! infinity). Out: a [`Cut`]: the threshold and the last index kept among magnitudes equal to it.
//!
//! A sample brackets the threshold first. One pass then counts what is above the bracket and what equals the sample's
//! own guess with vector instructions, and sorts only what falls inside the bracket into a histogram. The k-th value
//! is known when its bucket holds one bit pattern. If it does not, or the bracket missed, another pass looks closer:
//! the result never depends on the sample, only the number of passes does. Differences of 16-bit weights have many
//! equal magnitudes, so the guess is often the very threshold and a tie must be cut: the counts per chunk of what
//! equals the guess say in which chunk.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

const MAGNITUDE: u32 = 0x7fff_ffff;
const BUCKETS: usize = 1 << 14;

/// Which elements are kept: magnitudes above the threshold, and those equal to it up to an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    pub threshold: u32,
    /// The flat index of the last element kept among those equal to the threshold.
    pub last: Option<u64>,
}

impl Cut {
    /// How many of the lanes that start at `start` come no later than the last tie that is kept.
    #[inline(always)]
    pub(super) fn ties_within(self, start: u64, length: usize) -> usize {
        self.last.map_or(0, |last| (last + 1).saturating_sub(start).min(length as u64) as usize)
    }

    /// Keeps everything or nothing, where the count alone decides.
    pub(crate) fn trivial(count: u64, elements: u64) -> Option<Self> {
        match count {
            0 => Some(Self { threshold: MAGNITUDE, last: None }),
            k if k >= elements => Some(Self { threshold: 0, last: Some(u64::MAX - 1) }),
            _ => None,
        }
    }

    /// From all magnitudes of a tensor, in flat order. `count` is between 1 and their number.
    pub(super) fn exact(magnitudes: &[u32], count: u64) -> Self {
        let key = |(i, &bits): (usize, &u32)| u64::from(bits) << 32 | u64::from(u32::MAX - i as u32);
        let mut keys: Vec<u64> = magnitudes.iter().enumerate().map(key).collect();
        let position = keys.len() - count as usize;
        let kth = *keys.select_nth_unstable(position).1;
        Self { threshold: (kth >> 32) as u32, last: Some(u64::from(u32::MAX - kth as u32)) }
    }
}

/// The magnitude of a value as its bit pattern.
#[inline(always)]
pub(super) fn magnitude(value: f32) -> u32 {
    value.to_bits() & MAGNITUDE
}

/// Where the threshold is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bracket {
    pub low: u32,
    /// Inclusive.
    pub high: u32,
    /// A value in the bracket, counted exactly.
    pub guess: u32,
    /// Values in the bracket whose ties are counted for each chunk, as one of them may be the threshold.
    pub frequent: [u32; FREQUENT],
}

/// How many frequent values have their ties counted.
const FREQUENT: usize = 8;

impl Bracket {
    /// From sampled magnitudes (reordered), for the `count` largest of `elements`.
    ///
    /// Its half-width is eight standard deviations of a rank among independent samples: neighbouring samples are alike,
    /// which widens the spread, and a miss costs a whole pass.
    pub(super) fn from_sample(sample: &mut [u32], count: u64, elements: u64) -> Self {
        let size = sample.len();
        let share = count as f64 / elements as f64;
        let middle = (size - 1).min(((1.0 - share) * size as f64) as usize);
        let spread = 8.0 * (size as f64 * share * (1.0 - share)).sqrt() + 8.0;
        let (below, above) = (middle.checked_sub(spread as usize), middle + spread as usize);
        let (left, &mut guess, right) = sample.select_nth_unstable(middle);
        let low = below.map_or(0, |at| nth(left, at, guess));
        let high = if above >= size { MAGNITUDE } else { nth(right, above - middle - 1, guess) };
        Self { frequent: frequent(sample, low, high, guess), ..Self::new(low, high, guess) }
    }

    pub(super) const fn new(low: u32, high: u32, guess: u32) -> Self {
        Self { low, high, guess, frequent: [guess; FREQUENT] }
    }

    const fn exactly(value: u32) -> Self {
        Self::new(value, value, value)
    }

    const fn between(low: u32, high: u32) -> Self {
        Self::new(low, high, low)
    }

    fn shift(self) -> u32 {
        let width = u64::from(self.high - self.low) + 1;
        (width.div_ceil(BUCKETS as u64)).next_power_of_two().trailing_zeros()
    }
}

fn nth(part: &mut [u32], at: usize, otherwise: u32) -> u32 {
    if at < part.len() { *part.select_nth_unstable(at).1 } else { otherwise }
}

/// The values that occur most often in the part of a sample that lies in the bracket, the guess apart.
fn frequent(sample: &[u32], low: u32, high: u32, guess: u32) -> [u32; FREQUENT] {
    let is_inside = |&m: &u32| (low..=high).contains(&m) && m != guess;
    let mut inside: Vec<u32> = sample.iter().copied().filter(is_inside).collect();
    inside.sort_unstable();
    let mut runs: Vec<(usize, u32)> = inside.chunk_by(|a, b| a == b).map(|run| (run.len(), run[0])).collect();
    runs.sort_unstable_by(|a, b| b.cmp(a));
    std::array::from_fn(|i| runs.get(i).map_or(guess, |&(_, value)| value))
}

/// Counts over some elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Above the bracket.
    pub above: u64,
    /// Equal to the guess.
    pub equal: u32,
}

/// Counts a block, and appends what is inside the bracket and is not the guess to `inside`: the definition that the
/// versions written for vector instructions are held to.
pub(super) fn tally(x: &[f32], bracket: Bracket, tally: &mut Tally, inside: &mut Vec<u32>) {
    let Bracket { low, high, guess, .. } = bracket;
    for m in x.iter().map(|&x| magnitude(x)) {
        tally.above += u64::from(m > high);
        tally.equal += u32::from(m == guess);
        inside.extend(((low..=high).contains(&m) && m != guess).then_some(m));
    }
}

/// One selection during one pass, fed by all workers.
#[derive(Debug)]
pub(super) struct Ranking {
    count: u64,
    pub bracket: Bracket,
    above: AtomicU64,
    greater: AtomicU64,
    /// How many elements of each chunk equal the guess.
    equal: Vec<AtomicU32>,
    /// How many elements of each chunk equal each frequent value; [`UNKNOWN`] where its bucket held others too.
    frequent: Vec<[AtomicU32; FREQUENT]>,
    histogram: Mutex<Vec<Bucket>>,
}

const UNKNOWN: u32 = u32::MAX;

/// What has fallen into a bucket.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    count: u64,
    /// All bits that occur, and the bits common to all: equal where one pattern occurs.
    any: u32,
    all: u32,
}

const EMPTY: Bucket = Bucket { count: 0, any: 0, all: u32::MAX };

/// A thread's histogram of one chunk, empty between chunks.
#[derive(Debug, Default)]
pub(super) struct LocalHistogram {
    buckets: Vec<Bucket>,
    touched: Vec<u16>,
}

impl LocalHistogram {
    fn fill(&mut self, inside: &[u32], low: u32, shift: u32) {
        self.buckets.resize(BUCKETS, EMPTY);
        for &m in inside {
            let index = (m - low) >> shift;
            let bucket = &mut self.buckets[index as usize];
            if bucket.count == 0 {
                self.touched.push(index as u16);
            }
            bucket.count += 1;
            bucket.any |= m;
            bucket.all &= m;
        }
    }

    /// How many elements equal a value of the bracket; [`UNKNOWN`] where its bucket holds others too.
    fn count_of(&self, value: u32, bracket: Bracket) -> u32 {
        let bucket = self.buckets[((value - bracket.low) >> bracket.shift()) as usize];
        match bucket.count {
            0 => 0,
            count if bucket.any == value && bucket.all == value => count as u32,
            _ => UNKNOWN,
        }
    }

    /// Hands every touched bucket over and empties it.
    fn drain(&mut self, mut take: impl FnMut(u16, Bucket)) {
        for index in self.touched.drain(..) {
            take(index, std::mem::replace(&mut self.buckets[usize::from(index)], EMPTY));
        }
    }
}

/// What a pass has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Known(Cut),
    /// Another pass is needed, over this bracket.
    Closer(Bracket),
    /// The threshold is known; the last tie kept is the `tie`-th (from 1) in this chunk.
    Locate {
        threshold: u32,
        chunk: u64,
        tie: u64,
    },
}

impl Ranking {
    /// Prepares to find the `count`-th largest magnitude, `count` at least 1.
    pub(super) fn new(count: u64, bracket: Bracket, chunks: u64) -> Self {
        let buckets = ((bracket.high - bracket.low) >> bracket.shift()) as usize + 1;
        Self {
            count,
            bracket,
            above: AtomicU64::new(0),
            greater: AtomicU64::new(0),
            equal: (0..chunks).map(|_| AtomicU32::new(0)).collect(),
            frequent: (0..chunks).map(|_| Default::default()).collect(),
            histogram: Mutex::new(vec![EMPTY; buckets]),
        }
    }

    /// Takes in the counts of one chunk. Sums only, so the order does not matter.
    pub(super) fn absorb(&self, chunk: u64, tally: Tally, inside: &[u32], local: &mut LocalHistogram) {
        self.above.fetch_add(tally.above, Relaxed);
        let greater = inside.iter().filter(|&&m| m > self.bracket.guess).count() as u64;
        self.greater.fetch_add(tally.above + greater, Relaxed);
        self.equal[chunk as usize].fetch_add(tally.equal, Relaxed);
        local.fill(inside, self.bracket.low, self.bracket.shift());
        for (count, value) in self.frequent[chunk as usize].iter().zip(self.bracket.frequent) {
            count.store(local.count_of(value, self.bracket), Relaxed);
        }
        let mut histogram = self.histogram();
        local.drain(|index, from| {
            let to = &mut histogram[usize::from(index)];
            *to = Bucket { count: to.count + from.count, any: to.any | from.any, all: to.all & from.all };
        });
    }

    /// How many elements of each chunk equal a value, where every chunk knows.
    fn ties_of(&self, value: u32) -> Option<Vec<u64>> {
        let at = self.bracket.frequent.iter().position(|&frequent| frequent == value)?;
        let counts = self.frequent.iter().map(|chunk| chunk[at].load(Relaxed));
        counts.map(|count| (count != UNKNOWN).then_some(u64::from(count))).collect()
    }

    fn histogram(&self) -> MutexGuard<'_, Vec<Bucket>> {
        self.histogram.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides, once every chunk has been taken in.
    pub(super) fn outcome(&self) -> Outcome {
        let (above, greater) = (self.above.load(Relaxed), self.greater.load(Relaxed));
        let equal: u64 = self.equal.iter().map(|e| u64::from(e.load(Relaxed))).sum();
        let Bracket { low, high, guess, .. } = self.bracket;
        if self.count <= above {
            return Outcome::Closer(Bracket::between(high + 1, MAGNITUDE));
        }
        if self.count > greater && self.count <= greater + equal {
            let chunks = self.equal.iter().map(|equal| u64::from(equal.load(Relaxed)));
            return cut_ties(guess, self.count - greater, equal, chunks);
        }
        let histogram = self.histogram();
        let shift = self.bracket.shift();
        let guess_bucket = ((guess - low) >> shift) as usize;
        let mut seen = above;
        for (bucket, &Bucket { count, any, all }) in histogram.iter().enumerate().rev() {
            let (first, last) = bucket_range(low, high, shift, bucket);
            let with_guess = count + if bucket == guess_bucket { equal } else { 0 };
            if self.count > seen + with_guess {
                seen += with_guess;
                continue;
            }
            if bucket == guess_bucket {
                // The k-th is not the guess itself, so it lies on one side of it.
                let above_guess = self.count <= greater;
                let (first, last) = if above_guess { (guess + 1, last) } else { (first, guess - 1) };
                return Outcome::Closer(Bracket::between(first, last));
            }
            return match (any == all, self.ties_of(any)) {
                (true, Some(chunks)) => cut_ties(any, self.count - seen, count, chunks.into_iter()),
                (true, None) if self.count == seen + count => cut_ties(any, count, count, std::iter::empty()),
                (true, None) => Outcome::Closer(Bracket::exactly(any)),
                (false, _) => Outcome::Closer(Bracket::new(first, last, all.clamp(first, last))),
            };
        }
        Outcome::Closer(Bracket::between(0, low.saturating_sub(1)))
    }
}

/// Keeps the first `kept` of the `all` elements equal to the threshold, whose counts in each chunk are given.
fn cut_ties(threshold: u32, kept: u64, all: u64, chunks: impl Iterator<Item = u64>) -> Outcome {
    let mut before = 0;
    for (chunk, equal) in (0..).zip(chunks) {
        if kept < all && kept <= before + equal {
            return Outcome::Locate { threshold, chunk, tie: kept - before };
        }
        before += equal;
    }
    Outcome::Known(Cut { threshold, last: Some(u64::MAX - 1) })
}

fn bucket_range(low: u32, high: u32, shift: u32, bucket: usize) -> (u32, u32) {
    let first = low + ((bucket as u32) << shift);
    (first, high.min(first + ((1u32 << shift) - 1)))
}

#[cfg(test)]
mod tests {
    use super::super::dispatch::Level;
    use super::*;
    use crate::random::{StreamKey, uniform};
    use proptest::prelude::*;

    const CHUNK: usize = 64;

    /// Runs passes until the cut is known; returns it and the number of passes.
    fn select(values: &[f32], count: u64, mut bracket: Bracket) -> (Cut, usize) {
        for pass in 1..=12 {
            let ranking = Ranking::new(count, bracket, values.len().div_ceil(CHUNK) as u64);
            for (chunk, x) in values.chunks(CHUNK).enumerate() {
                let (mut counts, mut inside) = (Tally::default(), Vec::new());
                tally(x, bracket, &mut counts, &mut inside);
                ranking.absorb(chunk as u64, counts, &inside, &mut LocalHistogram::default());
            }
            match ranking.outcome() {
                Outcome::Known(cut) => return (cut, pass),
                Outcome::Closer(closer) => bracket = closer,
                Outcome::Locate { threshold, chunk, tie } => {
                    let start = chunk as usize * CHUNK;
                    let ties = (start..).filter(|&i| magnitude(values[i]) == threshold);
                    let last = ties.take(tie as usize).last().unwrap() as u64;
                    return (Cut { threshold, last: Some(last) }, pass);
                }
            }
        }
        panic!("no end in sight: {count} of {values:?}");
    }

    fn kept(values: &[f32], cut: Cut) -> Vec<usize> {
        let is_kept = |i: &usize| {
            let m = magnitude(values[*i]);
            m > cut.threshold || (m == cut.threshold && cut.last.is_some_and(|last| *i as u64 <= last))
        };
        (0..values.len()).filter(is_kept).collect()
    }

    fn by_sorting(values: &[f32], count: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(magnitude(values[i])), i));
        order.truncate(count as usize);
        order.sort_unstable();
        order
    }

    fn check(values: &[f32], count: u64, bracket: Bracket) -> usize {
        let (cut, passes) = select(values, count, bracket);
        assert_eq!(kept(values, cut), by_sorting(values, count), "{count} within {bracket:?}");
        let magnitudes: Vec<u32> = values.iter().map(|&v| magnitude(v)).collect();
        assert_eq!(kept(values, Cut::exact(&magnitudes, count)), by_sorting(values, count));
        passes
    }

    proptest! {
        /// Few distinct values make many ties; any bits at all include NaN, infinities and both zeros.
        #[test]
        fn the_cut_is_that_of_a_full_sort(
            values in prop_oneof![
                prop::collection::vec((-4i8..4).prop_map(f32::from), 1..400),
                prop::collection::vec(any::<u32>().prop_map(f32::from_bits), 1..400),
            ],
            share in 0.0..1.0f64,
            (a, b, c) in (0..=MAGNITUDE, 0..=MAGNITUDE, 0.0..1.0f64),
        ) {
            let count = 1 + (share * (values.len() - 1) as f64) as u64;
            let (low, high) = (a.min(b), a.max(b));
            let guess = low + (c * f64::from(high - low)) as u32;
            check(&values, count, Bracket::new(low, high, guess));
        }
    }

    #[test]
    fn every_level_counts_as_defined() {
        let values: Vec<f32> = (0..1271).map(|i| (uniform(StreamKey(3), i) * 64.0).floor() - 32.0).collect();
        let bits = |value: f32| value.to_bits();
        let brackets = [
            Bracket::new(bits(5.0), bits(9.0), bits(7.0)),
            Bracket::new(0, MAGNITUDE, 0),
            Bracket::new(bits(40.0), bits(50.0), bits(41.0)),
            Bracket::new(bits(4.0), bits(4.0), bits(4.0)),
        ];
        for (bracket, length) in brackets.into_iter().flat_map(|b| [0, 1, 41, 401, 1271].map(|n| (b, n))) {
            let count = |level| {
                let (mut counts, mut inside) = (Tally::default(), vec![7]);
                super::super::dispatch::tally(level, &values[..length], bracket, &mut counts, &mut inside);
                (counts, inside)
            };
            let expected = count(Level::Baseline);
            assert_eq!(count(Level::Avx2), expected);
            assert_eq!(count(Level::Avx512), expected);
        }
    }

    #[test]
    fn a_good_sample_needs_one_pass() {
        let quantised: Vec<f32> =
            (0..40_000).map(|i| (uniform(StreamKey(5), i) * 40.0).floor() - 20.0).collect();
        let mut sample: Vec<u32> = quantised.iter().step_by(7).map(|&v| magnitude(v)).collect();
        let bracket = Bracket::from_sample(&mut sample, 20_000, 40_000);
        assert_eq!(check(&quantised, 20_000, bracket), 1);
    }

    #[test]
    fn a_sample_that_misleads_costs_passes_only() {
        let values: Vec<f32> = (0..5000).map(|i| uniform(StreamKey(9), i) + 1.0).collect();
        let far_below = Bracket::new(10, 20, 15);
        let far_above = Bracket::new(MAGNITUDE - 9, MAGNITUDE, MAGNITUDE);
        for bracket in [far_below, far_above] {
            assert!(check(&values, 2500, bracket) > 1);
        }
    }

    #[test]
    fn nothing_and_everything_need_no_pass() {
        let values = [1.0, f32::NAN, 0.0];
        assert_eq!(kept(&values, Cut::trivial(0, 3).unwrap()), [0usize; 0]);
        assert_eq!(kept(&values, Cut::trivial(3, 3).unwrap()), [0, 1, 2]);
        assert_eq!(Cut::trivial(2, 3), None);
    }
}
