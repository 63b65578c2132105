//! Chooses the next token from logits.
//!
//! In: a row of logits, settings, and how many tokens were chosen before. Out: a token. The choice depends on these alone:
//! random numbers are counted, not drawn from a state, so the same seed gives the same text. Probabilities are f64.

use aludel_kernels::random::philox;

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the most likely token, the first of equals.
    pub temperature: f64,
    /// Only the so many most likely tokens are considered; 0 considers all.
    pub top_k: usize,
    /// Of these, only the most likely that together have at least this share of the probability; 1 considers all.
    pub top_p: f64,
    /// Key of the random numbers.
    pub seed: u64,
}

impl Sampling {
    /// The most likely token, always.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 };

    /// The token after `chosen` others; `None` where no logit is a number above minus infinity.
    pub fn choose(&self, logits: &[f32], chosen: u64) -> Option<u32> {
        let first = most_likely(logits)?;
        // At this temperature every other token's share is below the smallest f64.
        if self.temperature < 1e-6 {
            return Some(first);
        }
        let candidates = self.candidates(logits, f64::from(logits[first as usize]));
        let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
        let mut left = uniform(self.seed, chosen) * total;
        for (token, weight) in &candidates {
            if left < *weight {
                return Some(*token);
            }
            left -= weight;
        }
        // Rounding may leave a trifle behind the last one.
        candidates.last().map(|(token, _)| *token)
    }

    /// The tokens considered, the most likely first and equals by their number, with weights relative to the first.
    fn candidates(&self, logits: &[f32], greatest: f64) -> Vec<(u32, f64)> {
        let weight = |logit: f32| ((f64::from(logit) - greatest) / self.temperature).exp();
        let numbered = (0..).zip(logits).filter(|(_, logit)| !logit.is_nan());
        let mut all: Vec<(u32, f64)> = numbered.map(|(token, &logit)| (token, weight(logit))).collect();
        let order = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if self.top_k > 0 && self.top_k < all.len() {
            all.select_nth_unstable_by(self.top_k - 1, order);
            all.truncate(self.top_k);
        }
        all.sort_unstable_by(order);
        if self.top_p < 1.0 {
            let enough = self.top_p * all.iter().map(|(_, weight)| weight).sum::<f64>();
            let mut sum = 0.0;
            let needed = all.iter().position(|(_, weight)| {
                sum += weight;
                sum >= enough
            });
            all.truncate(needed.map_or(all.len(), |last| last + 1));
        }
        all
    }
}

fn most_likely(logits: &[f32]) -> Option<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (token, &logit) in (0..).zip(logits) {
        if logit > best.map_or(f32::NEG_INFINITY, |(_, logit)| logit) {
            best = Some((token, logit));
        }
    }
    best.map(|(token, _)| token)
}

/// In `[0, 1)`, with 53 random bits.
fn uniform(seed: u64, index: u64) -> f64 {
    let words = philox([index as u32, (index >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let bits = u64::from(words[0]) << 32 | u64::from(words[1]);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [0.0, 2.0, f32::NEG_INFINITY, 2.0, 1.0];

    fn sampling(temperature: f64) -> Sampling {
        Sampling { temperature, ..Sampling::GREEDY }
    }

    /// How often each of five tokens is chosen in 20000 draws.
    fn shares(sampling: Sampling) -> [f64; 5] {
        let mut counts = [0u32; 5];
        for index in 0..20_000 {
            counts[sampling.choose(&LOGITS, index).unwrap() as usize] += 1;
        }
        counts.map(|count| f64::from(count) / 20_000.0)
    }

    /// Four standard deviations of a share.
    fn assert_close(got: [f64; 5], want: [f64; 5]) {
        for (got, want) in got.iter().zip(want) {
            assert!(
                (got - want).abs() <= 4.0 * (want * (1.0 - want) / 20_000.0).sqrt(),
                "{got} is not {want}"
            );
        }
    }

    #[test]
    fn without_temperature_the_first_of_the_most_likely_is_taken() {
        assert_eq!(Sampling::GREEDY.choose(&LOGITS, 7), Some(1));
        assert_eq!(sampling(1e-9).choose(&LOGITS, 7), Some(1));
        assert_eq!(sampling(1.0).choose(&[f32::NAN, 3.0], 0), Some(1));
        for nothing in [&[][..], &[f32::NAN], &[f32::NEG_INFINITY; 3]] {
            assert_eq!(sampling(1.0).choose(nothing, 0), None);
        }
    }

    #[test]
    fn shares_are_those_of_the_softmax() {
        for temperature in [0.5, 1.0, 2.0] {
            let weights = LOGITS.map(|logit| (f64::from(logit) / temperature).exp());
            let total: f64 = weights.iter().sum();
            assert_close(shares(sampling(temperature)), weights.map(|weight| weight / total));
        }
    }

    #[test]
    fn the_most_likely_k_share_what_there_is() {
        assert_close(shares(Sampling { top_k: 2, ..sampling(1.0) }), [0.0, 0.5, 0.0, 0.5, 0.0]);
        // Of equals the first is kept.
        assert_close(shares(Sampling { top_k: 1, ..sampling(1.0) }), [0.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!(shares(Sampling { top_k: 9, ..sampling(1.0) }), shares(sampling(1.0)));
    }

    #[test]
    fn top_p_keeps_as_few_as_reach_it() {
        // Shares at temperature 1: 0.399, 0.399, 0.147, 0.054.
        let kept = |top_p| shares(Sampling { top_p, ..sampling(1.0) }).map(|share| share > 0.0);
        assert_eq!(kept(0.0), [false, true, false, false, false]);
        assert_eq!(kept(0.39), [false, true, false, false, false]);
        assert_eq!(kept(0.41), [false, true, false, true, false]);
        assert_eq!(kept(0.9), [false, true, false, true, true]);
        assert_eq!(kept(0.97), [true, true, false, true, true]);
    }

    #[test]
    fn a_seed_gives_the_same_tokens_and_another_seed_others() {
        let text = |seed| {
            let sampling = Sampling { seed, ..sampling(1.0) };
            (0..50).map(|index| sampling.choose(&LOGITS, index).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }
}
