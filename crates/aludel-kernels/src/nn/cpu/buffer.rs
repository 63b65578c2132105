//! Holds elements in memory: owned arrays, and bytes of somebody else that are used where they lie.
//!
//! In: lengths, values, shared bytes. Out: typed slices. Arithmetic is f32; 16-bit elements are decoded by whoever reads
//! them, block by block, never as a whole.

use std::ops::Range;

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use super::dispatch;
use crate::element::Element;
use crate::nn::device::SharedBytes;

/// A dense array of elements of one type in memory.
pub struct Buffer(Store);

enum Store {
    F32(Vec<f32>),
    /// Bits of f16 or bf16.
    Half(Vec<u16>, Element),
    /// Bytes that are aligned for their element and hold a whole number of them.
    Shared(SharedBytes, Element),
}

/// Elements to read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Values<'a> {
    F32(&'a [f32]),
    BF16(&'a [u16]),
    F16(&'a [u16]),
}

/// Elements to write.
pub(crate) enum ValuesMut<'a> {
    F32(&'a mut [f32]),
    BF16(&'a mut [u16]),
    F16(&'a mut [u16]),
}

impl Buffer {
    pub(crate) fn zeros(len: usize, element: Element) -> Self {
        Self(match element {
            Element::F32 => Store::F32(vec![0.0; len]),
            Element::F16 | Element::BF16 => Store::Half(vec![0; len], element),
        })
    }

    /// Uses the bytes where they lie if they are aligned (and the machine is little-endian); copies them otherwise. Bytes
    /// behind the last whole element are left out.
    pub(crate) fn import(bytes: SharedBytes, element: Element) -> Self {
        let raw = (*bytes).as_ref();
        let is_whole = raw.len() % element.size() == 0;
        let is_aligned = match element {
            Element::F32 => bytemuck::try_cast_slice::<u8, f32>(raw).is_ok(),
            Element::F16 | Element::BF16 => bytemuck::try_cast_slice::<u8, u16>(raw).is_ok(),
        };
        if is_whole && is_aligned && cfg!(target_endian = "little") {
            return Self(Store::Shared(bytes, element));
        }
        Self(match element {
            Element::F32 => Store::F32(element.decode(raw)),
            Element::F16 | Element::BF16 => {
                Store::Half(raw.as_chunks().0.iter().map(|&raw| u16::from_le_bytes(raw)).collect(), element)
            }
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.values().len()
    }

    pub(crate) fn element(&self) -> Element {
        match self.0 {
            Store::F32(_) => Element::F32,
            Store::Half(_, element) | Store::Shared(_, element) => element,
        }
    }

    /// The elements, whatever their type.
    pub(crate) fn values(&self) -> Values<'_> {
        let half =
            |bits, element| if element == Element::F16 { Values::F16(bits) } else { Values::BF16(bits) };
        match &self.0 {
            Store::F32(values) => Values::F32(values),
            Store::Half(bits, element) => half(bits, *element),
            // Aligned and whole, as `import` found, and owners of shared bytes do not move them; if one did, the cast would
            // panic rather than read wrong bytes.
            Store::Shared(bytes, Element::F32) => Values::F32(bytemuck::cast_slice((**bytes).as_ref())),
            Store::Shared(bytes, element) => half(bytemuck::cast_slice((**bytes).as_ref()), *element),
        }
    }

    /// The elements to write. Panics for imported bytes: they belong to somebody else.
    pub(crate) fn values_mut(&mut self) -> ValuesMut<'_> {
        match &mut self.0 {
            Store::F32(values) => ValuesMut::F32(values),
            Store::Half(bits, Element::F16) => ValuesMut::F16(bits),
            Store::Half(bits, _) => ValuesMut::BF16(bits),
            Store::Shared(..) => panic!("an imported buffer is not writable"),
        }
    }

    /// The elements of an f32 buffer. Panics for other types.
    pub(crate) fn floats(&self) -> &[f32] {
        match self.values() {
            Values::F32(values) => values,
            Values::F16(_) | Values::BF16(_) => panic!("this operand is f32 on the CPU"),
        }
    }

    /// The elements of an f32 buffer to write. Panics for other types and for imported bytes.
    pub(crate) fn floats_mut(&mut self) -> &mut [f32] {
        match self.values_mut() {
            ValuesMut::F32(values) => values,
            ValuesMut::F16(_) | ValuesMut::BF16(_) => panic!("this operand is f32 on the CPU"),
        }
    }

    /// The bits of a bf16 buffer. Panics for other types.
    pub(crate) fn bf16(&self) -> &[u16] {
        match self.values() {
            Values::BF16(bits) => bits,
            Values::F32(_) | Values::F16(_) => panic!("weights beside remainders are bf16"),
        }
    }

    /// The bits of a bf16 buffer to write. Panics for other types and for imported bytes.
    pub(crate) fn bf16_mut(&mut self) -> &mut [u16] {
        match self.values_mut() {
            ValuesMut::BF16(bits) => bits,
            ValuesMut::F32(_) | ValuesMut::F16(_) => panic!("weights beside remainders are bf16"),
        }
    }
}

impl<'a> Values<'a> {
    pub(crate) fn len(self) -> usize {
        match self {
            Values::F32(values) => values.len(),
            Values::BF16(bits) | Values::F16(bits) => bits.len(),
        }
    }

    pub(crate) fn slice(self, range: Range<usize>) -> Self {
        match self {
            Values::F32(values) => Values::F32(&values[range]),
            Values::BF16(bits) => Values::BF16(&bits[range]),
            Values::F16(bits) => Values::F16(&bits[range]),
        }
    }

    /// Decodes all elements into `to`, which is as long.
    pub(crate) fn decode(self, to: &mut [f32]) {
        assert_eq!(self.len(), to.len(), "lengths of a conversion");
        match self {
            Values::F32(values) => to.copy_from_slice(values),
            Values::BF16(bits) => dispatch::decode_bf16(bits, to),
            Values::F16(bits) => dispatch::decode_f16(bits, to),
        }
    }

    /// The elements as f32: borrowed where they are, decoded into `room` otherwise.
    pub(crate) fn decoded<'b>(self, room: &'b mut Vec<f32>) -> &'b [f32]
    where
        'a: 'b,
    {
        if let Values::F32(values) = self {
            return values;
        }
        // Only grows, so that a kept scratch is cleared once.
        if room.len() < self.len() {
            room.resize(self.len(), 0.0);
        }
        let room = &mut room[..self.len()];
        self.decode(room);
        room
    }
}

impl ValuesMut<'_> {
    /// Encodes `from`, which is as long, to nearest with ties to even.
    pub(crate) fn encode(&mut self, from: &[f32]) {
        match self {
            ValuesMut::F32(values) => values.copy_from_slice(from),
            ValuesMut::BF16(bits) => dispatch::encode_bf16(from, bits),
            ValuesMut::F16(bits) => bits.reinterpret_cast_mut::<f16>().convert_from_f32_slice(from),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            ValuesMut::F32(values) => values.len(),
            ValuesMut::BF16(bits) | ValuesMut::F16(bits) => bits.len(),
        }
    }

    pub(crate) fn slice(&mut self, range: Range<usize>) -> ValuesMut<'_> {
        match self {
            ValuesMut::F32(values) => ValuesMut::F32(&mut values[range]),
            ValuesMut::BF16(bits) => ValuesMut::BF16(&mut bits[range]),
            ValuesMut::F16(bits) => ValuesMut::F16(&mut bits[range]),
        }
    }
}

impl<'a> ValuesMut<'a> {
    /// Pieces of `len` elements, the last one shorter.
    pub(crate) fn chunks(self, len: usize) -> Vec<ValuesMut<'a>> {
        match self {
            ValuesMut::F32(values) => values.chunks_mut(len).map(ValuesMut::F32).collect(),
            ValuesMut::BF16(bits) => bits.chunks_mut(len).map(ValuesMut::BF16).collect(),
            ValuesMut::F16(bits) => bits.chunks_mut(len).map(ValuesMut::F16).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    struct Shifted(Vec<u8>, usize);
    impl AsRef<[u8]> for Shifted {
        fn as_ref(&self) -> &[u8] {
            &self.0[self.1..]
        }
    }

    #[test]
    fn aligned_bytes_are_used_where_they_lie_and_others_are_copied() {
        for element in [Element::F32, Element::F16, Element::BF16] {
            let values = [1.0, -2.5, 0.0, 3e4, f32::NEG_INFINITY];
            for shift in 0..=element.size() {
                let mut bytes = vec![0xff; shift];
                bytes.extend(element.encode(&values));
                let address = bytes[shift..].as_ptr() as usize;
                let buffer = Buffer::import(Arc::new(Shifted(bytes, shift)), element);
                assert_eq!((buffer.len(), buffer.element()), (5, element));
                let mut got = [0.0; 5];
                buffer.values().decode(&mut got);
                assert_eq!(got.to_vec(), element.decode(&element.encode(&values)));
                let is_shared = matches!(buffer.0, Store::Shared(..));
                assert_eq!(is_shared, address.is_multiple_of(element.size()), "{element:?} {shift}");
            }
        }
    }

    #[test]
    fn every_sixteen_bit_pattern_decodes_as_defined() {
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        let bytes: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        for (values, element) in [(Values::F16(&bits), Element::F16), (Values::BF16(&bits), Element::BF16)] {
            let mut got = vec![0.0; bits.len()];
            values.decode(&mut got);
            for (got, expected) in got.iter().zip(element.decode(&bytes)) {
                assert!(got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan()));
            }
        }
    }

    #[test]
    fn a_broken_last_element_is_left_out() {
        let buffer = Buffer::import(Arc::new(vec![0u8; 11]), Element::F32);
        assert_eq!(buffer.len(), 2);
    }

    #[test]
    fn halves_round_to_nearest_even() {
        for element in [Element::F16, Element::BF16] {
            let values: Vec<f32> =
                (0..1271).map(|i| (i as f32 - 600.0) * 0.013_37).chain([f32::NAN]).collect();
            let mut buffer = Buffer::zeros(values.len(), element);
            buffer.values_mut().encode(&values);
            let mut got = vec![0.0; values.len()];
            buffer.values().decode(&mut got);
            let expected = element.decode(&element.encode(&values));
            assert_eq!(got[..1271], expected[..1271]);
            assert!(got[1271].is_nan());
        }
    }
}
