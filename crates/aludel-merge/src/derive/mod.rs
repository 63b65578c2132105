//! Makes inputs that no checkpoint stores as they are computed on, while they are read.
//!
//! In: the mapped weights of the sources. Out: elements of a tensor in f32, a block at a time, so that such an input takes no
//! memory and no pass of its own. What it is made of is settled when the merge is planned. It computes no merge: a method
//! never learns whether its inputs are stored or made.

mod adapted;
mod aligned;
mod alignment;
mod assignment;
mod chance;
mod decoded;
mod fitted;
mod given;
mod panels;
mod prompted;
pub(crate) mod rows;
mod saved;
mod shifted;
mod transplanted;

pub(crate) use adapted::{Adapted, Orientation};
pub(crate) use aligned::Reordered;
pub use alignment::Aligned;
pub(crate) use alignment::{Alignment, Experts, Moving};
pub(crate) use assignment::MOST_EXPERTS;
pub(crate) use chance::{Drawn, Noisy};
pub(crate) use decoded::Decoded;
pub(crate) use fitted::{Fitted, Fitting};
pub(crate) use given::Given;
pub(crate) use prompted::{PromptRows, Prompted};
pub(crate) use saved::Saved;
pub(crate) use shifted::Shifted;
pub(crate) use transplanted::{By, EMPTY, Fill, NEW, Pursued, Transplanted};

use std::fmt::Debug;
use std::hash::{Hash, Hasher};
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use aludel_checkpoint::{TensorEntry, WeightMap};
use aludel_kernels::cpu::{BLOCK, decode_stored};
use aludel_kernels::element::Element;
use serde::{Serialize, Serializer};

use crate::plan::{Source, element_of};

/// A tensor whose elements are made of stored ones.
pub(crate) trait Derivation: Debug + Send + Sync {
    /// How, for people: the end of "x0 is …".
    fn describe(&self) -> String;

    /// The stored tensors that it is made of.
    fn reads(&self) -> Vec<Stored>;

    /// Bytes that it keeps in memory while its tensor is merged, beyond windows of what it reads.
    fn resident(&self) -> u64 {
        0
    }

    /// The order of experts that it depends on.
    fn alignment(&self) -> Option<&Arc<Alignment>> {
        None
    }

    /// Does what has to be done once before elements can be made; where that is done, nothing. Called before each unit.
    ///
    /// # Errors
    /// Why they cannot be made, for people: the end of "`tensor` ...".
    fn prepare(&self, weights: &Weights<'_>) -> Result<(), String> {
        let _ = weights;
        Ok(())
    }

    /// Makes consecutive elements of the tensor from `start` on, flat and row-major, at most a block of them: the same bits
    /// however they are cut into ranges. They are finite where all that is stored is. When the run is stopped they are anything.
    fn make(&self, weights: &Weights<'_>, start: u64, to: &mut [f32]);

    /// Shows where what these elements are made of lies, as far as that is in their order and so worth reading ahead of them.
    fn locate(&self, weights: &Weights<'_>, elements: &Range<u64>, show: &mut Show<'_>) {
        let _ = (weights, elements, show);
    }

    /// Gives back the pages of what was read for these elements, which a sweep has passed.
    fn release(&self, weights: &Weights<'_>, passed: &Passed);
}

/// Is shown a source, a tensor of it, and bytes of that.
pub(crate) type Show<'a> = dyn FnMut(usize, &TensorEntry, Range<u64>) + 'a;

/// A stored tensor of a source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Stored {
    /// The position among [`Plan::sources`](crate::plan::Plan::sources).
    pub source: usize,
    /// Its name there.
    pub tensor: String,
}

/// Elements of a tensor that a sweep has passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Passed {
    pub elements: Range<u64>,
    /// Whether they reach the end of the tensor.
    pub is_end: bool,
}

/// A derivation as a value: two are the same where they are one.
#[derive(Clone, Debug)]
pub(crate) struct Made(Arc<dyn Derivation>);

impl Made {
    pub(crate) fn by(derivation: impl Derivation + 'static) -> Self {
        Self(Arc::new(derivation))
    }
}

impl Deref for Made {
    type Target = dyn Derivation;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl PartialEq for Made {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Made {}

impl Hash for Made {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).cast::<()>().hash(state);
    }
}

impl Serialize for Made {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.describe())
    }
}

/// A tensor that a derivation reads: stored, or made itself.
#[derive(Clone, Debug)]
pub(crate) struct Readable {
    pub stored: Stored,
    pub made: Option<Made>,
}

impl Readable {
    /// How it is made, if it is.
    pub(crate) fn describe(&self) -> Option<String> {
        self.made.as_ref().map(|made| made.describe())
    }

    /// The stored tensors that it is made of, or is.
    pub(crate) fn reads(&self) -> Vec<Stored> {
        self.made.as_ref().map_or_else(|| vec![self.stored.clone()], |made| made.reads())
    }

    /// As [`Derivation::resident`].
    pub(crate) fn resident(&self) -> u64 {
        self.made.as_ref().map_or(0, |made| made.resident())
    }

    /// Reads consecutive elements.
    pub(crate) fn read(&self, weights: &Weights<'_>, start: u64, to: &mut [f32]) {
        match &self.made {
            Some(made) => made.make(weights, start, to),
            None => weights.read(&self.stored, start, to),
        }
    }

    /// Reads a few consecutive elements without mapping what is stored, where the order of reading is any.
    pub(crate) fn copy(&self, weights: &Weights<'_>, start: u64, to: &mut [f32]) {
        match &self.made {
            Some(made) => made.make(weights, start, to),
            None => weights.copy(&self.stored, start, to),
        }
    }

    /// Asks for elements of what is stored that will be read soon.
    pub(crate) fn prefetch(&self, weights: &Weights<'_>, elements: Range<u64>) {
        if self.made.is_none() {
            let (map, entry, element) = weights.tensor(&self.stored);
            let width = element.size() as u64;
            let start = entry.offset;
            map.request(entry.file, &(start + elements.start * width..start + elements.end * width));
        }
    }

    /// As [`Derivation::locate`].
    pub(crate) fn locate(&self, weights: &Weights<'_>, elements: &Range<u64>, show: &mut Show<'_>) {
        match &self.made {
            Some(made) => made.locate(weights, elements, show),
            None => {
                let (_, entry, element) = weights.tensor(&self.stored);
                let width = element.size() as u64;
                show(self.stored.source, entry, elements.start * width..elements.end * width);
            }
        }
    }

    /// Gives back the pages of elements that a sweep has passed.
    pub(crate) fn release(&self, weights: &Weights<'_>, passed: &Passed) {
        match &self.made {
            Some(made) => made.release(weights, passed),
            None => weights.release(&self.stored, passed),
        }
    }
}

/// The weights of all sources, mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weights<'a> {
    /// What is mapped, in the order of the maps.
    pub sources: &'a [Source],
    /// A map for each source.
    pub maps: &'a [WeightMap],
    /// Set from outside to stop.
    stop: &'a AtomicBool,
}

impl<'a> Weights<'a> {
    /// Weights that are read to the end.
    pub(crate) const fn new(sources: &'a [Source], maps: &'a [WeightMap]) -> Self {
        static NEVER: AtomicBool = AtomicBool::new(false);
        Self { sources, maps, stop: &NEVER }
    }

    /// The same, read until the run is stopped.
    pub(crate) const fn until(self, stop: &'a AtomicBool) -> Self {
        Self { stop, ..self }
    }

    /// Whether the run has been stopped. What takes long gives up then: elements are of no use any more, and nothing of them is kept.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// A stored tensor, and how it is computed on.
    ///
    /// # Panics
    /// Where there is none of that name, or it is of a type that cannot be computed on: planning has refused both.
    fn tensor(&self, stored: &Stored) -> (&'a WeightMap, &'a TensorEntry, Element) {
        let (map, entry) = self.entry(stored);
        let Some(element) = element_of(entry.dtype) else { unreachable!("{} was refused", entry.dtype) };
        (map, entry, element)
    }

    /// A stored tensor of any type.
    ///
    /// # Panics
    /// Where there is none of that name: planning has refused it.
    pub(crate) fn entry(&self, stored: &Stored) -> (&'a WeightMap, &'a TensorEntry) {
        let entry = self.sources[stored.source].checkpoint.tensor(&stored.tensor);
        let Some(entry) = entry else { unreachable!("`{}` was planned", stored.tensor) };
        (&self.maps[stored.source], entry)
    }

    /// Reads consecutive elements of a stored tensor.
    pub(crate) fn read(&self, stored: &Stored, start: u64, to: &mut [f32]) {
        let (map, entry, element) = self.tensor(stored);
        let width = element.size() as u64;
        let range = start * width..(start + to.len() as u64) * width;
        decode_stored(element, map.bytes(entry, range), to);
    }

    /// As [`Readable::copy`], of a stored tensor.
    fn copy(&self, stored: &Stored, start: u64, to: &mut [f32]) {
        let (map, entry, element) = self.tensor(stored);
        let width = element.size();
        let mut bytes = [0; size_of::<f32>() * BLOCK];
        for (piece, to) in to.chunks_mut(BLOCK).enumerate() {
            let start = (start as usize + piece * BLOCK) * width;
            let bytes = &mut bytes[..to.len() * width];
            map.copy(entry, start as u64..(start + bytes.len()) as u64, bytes);
            decode_stored(element, bytes, to);
        }
    }

    /// The first elements of a stored tensor.
    pub(crate) fn first(&self, stored: &Stored, elements: usize) -> Vec<f32> {
        let mut values = vec![0.0; elements];
        self.read(stored, 0, &mut values);
        values
    }

    /// Gives back the pages of elements that a sweep has passed.
    pub(crate) fn release(&self, stored: &Stored, passed: &Passed) {
        let (map, entry, element) = self.tensor(stored);
        release(map, entry, element.size() as u64, passed);
    }
}

/// Gives back the pages of elements of `width` bytes that a sweep has passed.
pub(crate) fn release(map: &WeightMap, entry: &TensorEntry, width: u64, passed: &Passed) {
    let range = passed.elements.start * width..passed.elements.end * width;
    if passed.is_end {
        map.release(entry, range);
    } else {
        map.release_passed(entry, range);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts up from a number.
    #[derive(Debug)]
    struct Counting(f32);

    impl Derivation for Counting {
        fn describe(&self) -> String {
            format!("counted from {}", self.0)
        }
        fn reads(&self) -> Vec<Stored> {
            Vec::new()
        }
        fn make(&self, _: &Weights<'_>, start: u64, to: &mut [f32]) {
            to.iter_mut().zip(start..).for_each(|(to, at)| *to = self.0 + at as f32);
        }
        fn release(&self, _: &Weights<'_>, _: &Passed) {}
    }

    #[test]
    fn a_made_tensor_is_read_like_a_stored_one() {
        let weights = Weights::new(&[], &[]);
        let (made, other) = (Made::by(Counting(10.0)), Made::by(Counting(10.0)));
        let mut values = [0.0; 3];
        let stored = Stored { source: 0, tensor: "w".into() };
        Readable { stored, made: Some(made.clone()) }.read(&weights, 5, &mut values);
        assert_eq!(values, [15.0, 16.0, 17.0]);
        assert_eq!(made, made.clone());
        assert_ne!(made, other, "two derivations are two inputs");
    }
}
