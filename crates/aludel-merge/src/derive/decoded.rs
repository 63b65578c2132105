//! Makes the elements of tensors that a checkpoint does not store as plain numbers: blocks of GGUF, FP8 with scales, views.
//!
//! The arithmetic is [`Encoded`]'s; here it becomes an input of a merge.

use std::ops::Range;

use aludel_checkpoint::Encoded;

use super::{Derivation, Passed, Show, Stored, Weights};

/// A tensor that is decoded while it is read.
#[derive(Debug)]
pub(crate) struct Decoded {
    stored: Stored,
    encoded: Encoded,
}

impl Decoded {
    /// The tensor of that name of a source.
    pub(crate) fn new(source: usize, name: &str, encoded: &Encoded) -> Self {
        Self { stored: Stored { source, tensor: name.to_owned() }, encoded: encoded.clone() }
    }
}

impl Derivation for Decoded {
    fn describe(&self) -> String {
        format!("decoded from {}", self.encoded.describe())
    }

    fn reads(&self) -> Vec<Stored> {
        vec![self.stored.clone()]
    }

    fn resident(&self) -> u64 {
        self.encoded.resident_bytes()
    }

    fn make(&self, weights: &Weights<'_>, start: u64, to: &mut [f32]) {
        let elements = start..start + to.len() as u64;
        self.encoded.fill(&weights.maps[self.stored.source], elements, to);
    }

    fn locate(&self, _: &Weights<'_>, elements: &Range<u64>, show: &mut Show<'_>) {
        if let Some((entry, bytes)) = self.encoded.locate(elements) {
            show(self.stored.source, entry, bytes);
        }
    }

    fn release(&self, weights: &Weights<'_>, passed: &Passed) {
        let map = &weights.maps[self.stored.source];
        self.encoded.release(map, passed.elements.clone(), passed.is_end);
    }
}
