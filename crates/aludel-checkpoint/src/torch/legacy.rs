//! Reads the stream that versions before torch 1.6 wrote: five pickles, then the storages one after another.
//!
//! The pickles are a magic number, the format's version, what the machine was like, the state dict, and the keys of the
//! storages in their order. A storage is its number of elements and then their bytes, so that it can be mapped too.

use std::collections::HashMap;
use std::io::{BufRead, Seek};

use indexmap::IndexMap;

use super::pickle::{Id, Pickle, Value};
use super::tensors::{storages, tensors};
use super::{Fault, Place, REMEDY, TorchTensor, damaged, unsupported};
use crate::dtype::element_bytes;

/// Whether a file begins with the pickle of the magic number, by protocol 2 or 3.
pub(super) fn is_legacy(first: &[u8]) -> bool {
    matches!(first.split_at_checked(2), Some(([0x80, 2 | 3], rest)) if rest.starts_with(MAGIC))
}

/// The tensors of a file of so many bytes.
pub(super) fn read<R: BufRead + Seek>(
    mut reader: R,
    bytes: u64,
) -> Result<IndexMap<String, TorchTensor>, Fault> {
    Pickle::read(&mut reader)?;
    let version = Pickle::read(&mut reader)?;
    if !matches!(version.value(version.root), Value::Number(VERSION)) {
        return unsupported(format!(
            "it is of another version of torch's older format than {VERSION}; {REMEDY}"
        ));
    }
    check_order(&Pickle::read(&mut reader)?)?;
    let state = Pickle::read(&mut reader)?;
    let keys = Pickle::read(&mut reader)?;
    let places = places(&mut reader, bytes, &state, &keys)?;
    tensors(&state, &mut |key| Ok(places.get(key).copied()))
}

fn check_order(machine: &Pickle) -> Result<(), Fault> {
    let Value::Mapping(facts) = machine.value(machine.root) else {
        return damaged("it does not say what machine it is of");
    };
    let is_big = |&(key, value): &(Id, Id)| {
        machine.text(key) == Some("little_endian") && !matches!(machine.value(value), Value::Flag(true))
    };
    if facts.iter().any(is_big) {
        return unsupported(format!("its numbers are not stored as little-endian; {REMEDY}"));
    }
    Ok(())
}

/// Where each storage lies, by its key.
fn places<'k, R: BufRead + Seek>(
    reader: &mut R,
    bytes: u64,
    state: &Pickle,
    keys: &'k Pickle,
) -> Result<HashMap<&'k str, Place>, Fault> {
    let Value::List(list) = keys.value(keys.root) else { return damaged("it has no list of its storages") };
    let widths: HashMap<&str, u64> = storages(state)
        .filter_map(|storage| Some((state.text(storage.key)?, storage.dtype.map_or(1, element_bytes))))
        .collect();
    let mut places = HashMap::new();
    for &key in list {
        let Some(key) = keys.text(key) else { return damaged("a storage of it has no key") };
        let Some(width) = widths.get(key) else { return damaged("it has a storage that no tensor is of") };
        let mut elements = [0; 8];
        reader.read_exact(&mut elements)?;
        let offset = reader.stream_position()?;
        let length = u64::from_le_bytes(elements).checked_mul(*width);
        match length.filter(|&length| length <= bytes.saturating_sub(offset)) {
            Some(length) => {
                reader.seek_relative(length as i64)?;
                places.insert(key, Place { offset, bytes: length });
            }
            None => return damaged("a storage of it reaches beyond its end; download or copy it again"),
        }
    }
    Ok(places)
}

/// The number 0x1950a86a20f9469cfc6c as a pickle has it.
const MAGIC: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

const VERSION: i64 = 1001;
