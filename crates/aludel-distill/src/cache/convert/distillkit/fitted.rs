//! Unpacks the older layout: `packed_indices`, `exact_values` and `coeffs`.
//!
//! In: the words and numbers of one position. Out: its ids and values, the likeliest first: log-probabilities, or logits less their mean,
//! which the files do not tell apart. Ids lie in words of 64 bits, as many in each as fit whole, the first in the lowest bits. The first `exact_k`
//! values are stored; value `exact_k + t` is the sum of the factors times the powers of `1 / (t + 1)`, or of `t + 1`.

use super::super::source::Told;
use super::bits::{Kind, from_words, packed_words};
use super::packed::Term;

/// How positions are packed.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::cache::convert) struct Fitted {
    pub(super) columns: u32,
    pub(super) index_bits: u32,
    pub(super) k: usize,
    pub(super) exact: usize,
    pub(super) terms: Vec<Term>,
}

impl Fitted {
    /// Adds what a position says.
    pub(in crate::cache::convert) fn push(
        &self,
        words: &[i64],
        exact: &[f64],
        factors: &[f64],
        told: &mut Told,
    ) -> Result<(), String> {
        let terms = if self.exact < self.k { self.terms.len() } else { 0 };
        let lengths = [packed_words(self.k, self.index_bits), self.exact, terms];
        let found = [words.len(), exact.len(), factors.len()];
        if found != lengths {
            return Err(format!(
                "it has {} words of indices, {} values and {} coefficients, and the configuration makes {}, {} and {}",
                found[0], found[1], found[2], lengths[0], lengths[1], lengths[2]
            ));
        }
        told.ids.extend(from_words(words, self.index_bits, self.k).map(|id| id as i64));
        told.values.extend(exact);
        for at in 1..=self.k - self.exact {
            let terms = self.terms.iter().zip(factors);
            // Whatever type factors were rounded to, the files hold them in f32, and so terms are reckoned.
            told.values.push(terms.map(|(term, factor)| term.at(at as f64, Kind::F32) * factor).sum());
        }
        Ok(())
    }
}
