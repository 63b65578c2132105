//! Says what a delta is of: `delta.json`.

use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use crate::CHUNK;
use crate::chunk::element;
use aludel_kernels::element::Element;

/// Says what the delta is of.
pub const HEADER_FILE: &str = "delta.json";
/// Where each chunk lies, 16 bytes for each: offset (8), length with the highest bit set for whole bytes and the next for FP8 (4), CRC-32C of what comes back (4),
/// all with the lowest byte first.
pub const INDEX_FILE: &str = "delta.index";
/// The chunks, in any order.
pub const DATA_FILE: &str = "delta.bin";

/// What a delta is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Of this description: 1, or 2 where chunks may be of FP8.
    pub format: u32,
    /// What wrote it.
    pub tool: String,
    /// The base, as its reference was written.
    pub base: String,
    /// The tensors of the model; their chunks follow one another in the index.
    pub tensors: Vec<DeltaTensor>,
    /// Bytes of the chunks together.
    pub data_bytes: u64,
    /// The CRC-32C of the index.
    pub index_crc32c: u32,
}

/// A tensor of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaTensor {
    /// Its name, in the base as well.
    pub name: String,
    /// Type of one element.
    pub dtype: Dtype,
    /// Sides, slowest first.
    pub shape: Vec<usize>,
    /// The CRC-32C of the base's tensor, rounded to this type; `None` where the tensor is stored without a base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_crc32c: Option<u32>,
}

impl DeltaTensor {
    /// How its elements are told apart; `None` for types that are stored as bytes alone.
    pub const fn element(&self) -> Option<Element> {
        element(self.dtype)
    }

    /// How many elements it has; `None` where that overflows.
    pub fn elements(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |elements, &side| elements.checked_mul(side as u64))
    }

    /// How many chunks it has.
    pub fn chunks(&self) -> Option<u64> {
        Some(self.elements()?.div_ceil(CHUNK))
    }
}

/// What the values of a delta are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// All bits come back.
    Exact,
    /// What is added to the base is rounded to FP8 where that takes less.
    Fp8,
}

impl Values {
    /// The format of deltas that hold them.
    pub(crate) const fn format(self) -> u32 {
        match self {
            Self::Exact => 1,
            Self::Fp8 => 2,
        }
    }
}

/// The latest format that is read.
pub(crate) const LATEST: u32 = Values::Fp8.format();
