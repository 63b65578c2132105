//! Knows the block quantisations of GGUF and turns whole blocks into f32.
//!
//! In: the bytes of whole blocks. Out: their values. The arithmetic of the quantised types is candle's; the plain float
//! types are decoded here. Lattice types (IQ*), ternary and micro-scaled ones are known by name only, to be refused.

use std::borrow::Cow;

use candle_core::CpuStorage;
use candle_core::quantized::GgmlDType;
use half::{bf16, f16};

/// How the elements of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the format's own names")]
#[expect(non_camel_case_types, reason = "the format's own names")]
#[non_exhaustive]
pub enum BlockType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
}

impl BlockType {
    /// The type with this number in a file; `None` for those that are not read.
    pub(super) fn parse(id: u32) -> Option<Self> {
        TYPES.iter().find(|known| known.id == id).map(|known| known.block)
    }

    /// The format's name of the type, as in "Q4_K".
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// Elements of one block; 1 for the plain float types.
    pub fn elements(self) -> u64 {
        self.facts().elements
    }

    /// Bytes of one block.
    pub fn bytes(self) -> u64 {
        self.facts().bytes
    }

    /// Decodes whole blocks and appends their elements to `values`. `bytes` must start at an address that is a multiple
    /// of [`BLOCK_ALIGNMENT`], which candle asks for.
    ///
    /// Errors: a sentence, when the bytes are no whole number of blocks or candle refuses them.
    pub(super) fn decode(self, bytes: &[u8], values: &mut Vec<f32>) -> Result<(), String> {
        if !(bytes.len() as u64).is_multiple_of(self.bytes()) {
            return Err(format!("{} bytes are no whole number of {} blocks", bytes.len(), self.name()));
        }
        match self {
            Self::F32 => values.extend(words(bytes).map(f32::from_le_bytes)),
            Self::F16 => values.extend(words(bytes).map(|word| f16::from_le_bytes(word).to_f32())),
            Self::BF16 => values.extend(words(bytes).map(|word| bf16::from_le_bytes(word).to_f32())),
            _ => values.extend_from_slice(&self.dequantise(bytes)?),
        }
        Ok(())
    }

    /// Decodes whole blocks at any address into as many elements: where an address is no multiple of what candle asks for, they are
    /// copied into `room` first. Blocks that candle refuses become NaN, which whoever computes with them tells.
    ///
    /// # Panics
    /// Where `to` is of another length.
    pub(crate) fn decode_into(self, bytes: &[u8], room: &mut Vec<u8>, to: &mut [f32]) {
        let is_aligned = bytes.as_ptr().align_offset(BLOCK_ALIGNMENT) == 0;
        let bytes = if is_aligned { bytes } else { aligned(bytes, room) };
        match self {
            Self::F32 => each(bytes, to, f32::from_le_bytes),
            Self::F16 => each(bytes, to, |word| f16::from_le_bytes(word).to_f32()),
            Self::BF16 => each(bytes, to, |word| bf16::from_le_bytes(word).to_f32()),
            _ => match self.dequantise(bytes) {
                Ok(values) => to.copy_from_slice(&values),
                Err(_) => to.fill(f32::NAN),
            },
        }
    }

    fn dequantise(self, bytes: &[u8]) -> Result<Vec<f32>, String> {
        let Some(candle) = self.facts().candle else {
            return Err(format!("{} is not quantised", self.name()));
        };
        let elements = bytes.len() as u64 / self.bytes() * self.elements();
        let elements = usize::try_from(elements).map_err(|error| error.to_string())?;
        match candle.from_data(Cow::Borrowed(bytes)).dequantize(elements) {
            Ok(CpuStorage::F32(values)) => Ok(values),
            Ok(_) => Err(format!("{} was not decoded to f32", self.name())),
            Err(error) => Err(error.to_string()),
        }
    }

    fn facts(self) -> &'static Facts {
        // A test holds every type against the table; the first row is never reached by a type that is missing.
        TYPES.iter().find(|known| known.block == self).unwrap_or(&TYPES[0])
    }
}

fn each<const BYTES: usize>(bytes: &[u8], to: &mut [f32], value: impl Fn([u8; BYTES]) -> f32) {
    to.iter_mut().zip(words(bytes)).for_each(|(to, word)| *to = value(word));
}

/// A copy of bytes at an aligned place in `room`.
fn aligned<'r>(bytes: &[u8], room: &'r mut Vec<u8>) -> &'r [u8] {
    room.resize(bytes.len() + BLOCK_ALIGNMENT, 0);
    let skip = room.as_ptr().align_offset(BLOCK_ALIGNMENT).min(BLOCK_ALIGNMENT);
    let copy = &mut room[skip..skip + bytes.len()];
    copy.copy_from_slice(bytes);
    copy
}

/// What candle's block structures ask of an address: Q8_K begins with an f32.
pub(super) const BLOCK_ALIGNMENT: usize = 4;

/// The name of a type that is not read, for the message that says so.
pub(super) fn unread_name(id: u32) -> String {
    UNREAD
        .iter()
        .find(|(known, _)| *known == id)
        .map_or_else(|| format!("type {id}"), |(_, name)| (*name).to_owned())
}

fn words<const BYTES: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; BYTES]> + '_ {
    bytes.as_chunks::<BYTES>().0.iter().copied()
}

/// One row of the table of types.
struct Facts {
    block: BlockType,
    id: u32,
    name: &'static str,
    elements: u64,
    bytes: u64,
    /// The library's name of the type; `None` where it is decoded here.
    candle: Option<GgmlDType>,
}

const fn plain(block: BlockType, id: u32, name: &'static str, bytes: u64) -> Facts {
    Facts { block, id, name, elements: 1, bytes, candle: None }
}

const fn blocks(
    block: BlockType,
    id: u32,
    name: &'static str,
    elements: u64,
    bytes: u64,
    candle: GgmlDType,
) -> Facts {
    Facts { block, id, name, elements, bytes, candle: Some(candle) }
}

/// Numbers and sizes as the format defines them.
const TYPES: [Facts; 15] = [
    plain(BlockType::F32, 0, "F32", 4),
    plain(BlockType::F16, 1, "F16", 2),
    plain(BlockType::BF16, 30, "BF16", 2),
    blocks(BlockType::Q4_0, 2, "Q4_0", 32, 18, GgmlDType::Q4_0),
    blocks(BlockType::Q4_1, 3, "Q4_1", 32, 20, GgmlDType::Q4_1),
    blocks(BlockType::Q5_0, 6, "Q5_0", 32, 22, GgmlDType::Q5_0),
    blocks(BlockType::Q5_1, 7, "Q5_1", 32, 24, GgmlDType::Q5_1),
    blocks(BlockType::Q8_0, 8, "Q8_0", 32, 34, GgmlDType::Q8_0),
    blocks(BlockType::Q8_1, 9, "Q8_1", 32, 36, GgmlDType::Q8_1),
    blocks(BlockType::Q2_K, 10, "Q2_K", 256, 84, GgmlDType::Q2K),
    blocks(BlockType::Q3_K, 11, "Q3_K", 256, 110, GgmlDType::Q3K),
    blocks(BlockType::Q4_K, 12, "Q4_K", 256, 144, GgmlDType::Q4K),
    blocks(BlockType::Q5_K, 13, "Q5_K", 256, 176, GgmlDType::Q5K),
    blocks(BlockType::Q6_K, 14, "Q6_K", 256, 210, GgmlDType::Q6K),
    blocks(BlockType::Q8_K, 15, "Q8_K", 256, 292, GgmlDType::Q8K),
];

const UNREAD: [(u32, &str); 25] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_agree_with_the_library_that_decodes() {
        for row in &TYPES {
            assert_eq!(BlockType::parse(row.id), Some(row.block));
            assert_eq!(row.block.name(), row.name);
            if let Some(candle) = row.candle {
                assert_eq!(
                    (candle.block_size() as u64, candle.type_size() as u64),
                    (row.elements, row.bytes),
                    "{}",
                    row.name
                );
            }
        }
    }

    #[test]
    fn types_that_are_not_read_have_names() {
        assert_eq!(unread_name(23), "IQ4_XS");
        assert_eq!(unread_name(999), "type 999");
        assert!(UNREAD.iter().all(|(id, _)| BlockType::parse(*id).is_none()));
    }

    #[test]
    fn a_block_of_q8_0_is_its_scale_times_its_integers() {
        let mut block = f16::from_f32(0.25).to_le_bytes().to_vec();
        block.extend((0..32).map(|index| (index - 16) as u8));
        let mut values = Vec::new();
        BlockType::Q8_0.decode(&block, &mut values).unwrap();
        let expected: Vec<f32> = (0..32).map(|index| 0.25 * (index - 16) as f32).collect();
        assert_eq!(values, expected);
    }

    #[test]
    fn half_a_block_is_refused() {
        let message = BlockType::Q4_0.decode(&[0; 17], &mut Vec::new()).unwrap_err();
        assert_eq!(message, "17 bytes are no whole number of Q4_0 blocks");
    }
}
