//! Draws tensors at random, and adds noise to others: numbers that depend on a stream's key and an element's position alone.

use std::ops::Range;

use aludel_kernels::cpu::BLOCK;
use aludel_kernels::normal::fill_normal;
use aludel_kernels::random::{StreamKey, uniform};

use super::{Derivation, Passed, Readable, Show, Stored, Weights};

/// A tensor of random numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Drawn {
    /// Normal ones of deviation 1.
    Normal(StreamKey),
    /// Uniform ones from `-bound` to `bound`.
    Uniform { key: StreamKey, bound: f32 },
}

impl Derivation for Drawn {
    fn describe(&self) -> String {
        match self {
            Self::Normal(_) => "drawn from a normal distribution".to_owned(),
            Self::Uniform { bound, .. } => format!("drawn evenly from -{bound} to {bound}"),
        }
    }

    fn reads(&self) -> Vec<Stored> {
        Vec::new()
    }

    fn make(&self, _: &Weights<'_>, start: u64, to: &mut [f32]) {
        match *self {
            Self::Normal(key) => fill_normal(key, start, 1.0, to),
            Self::Uniform { key, bound } => {
                for (at, to) in (start..).zip(to) {
                    *to = (2.0 * uniform(key, at) - 1.0) * bound;
                }
            }
        }
    }

    fn release(&self, _: &Weights<'_>, _: &Passed) {}
}

/// A tensor with normal noise added.
#[derive(Debug)]
pub(crate) struct Noisy {
    pub weight: Readable,
    pub deviation: f32,
    pub key: StreamKey,
}

impl Derivation for Noisy {
    fn describe(&self) -> String {
        let of = self.weight.describe().map_or_else(String::new, |inner| format!("{inner} and "));
        format!("{of}with noise of deviation {}", self.deviation)
    }

    fn reads(&self) -> Vec<Stored> {
        self.weight.reads()
    }

    fn resident(&self) -> u64 {
        self.weight.resident()
    }

    fn make(&self, weights: &Weights<'_>, start: u64, to: &mut [f32]) {
        self.weight.read(weights, start, to);
        let mut noise = [0.0; BLOCK];
        let noise = &mut noise[..to.len()];
        fill_normal(self.key, start, self.deviation, noise);
        to.iter_mut().zip(noise).for_each(|(to, noise)| *to += *noise);
    }

    fn locate(&self, weights: &Weights<'_>, elements: &Range<u64>, show: &mut Show<'_>) {
        self.weight.locate(weights, elements, show);
    }

    fn release(&self, weights: &Weights<'_>, passed: &Passed) {
        self.weight.release(weights, passed);
    }
}
