//! Unpacks the newer layout: `compressed_logprobs` and `bytepacked_indices`.
//!
//! In: the bytes of one position. Out: its ids and log-probabilities, the likeliest first. The bytes of the values are, one after another: the
//! first `exact_k` values; a factor for each term; and for each bin, the scale and then its elements, bits from the highest of each byte on.
//! Value `exact_k + t` is the sum of factors times terms at `t` (or at `t / (count - 1)`) plus its element times its scale. With deltas,
//! what is stored of each value but the first is its distance from the one before. An element of one bit is -1 or 1 times its scale, any other is
//! stored with its least value, `-2^(bits - 1)`, taken off.

use super::super::source::Told;
use super::bits::{Kind, from_bytes, packed_bytes};

/// How positions are packed.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::cache::convert) struct Packed {
    pub(super) columns: u32,
    pub(super) index_bits: u32,
    pub(super) k: usize,
    pub(super) exact: usize,
    pub(super) exact_kind: Kind,
    pub(super) terms: Vec<Term>,
    pub(super) term_kind: Kind,
    pub(super) bins: Vec<Bin>,
    pub(super) are_deltas: bool,
    pub(super) is_to_one: bool,
}

/// What a factor is multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Term {
    Power(i32),
    Root,
    Exponential,
}

/// What the terms leave of some values, in few bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bin {
    pub(super) scale_kind: Kind,
    pub(super) bits: u32,
    pub(super) count: usize,
}

impl Term {
    /// Its value, as the writer's type holds it.
    pub(super) fn at(self, place: f64, kind: Kind) -> f64 {
        kind.round(match self {
            Self::Power(power) => place.powi(power),
            Self::Root => place.sqrt(),
            Self::Exponential => place.exp(),
        })
    }
}

impl Bin {
    fn bytes(&self) -> usize {
        self.scale_kind.bytes() + packed_bytes(self.count, self.bits)
    }
}

impl Packed {
    /// Bytes of a position's values.
    fn value_bytes(&self) -> usize {
        let bins: usize = self.bins.iter().map(Bin::bytes).sum();
        self.exact * self.exact_kind.bytes() + self.terms.len() * self.term_kind.bytes() + bins
    }

    /// Adds what a position says.
    pub(in crate::cache::convert) fn push(
        &self,
        ids: &[u8],
        values: &[u8],
        told: &mut Told,
    ) -> Result<(), String> {
        let lengths = [packed_bytes(self.k, self.index_bits), self.value_bytes()];
        if [ids.len(), values.len()] != lengths {
            return Err(format!(
                "its indices have {} bytes and its values {}, and the configuration makes {} and {}",
                ids.len(),
                values.len(),
                lengths[0],
                lengths[1]
            ));
        }
        told.ids.extend(from_bytes(ids, self.index_bits, self.k).map(|id| id as i64));
        let start = told.values.len();
        let (exact, rest) = values.split_at(self.exact * self.exact_kind.bytes());
        told.values
            .extend(exact.chunks_exact(self.exact_kind.bytes()).map(|bytes| self.exact_kind.read(bytes)));
        let (factors, mut rest) = rest.split_at(self.terms.len() * self.term_kind.bytes());
        let factors: Vec<f64> =
            factors.chunks_exact(self.term_kind.bytes()).map(|bytes| self.term_kind.read(bytes)).collect();
        let count = self.k - self.exact;
        let unit = if self.is_to_one { 1.0 / count.saturating_sub(1).max(1) as f64 } else { 1.0 };
        for at in 0..count {
            let place = at as f64 * unit;
            let terms = self.terms.iter().zip(&factors);
            told.values.push(terms.map(|(term, factor)| term.at(place, self.term_kind) * factor).sum());
        }
        let mut at = start + self.exact;
        for bin in &self.bins {
            let (bytes, after) = rest.split_at(bin.bytes());
            let (scale, elements) = bytes.split_at(bin.scale_kind.bytes());
            let scale = bin.scale_kind.read(scale);
            for (value, element) in
                told.values[at..].iter_mut().zip(from_bytes(elements, bin.bits, bin.count))
            {
                let element = if bin.bits == 1 {
                    element as f64 * 2.0 - 1.0
                } else {
                    element as f64 - 2f64.powi(bin.bits as i32 - 1)
                };
                *value += element * scale;
            }
            (at, rest) = (at + bin.count, after);
        }
        if self.are_deltas {
            let mut sum = 0.0;
            for value in &mut told.values[start..] {
                sum += *value;
                *value = sum;
            }
        }
        Ok(())
    }
}
