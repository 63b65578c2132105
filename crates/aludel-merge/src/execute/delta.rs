//! Codes tiles of the output as what they differ by from the base model.

use aludel_checkpoint::element_bytes;
use aludel_delta::chunk::{Coded, encode};
use aludel_delta::fp8::encode_fp8;
use aludel_delta::{CHUNK, DeltaTensor, Values};
use crc32c::crc32c;

use crate::derive::Weights;
use crate::plan::{DeltaPlan, Plan, Step, element_of};

/// Codes tiles of a plan's output.
#[derive(Clone, Copy)]
pub(super) struct Coder<'a> {
    plan: &'a Plan,
    delta: &'a DeltaPlan,
    weights: Weights<'a>,
}

/// A coded chunk.
pub(super) struct Chunk {
    pub coded: Coded,
    /// The CRC-32C of the base's bytes, and how many there are; `None` without a base.
    pub base: Option<(u32, usize)>,
}

impl<'a> Coder<'a> {
    /// For a plan whose output is a delta.
    pub(super) fn of(plan: &'a Plan, weights: Weights<'a>) -> Option<Self> {
        Some(Self { plan, delta: plan.delta.as_ref()?, weights })
    }

    /// The chunks of a tile, which begins at a chunk's first element.
    pub(super) fn code(&self, step: usize, offset: u64, bytes: &[u8]) -> Vec<Chunk> {
        let dtype = self.plan.steps[step].dtype;
        let width = element_bytes(dtype) as usize;
        let base = self.delta.tensors.get(&self.plan.steps[step].tensor).zip(element_of(dtype));
        let mut values = vec![0.0; if base.is_some() { CHUNK as usize } else { 0 }];
        let mut start = offset / width as u64;
        let mut chunks = Vec::new();
        for bytes in bytes.chunks(CHUNK as usize * width) {
            let count = bytes.len() / width;
            chunks.push(match &base {
                Some((base, element)) => {
                    base.read(&self.weights, start, &mut values[..count]);
                    let base = element.encode(&values[..count]);
                    let coded = match self.delta.values {
                        Values::Exact => encode(bytes, Some((&base, *element))),
                        Values::Fp8 => encode_fp8(bytes, &base, *element),
                    };
                    Chunk { coded, base: Some((crc32c(&base), base.len())) }
                }
                None => Chunk { coded: encode(bytes, None), base: None },
            });
            start += count as u64;
        }
        chunks
    }
}

/// The tensors of a plan's output, as a delta has them.
pub(super) fn tensors(plan: &Plan) -> Vec<DeltaTensor> {
    let tensor = |step: &Step| DeltaTensor {
        name: step.tensor.clone(),
        dtype: step.dtype,
        shape: step.shape.clone(),
        base_crc32c: None,
    };
    plan.steps.iter().map(tensor).collect()
}
