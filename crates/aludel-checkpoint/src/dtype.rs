//! Answers questions about element types: which ones a merge computes on, how large they are, what torch calls them.
//!
//! It converts no values.

use safetensors::Dtype;

/// Whether a merge computes on this type: F32, F16 and BF16. Every other type can only be copied.
pub fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Bytes that one element occupies, and so its alignment in a file; 1 for the types of less than a byte.
pub fn element_bytes(dtype: Dtype) -> u64 {
    (dtype.bitsize() as u64).div_ceil(8)
}

/// Bytes of a tensor of this type and shape; `None` when that overflows or is no whole number of bytes.
pub fn tensor_bytes(dtype: Dtype, shape: &[usize]) -> Option<u64> {
    let elements = shape.iter().try_fold(1u64, |product, &side| product.checked_mul(side as u64))?;
    let bits = elements.checked_mul(dtype.bitsize() as u64)?;
    (bits % 8 == 0).then_some(bits / 8)
}

/// The name of a type in `config.json`, as torch spells it ("bfloat16"); `None` for types that no model's weights
/// are declared to have as a whole.
pub fn torch_name(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        Dtype::F64 => Some("float64"),
        Dtype::F32 => Some("float32"),
        Dtype::F16 => Some("float16"),
        Dtype::BF16 => Some("bfloat16"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_computes_on_three_types() {
        let floats: Vec<Dtype> =
            [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F8_E4M3, Dtype::I64, Dtype::BOOL]
                .into_iter()
                .filter(|&dtype| is_float(dtype))
                .collect();
        assert_eq!(floats, [Dtype::F32, Dtype::F16, Dtype::BF16]);
    }

    #[test]
    fn sizes_are_whole_bytes_or_none() {
        assert_eq!(tensor_bytes(Dtype::BF16, &[3, 5]), Some(30));
        assert_eq!(tensor_bytes(Dtype::F64, &[]), Some(8));
        assert_eq!(tensor_bytes(Dtype::F32, &[7, 0]), Some(0));
        assert_eq!(tensor_bytes(Dtype::F4, &[2]), Some(1));
        assert_eq!(tensor_bytes(Dtype::F4, &[3]), None);
        assert_eq!(tensor_bytes(Dtype::U8, &[usize::MAX, 2]), None);
        assert_eq!(tensor_bytes(Dtype::F32, &[usize::MAX / 2]), None);
    }

    #[test]
    fn elements_of_less_than_a_byte_are_aligned_to_one() {
        assert_eq!([Dtype::F4, Dtype::F6_E2M3, Dtype::BF16, Dtype::C64].map(element_bytes), [1, 1, 2, 8]);
    }
}
