//! Puts a tensor of another source in the place of a model's: a module that an adapter has saved whole.

use std::ops::Range;

use super::{Derivation, Passed, Readable, Show, Stored, Weights};

/// A tensor that is another one.
#[derive(Debug)]
pub(crate) struct Saved {
    pub by: Readable,
    /// Where it is from, for people.
    pub from: String,
}

impl Derivation for Saved {
    fn describe(&self) -> String {
        let of = self.by.describe().map_or_else(String::new, |inner| format!("{inner}, "));
        format!("{of}taken from `{}`", self.from)
    }

    fn reads(&self) -> Vec<Stored> {
        self.by.reads()
    }

    fn resident(&self) -> u64 {
        self.by.resident()
    }

    fn make(&self, weights: &Weights<'_>, start: u64, to: &mut [f32]) {
        self.by.read(weights, start, to);
    }

    fn locate(&self, weights: &Weights<'_>, elements: &Range<u64>, show: &mut Show<'_>) {
        self.by.locate(weights, elements, show);
    }

    fn release(&self, weights: &Weights<'_>, passed: &Passed) {
        self.by.release(weights, passed);
    }
}
