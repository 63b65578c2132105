//! Takes the tensors of a state dict out of a pickle and holds each against the bytes that store it.
//!
//! In: the values of a pickle, and a function that knows where a storage lies. Out: what every tensor is and where, by name.
//! Tensors may share a storage, and may be views of one that are not in row-major order.

use std::collections::HashSet;

use indexmap::IndexMap;

use super::allowed::shown;
use super::pickle::{Id, Pickle, Storage, Tensor, Value};
use super::{Fault, Place, REMEDY, TorchTensor, damaged, unsupported};
use crate::dtype::element_bytes;

/// The tensors of the state dict in a pickle. `place` tells where the storage of a key lies.
pub(super) fn tensors(
    pickle: &Pickle,
    place: &mut dyn FnMut(&str) -> Result<Option<Place>, Fault>,
) -> Result<IndexMap<String, TorchTensor>, Fault> {
    let mut tensors = IndexMap::new();
    // A hostile file may mention one long collection many times.
    let mut collections = HashSet::new();
    for &(name, value) in state_dict(pickle)? {
        let Some(name) = pickle.text(name) else {
            return unsupported(format!("a name in it is no text; {REMEDY}"));
        };
        match pickle.value(value) {
            Value::Tensor(tensor) => {
                let described = describe(pickle, tensor, place).map_err(|fault| named(name, fault))?;
                tensors.insert(name.to_owned(), described);
            }
            _ if collections.insert(value) && holds_tensors(pickle, value) => {
                let name = shown(name);
                return unsupported(format!(
                    "its `{name}` is a collection of tensors among tensors; {REMEDY}"
                ));
            }
            _ => {} // Counters and settings are no weights.
        }
    }
    Ok(tensors)
}

/// Every storage that a pickle refers to.
pub(super) fn storages(pickle: &Pickle) -> impl Iterator<Item = &Storage> {
    pickle.values().filter_map(|value| match value {
        Value::Storage(storage) => Some(storage),
        _ => None,
    })
}

/// The mapping that holds tensors: the whole, or what a trainer keeps it under.
fn state_dict(pickle: &Pickle) -> Result<&[(Id, Id)], Fault> {
    let Value::Mapping(whole) = pickle.value(pickle.root) else {
        return unsupported(format!("it holds no tensors by name; {REMEDY}"));
    };
    if holds_tensors(pickle, pickle.root) {
        return Ok(whole);
    }
    let under = |wanted: &&str| {
        let (_, value) = whole.iter().rev().find(|(key, _)| pickle.text(*key) == Some(wanted))?;
        match pickle.value(*value) {
            Value::Mapping(pairs) if holds_tensors(pickle, *value) => Some(pairs.as_slice()),
            _ => None,
        }
    };
    match KEYS.iter().find_map(under) {
        Some(pairs) => Ok(pairs),
        None => unsupported(format!("it holds no tensors by name; {REMEDY}")),
    }
}

/// Whether a collection has a tensor for an item.
fn holds_tensors(pickle: &Pickle, id: Id) -> bool {
    let is_tensor = |&id: &Id| matches!(pickle.value(id), Value::Tensor(_));
    match pickle.value(id) {
        Value::Mapping(pairs) => pairs.iter().any(|(_, value)| is_tensor(value)),
        Value::List(items) => items.iter().any(is_tensor),
        Value::Tuple(items) => items.iter().any(is_tensor),
        _ => false,
    }
}

fn describe(
    pickle: &Pickle,
    tensor: &Tensor,
    place: &mut dyn FnMut(&str) -> Result<Option<Place>, Fault>,
) -> Result<TorchTensor, Fault> {
    let (offset, sides, strides) =
        (count(pickle, tensor.offset)?, counts(pickle, tensor.shape)?, counts(pickle, tensor.strides)?);
    if sides.len() != strides.len() {
        return damaged("it has not as many strides as sides");
    }
    let Value::Storage(storage) = pickle.value(tensor.storage) else { return damaged("it has no storage") };
    let key = pickle.text(storage.key).unwrap_or_default();
    let Some(stored) = place(key)? else {
        return damaged("its storage is missing; download or copy the file again");
    };
    let width = element_bytes(tensor.dtype);
    let claimed = u64::try_from(storage.elements)
        .ok()
        .and_then(|elements| elements.checked_mul(storage.dtype.map_or(1, element_bytes)));
    if claimed.is_none_or(|claimed| claimed > stored.bytes) {
        return damaged("its storage is smaller than the pickle says; download or copy the file again");
    }
    let Some(elements) = sides.iter().try_fold(1u64, |product, &side| product.checked_mul(side)) else {
        return damaged("its shape is too large");
    };
    let reach = reach(&sides, &strides).and_then(|reach| reach.checked_mul(width));
    let start = offset.checked_mul(width);
    let (Some(reach), Some(start)) = (reach, start) else { return damaged("it lies outside of its storage") };
    if start.checked_add(reach).is_none_or(|end| end > stored.bytes) {
        return damaged("it lies outside of its storage");
    }
    if elements.checked_mul(width).is_none_or(|bytes| bytes > stored.bytes) {
        return unsupported(format!("it repeats the values that are stored; make it contiguous: {REMEDY}"));
    }
    let is_in_order = elements == 0 || in_order(&sides, &strides);
    let shape = sides.iter().map(|&side| usize::try_from(side)).collect::<Result<_, _>>();
    Ok(TorchTensor {
        dtype: tensor.dtype,
        shape: shape.or_else(|_| damaged("its shape is too large"))?,
        offset: stored.offset + start,
        strides: (!is_in_order).then_some(strides),
        reach,
    })
}

/// Elements from the first to the last, both counted; `None` when that overflows.
fn reach(sides: &[u64], strides: &[u64]) -> Option<u64> {
    if sides.contains(&0) {
        return Some(0);
    }
    sides
        .iter()
        .zip(strides)
        .try_fold(1u64, |reach, (side, stride)| reach.checked_add((side - 1).checked_mul(*stride)?))
}

/// Whether the elements lie one after another in row-major order. The stride of a side of one element says nothing.
fn in_order(sides: &[u64], strides: &[u64]) -> bool {
    let mut expected = 1;
    sides.iter().zip(strides).rev().all(|(&side, &stride)| {
        let fits = side == 1 || stride == expected;
        expected *= side; // The product of all is no more than the elements, which do not overflow.
        fits
    })
}

fn counts(pickle: &Pickle, tuple: Id) -> Result<Vec<u64>, Fault> {
    match pickle.value(tuple) {
        Value::Tuple(items) if items.len() <= MOST_SIDES => {
            items.iter().map(|&item| count(pickle, item)).collect()
        }
        Value::Tuple(_) => damaged(format!("it has more than {MOST_SIDES} sides")),
        _ => damaged("its sides or strides are no tuple"),
    }
}

fn count(pickle: &Pickle, id: Id) -> Result<u64, Fault> {
    match pickle.value(id) {
        Value::Number(number) => {
            u64::try_from(*number).or_else(|_| damaged("a side, stride or offset of it is negative"))
        }
        _ => damaged("a side, stride or offset of it is no number"),
    }
}

fn named(name: &str, fault: Fault) -> Fault {
    let name = shown(name);
    match fault {
        Fault::Damaged(detail) => Fault::Damaged(format!("tensor {name:?}: {detail}")),
        Fault::Unsupported(detail) => Fault::Unsupported(format!("tensor {name:?}: {detail}")),
        io @ Fault::Io(_) => io,
    }
}

/// What trainers call the weights in what they save, the most telling first.
const KEYS: [&str; 5] = ["state_dict", "model_state_dict", "model", "module", "params"];

/// No weight has more; torch itself takes 64.
const MOST_SIDES: usize = 16;
