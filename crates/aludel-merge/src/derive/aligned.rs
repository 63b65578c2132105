//! Puts the experts of a model in the order of another model's while they are read.
//!
//! In: an [`Alignment`], which knows the order or finds it. Out: elements of a tensor of one expert, or of a tensor in which all
//! experts lie one after another: stacked weights, a router's rows, a bias.

use std::ops::Range;
use std::sync::Arc;

use super::alignment::{Alignment, Experts};
use super::{Derivation, Passed, Readable, Show, Stored, Weights};

/// A tensor of a layer's experts in another order.
#[derive(Debug)]
pub(crate) struct Reordered {
    pub alignment: Arc<Alignment>,
    /// Which of what [moves](Alignment::moving) it is.
    pub moving: usize,
    /// The expert whose place it is, where each has a tensor of its own.
    pub place: Option<usize>,
}

impl Derivation for Reordered {
    fn describe(&self) -> String {
        let own = match self.experts() {
            Experts::Apart(tensors) => self.place.and_then(|place| tensors[place].describe()),
            Experts::Together(tensor) => tensor.describe(),
        };
        let of = own.map_or_else(String::new, |inner| format!("{inner} and "));
        format!("{of}with experts in the order of those of `{}`", self.alignment.reference)
    }

    /// Of experts that lie apart the one whose place it is: all places together read all experts.
    fn reads(&self) -> Vec<Stored> {
        match (self.experts(), self.place) {
            (Experts::Apart(tensors), Some(place)) => tensors[place].reads(),
            (Experts::Apart(tensors), None) => tensors.iter().flat_map(Readable::reads).collect(),
            (Experts::Together(tensor), _) => tensor.reads(),
        }
    }

    fn resident(&self) -> u64 {
        match self.experts() {
            Experts::Apart(tensors) => tensors.iter().map(Readable::resident).max().unwrap_or(0),
            Experts::Together(tensor) => tensor.resident(),
        }
    }

    fn alignment(&self) -> Option<&Arc<Alignment>> {
        Some(&self.alignment)
    }

    fn prepare(&self, weights: &Weights<'_>) -> Result<(), String> {
        self.alignment.order(weights).map(|_| ())
    }

    fn make(&self, weights: &Weights<'_>, start: u64, to: &mut [f32]) {
        let Ok(aligned) = self.alignment.order(weights) else {
            // Whoever made no use of `prepare` gets what is no number.
            return to.fill(f32::NAN);
        };
        let end = start + to.len() as u64;
        let mut rest = to;
        for (tensor, elements) in self.pieces(&aligned.order, start..end) {
            let (piece, others) = rest.split_at_mut((elements.end - elements.start) as usize);
            tensor.read(weights, elements.start, piece);
            rest = others;
        }
    }

    fn locate(&self, weights: &Weights<'_>, elements: &Range<u64>, show: &mut Show<'_>) {
        let Some(aligned) = self.alignment.order.known() else { return };
        for (tensor, elements) in self.pieces(&aligned.order, elements.clone()) {
            tensor.locate(weights, &elements, show);
        }
    }

    fn release(&self, weights: &Weights<'_>, passed: &Passed) {
        let Some(aligned) = self.alignment.order.known() else { return };
        let length = self.alignment.moving[self.moving].length;
        for (tensor, elements) in self.pieces(&aligned.order, passed.elements.clone()) {
            let is_end = passed.is_end || elements.end.is_multiple_of(length);
            tensor.release(weights, &Passed { elements, is_end });
        }
    }
}

impl Reordered {
    fn experts(&self) -> &Experts {
        &self.alignment.moving[self.moving].model
    }

    /// What elements are made of, in their order: tensors and elements of them.
    fn pieces<'a>(
        &'a self,
        order: &'a [usize],
        elements: Range<u64>,
    ) -> impl Iterator<Item = (&'a Readable, Range<u64>)> {
        let length = self.alignment.moving[self.moving].length;
        let first = self.place.unwrap_or(0) as u64 * length;
        let mut at = first + elements.start;
        let end = first + elements.end;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let (place, within) = (at / length, at % length);
            let taken = (length - within).min(end - at);
            at += taken;
            let (tensor, first) = self.experts().place(order[place as usize], length);
            Some((tensor, first + within..first + within + taken))
        })
    }
}
