//! Adds a multiple of one vector to another while it is read: a LoRA with a bias of its own changes its module's bias by
//! `s` times that.

use std::ops::Range;

use aludel_kernels::cpu::BLOCK;

use super::{Derivation, Passed, Readable, Show, Stored, Weights};

/// `x + scale * by`.
#[derive(Debug)]
pub(crate) struct Shifted {
    pub vector: Readable,
    pub by: Stored,
    pub scale: f32,
    /// What the adapter is called, for people.
    pub adapter: String,
}

impl Derivation for Shifted {
    fn describe(&self) -> String {
        let of = self.vector.describe().map_or_else(String::new, |inner| format!("{inner} and "));
        format!("{of}with the bias of adapter `{}`", self.adapter)
    }

    fn reads(&self) -> Vec<Stored> {
        let mut reads = self.vector.reads();
        reads.push(self.by.clone());
        reads
    }

    fn resident(&self) -> u64 {
        self.vector.resident()
    }

    fn make(&self, weights: &Weights<'_>, start: u64, to: &mut [f32]) {
        self.vector.read(weights, start, to);
        let mut by = [0.0; BLOCK];
        let by = &mut by[..to.len()];
        weights.read(&self.by, start, by);
        to.iter_mut().zip(by).for_each(|(to, by)| *to += *by * self.scale);
    }

    fn locate(&self, weights: &Weights<'_>, elements: &Range<u64>, show: &mut Show<'_>) {
        self.vector.locate(weights, elements, show);
    }

    fn release(&self, weights: &Weights<'_>, passed: &Passed) {
        self.vector.release(weights, passed);
        weights.release(&self.by, passed);
    }
}
