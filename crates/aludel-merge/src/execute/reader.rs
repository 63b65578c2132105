//! Gives a step's units the bytes of its inputs, without copying them.

use std::ops::Range;

use aludel_checkpoint::{Dtype, TensorEntry, WeightMap, element_bytes};
use aludel_kernels::cpu::{Scratch, Source, Wave};
use aludel_kernels::element::Element;
use aludel_kernels::random::StreamKey;
use sha2::{Digest, Sha256};

use super::MergeError;
use super::queue::Passed;
use crate::plan::{Plan, Step};

/// The inputs of a step.
pub(super) struct StepSource<'a> {
    plan: &'a Plan,
    step: &'a Step,
    inputs: Vec<Input<'a>>,
    /// Elements from the first on whose pages stay mapped.
    kept: u64,
}

struct Input<'a> {
    map: &'a WeightMap,
    entry: &'a TensorEntry,
    element: Element,
    width: u64,
}

impl<'a> StepSource<'a> {
    pub(super) fn new(plan: &'a Plan, maps: &'a [WeightMap], step: usize, kept: u64) -> Self {
        let step = &plan.steps[step];
        let input = |input: &'a crate::plan::StepInput| {
            let entry = plan.checkpoint(input).tensor(&input.tensor)?;
            let element = element_of(entry.dtype).unwrap_or(Element::F32);
            Some(Input { map: &maps[input.source], entry, element, width: element_bytes(entry.dtype) })
        };
        Self { plan, step, inputs: step.inputs.iter().filter_map(input).collect(), kept }
    }

    /// Bytes of one element of the output.
    pub(super) fn output_width(&self) -> usize {
        element_bytes(self.step.dtype) as usize
    }

    /// Runs a unit of a wave.
    pub(super) fn run(
        &self,
        wave: &Wave,
        unit: usize,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<(), MergeError> {
        wave.run(unit, self, scratch, out).map_err(|found| {
            let input = &self.step.inputs[found.input];
            let model = self.plan.sources[input.source].model.clone();
            MergeError::NonFinite {
                tensor: input.tensor.clone(),
                model,
                index: found.index,
                value: found.value,
            }
        })
    }

    /// Copies elements that are the same in all inputs.
    pub(super) fn copy(&self, elements: Range<u64>, out: &mut [u8]) -> Result<(), MergeError> {
        for (index, input) in self.inputs.iter().enumerate() {
            let bytes = input.map.bytes(input.entry, input.range(&elements));
            if index == 0 {
                out.copy_from_slice(bytes);
            } else if bytes != out {
                let model = |index: usize| self.plan.sources[self.step.inputs[index].source].model.clone();
                let tensor = self.step.tensor.clone();
                return Err(MergeError::Disagree { tensor, first: model(0), second: model(index) });
            }
        }
        Ok(())
    }

    /// Asks for elements that will be needed soon.
    pub(super) fn prefetch(&self, reads: &[u16], elements: &Range<u64>) {
        for input in reads.iter().map(|&input| &self.inputs[usize::from(input)]) {
            input.map.prefetch(input.entry, input.range(elements));
        }
    }

    /// Gives back the pages of elements that a sweep has passed, those that an earlier sweep has kept among them.
    pub(super) fn release_passed(&self, passed: &Passed) {
        for input in &self.inputs {
            let range = input.range(&passed.elements);
            if passed.is_end {
                input.map.release(input.entry, range);
            } else {
                input.map.release_passed(input.entry, range);
            }
        }
    }
}

impl Input<'_> {
    fn range(&self, elements: &Range<u64>) -> Range<u64> {
        elements.start * self.width..elements.end * self.width
    }
}

impl Source for StepSource<'_> {
    fn element(&self, input: usize) -> Element {
        self.inputs[input].element
    }

    fn bytes(&self, input: usize, elements: Range<u64>) -> &[u8] {
        let input = &self.inputs[input];
        input.map.bytes(input.entry, input.range(&elements))
    }

    fn gather(&self, input: usize, elements: Range<u64>, to: &mut [u8]) {
        let input = &self.inputs[input];
        input.map.copy(input.entry, input.range(&elements), to);
    }

    fn release(&self, input: usize, elements: Range<u64>) {
        if elements.end > self.kept {
            let input = &self.inputs[input];
            input.map.release(input.entry, input.range(&elements));
        }
    }
}

/// How a type is computed on; `None` for types that are copied.
pub(super) const fn element_of(dtype: Dtype) -> Option<Element> {
    match dtype {
        Dtype::F32 => Some(Element::F32),
        Dtype::F16 => Some(Element::F16),
        Dtype::BF16 => Some(Element::BF16),
        _ => None,
    }
}

/// The keys of a tensor's random streams: the first eight bytes, little-endian, of the SHA-256 of the seed (u64,
/// little-endian), the stream (u32, little-endian) and the tensor's name.
pub(super) fn stream_keys(seed: u64, tensor: &str, streams: usize) -> Vec<StreamKey> {
    let key = |stream: u32| {
        let digest = Sha256::new()
            .chain_update(seed.to_le_bytes())
            .chain_update(stream.to_le_bytes())
            .chain_update(tensor.as_bytes())
            .finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        StreamKey(u64::from_le_bytes(first))
    };
    (0..streams as u32).map(key).collect()
}
