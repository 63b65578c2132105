//! Compares tensors of types that are not computed on, byte by byte.

use super::tensors::StoredPair;
use super::values::{Place, ValueDifference, index};
use crate::derive::Weights;

/// How two tensors differ; `None` where they do not.
pub(super) fn compare(pair: &StoredPair, weights: &Weights<'_>) -> Option<ValueDifference> {
    let (map_a, a) = weights.entry(&pair.first);
    let (map_b, b) = weights.entry(&pair.second);
    let elements: u64 = pair.shape.iter().map(|&side| side as u64).product();
    // Types of less than a byte are compared by whole bytes.
    let width = (a.bytes / elements.max(1)).max(1);
    let (mut differing, mut first) = (0, None);
    let mut start = 0;
    while start < a.bytes.min(b.bytes) {
        let range = start..a.bytes.min(b.bytes).min(start + PIECE * width);
        let (bytes_a, bytes_b) = (map_a.bytes(a, range.clone()), map_b.bytes(b, range.clone()));
        if bytes_a != bytes_b {
            let pairs = bytes_a.chunks(width as usize).zip(bytes_b.chunks(width as usize)).zip(0u64..);
            for ((x, y), at) in pairs.filter(|((x, y), _)| x != y) {
                differing += 1;
                first.get_or_insert_with(|| Place {
                    index: index(start / width + at, &pair.shape),
                    first: hexadecimal(x),
                    second: hexadecimal(y),
                });
            }
        }
        map_a.release(a, range.clone());
        map_b.release(b, range.clone());
        start = range.end;
    }
    first.is_some().then(|| ValueDifference {
        tensor: pair.first.tensor.clone(),
        elements,
        differing,
        beyond_tolerance: differing,
        largest: None,
        not_finite: 0,
        first_place: first,
    })
}

/// The bytes of an element, the most significant first.
fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().rev().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// Elements that are looked at at once.
const PIECE: u64 = 1 << 20;
