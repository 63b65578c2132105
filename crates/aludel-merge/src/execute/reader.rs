//! Gives a step's units the bytes of its inputs, without copying them.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use aludel_checkpoint::{TensorEntry, WeightMap, element_bytes};
use aludel_kernels::cpu::{Scratch, Source, Wave, decode_stored};
use aludel_kernels::element::Element;

use super::MergeError;
use super::windows::Windows;
use crate::derive::{self, Made, Passed, Weights};
use crate::plan::{Plan, Step, StepInput, element_of};

/// The inputs of a step.
pub(super) struct StepSource<'a> {
    plan: &'a Plan,
    step: &'a Step,
    weights: Weights<'a>,
    inputs: Vec<Input<'a>>,
    /// Elements from the first on whose pages stay mapped.
    kept: u64,
    /// Counts bytes that are copied as they are.
    copied: &'a AtomicU64,
}

enum Input<'a> {
    Stored(StoredInput<'a>),
    Made(&'a Made),
}

struct StoredInput<'a> {
    map: &'a WeightMap,
    entry: &'a TensorEntry,
    element: Element,
    width: u64,
}

impl<'a> StepSource<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        weights: Weights<'a>,
        step: usize,
        kept: u64,
        copied: &'a AtomicU64,
    ) -> Self {
        let step = &plan.steps[step];
        let input = |input: &'a StepInput| {
            if let Some(made) = &input.made {
                return Some(Input::Made(made));
            }
            let entry = plan.checkpoint(input).tensor(&input.tensor)?;
            let element = element_of(entry.dtype).unwrap_or(Element::F32);
            let (map, width) = (&weights.maps[input.source], element_bytes(entry.dtype));
            Some(Input::Stored(StoredInput { map, entry, element, width }))
        };
        let inputs = step.inputs.iter().filter_map(input).collect();
        Self { plan, step, weights, inputs, kept, copied }
    }

    /// Bytes of one element of the output.
    pub(super) fn output_width(&self) -> usize {
        element_bytes(self.step.dtype) as usize
    }

    /// Runs a unit of a wave.
    ///
    /// # Errors
    /// What was made while the run was stopped is of no use: [`MergeError::Interrupted`].
    pub(super) fn run(
        &self,
        wave: &Wave,
        unit: usize,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<(), MergeError> {
        for (input, wanted) in self.inputs.iter().zip(&self.step.inputs) {
            let Input::Made(made) = input else { continue };
            let prepared = made.prepare(&self.weights);
            self.check_made()?;
            prepared.map_err(|reason| MergeError::NotMade { tensor: wanted.tensor.clone(), reason })?;
        }
        let done = wave.run(unit, self, scratch, out);
        self.check_made()?;
        done.map_err(|found| {
            let input = &self.step.inputs[found.input];
            let mut model = self.plan.sources[input.source].model.clone();
            if let Some(made) = &input.made {
                model = format!("{model} ({})", made.describe());
            }
            MergeError::NonFinite {
                tensor: input.tensor.clone(),
                model,
                index: found.index,
                value: found.value,
            }
        })
    }

    /// Whether inputs that are made could be.
    fn check_made(&self) -> Result<(), MergeError> {
        let is_made = self.inputs.iter().any(|input| matches!(input, Input::Made(_)));
        if is_made && self.weights.is_stopped() { Err(MergeError::Interrupted) } else { Ok(()) }
    }

    /// Copies elements that are the same in all inputs.
    pub(super) fn copy(&self, elements: Range<u64>, out: &mut [u8]) -> Result<(), MergeError> {
        for index in 0..self.inputs.len() {
            let input = self.stored(index);
            let bytes = input.map.bytes(input.entry, input.range(&elements));
            if index == 0 {
                self.copied.fetch_add(bytes.len() as u64, Relaxed);
                out.copy_from_slice(bytes);
            } else if bytes != out {
                let model = |index: usize| self.plan.sources[self.step.inputs[index].source].model.clone();
                let tensor = self.step.tensor.clone();
                return Err(MergeError::Disagree { tensor, first: model(0), second: model(index) });
            }
        }
        Ok(())
    }

    /// Copies stored bytes of an input, without mapping them.
    pub(super) fn copy_bytes(&self, input: usize, bytes: Range<u64>, to: &mut [u8]) {
        let input = self.stored(input);
        self.copied.fetch_add(to.len() as u64, Relaxed);
        input.map.copy(input.entry, bytes, to);
    }

    /// Adds where the elements of some of the inputs lie, or what they are made of.
    pub(super) fn locate(&self, inputs: &[u16], elements: &Range<u64>, windows: &mut Windows) {
        for &input in inputs {
            let input = usize::from(input);
            match &self.inputs[input] {
                Input::Stored(stored) => {
                    windows.add(self.step.inputs[input].source, stored.entry, stored.range(elements));
                }
                Input::Made(made) => made.locate(&self.weights, elements, &mut |source, entry, bytes| {
                    windows.add(source, entry, bytes);
                }),
            }
        }
    }

    /// As [`Self::locate`], of all inputs.
    pub(super) fn locate_all(&self, elements: &Range<u64>, windows: &mut Windows) {
        let inputs: Vec<u16> = (0..self.inputs.len() as u16).collect();
        self.locate(&inputs, elements, windows);
    }

    /// As [`Self::release_passed`], for all elements of the inputs that are made.
    pub(super) fn release_made(&self) {
        let passed = Passed { elements: 0..self.step.elements(), is_end: true };
        for input in &self.inputs {
            if let Input::Made(made) = input {
                made.release(&self.weights, &passed);
            }
        }
    }

    /// Gives back the pages of elements that a sweep has passed, those that an earlier sweep has kept among them.
    pub(super) fn release_passed(&self, passed: &Passed) {
        for input in &self.inputs {
            match input {
                Input::Stored(input) => derive::release(input.map, input.entry, input.width, passed),
                Input::Made(made) => made.release(&self.weights, passed),
            }
        }
    }

    /// An input of which bytes are asked for.
    fn stored(&self, input: usize) -> &StoredInput<'a> {
        match &self.inputs[input] {
            Input::Stored(stored) => stored,
            Input::Made(made) => unreachable!("bytes of a tensor that is {}", made.describe()),
        }
    }
}

impl StoredInput<'_> {
    fn range(&self, elements: &Range<u64>) -> Range<u64> {
        elements.start * self.width..elements.end * self.width
    }
}

impl Source for StepSource<'_> {
    fn element(&self, input: usize) -> Element {
        match &self.inputs[input] {
            Input::Stored(input) => input.element,
            Input::Made(_) => Element::F32,
        }
    }

    fn bytes(&self, input: usize, elements: Range<u64>) -> &[u8] {
        let input = self.stored(input);
        input.map.bytes(input.entry, input.range(&elements))
    }

    fn gather(&self, input: usize, elements: Range<u64>, to: &mut [u8]) {
        let input = self.stored(input);
        self.copied.fetch_add(to.len() as u64, Relaxed);
        input.map.copy(input.entry, input.range(&elements), to);
    }

    fn release(&self, input: usize, elements: Range<u64>) {
        if elements.end <= self.kept {
            return;
        }
        match &self.inputs[input] {
            Input::Stored(input) => input.map.release(input.entry, input.range(&elements)),
            Input::Made(made) => made.release(&self.weights, &Passed { elements, is_end: true }),
        }
    }

    fn is_made(&self, input: usize) -> bool {
        matches!(self.inputs[input], Input::Made(_))
    }

    fn make(&self, input: usize, start: u64, to: &mut [f32]) {
        match &self.inputs[input] {
            Input::Stored(input) => {
                let elements = start..start + to.len() as u64;
                decode_stored(input.element, input.map.bytes(input.entry, input.range(&elements)), to);
            }
            Input::Made(made) => made.make(&self.weights, start, to),
        }
    }
}
