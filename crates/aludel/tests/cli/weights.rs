//! Makes safetensors files that no test folder could hold, and reads headers back.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::sandbox::Sandbox;

/// A tensor: name, type, shape.
pub(crate) type Tensor<'a> = (&'a str, &'a str, &'a [u64]);

/// A file's length prefix and header for tensors that lie one after another, and the bytes that they take.
fn header(tensors: &[Tensor<'_>]) -> (Vec<u8>, u64) {
    let mut entries = Map::new();
    let mut end = 0;
    for (name, dtype, shape) in tensors {
        let width = if *dtype == "F32" { 4 } else { 2 };
        let start = end;
        end += shape.iter().product::<u64>() * width;
        entries.insert((*name).into(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}));
    }
    let text = Value::from(entries).to_string();
    ([&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat(), end)
}

/// A model of one file with this data.
pub(crate) fn write_model(sandbox: &Sandbox, folder: &str, tensors: &[Tensor<'_>], data: &[u8]) {
    let (header, bytes) = header(tensors);
    assert_eq!(bytes, data.len() as u64);
    sandbox.write(&format!("{folder}/model.safetensors"), [&header, data].concat());
    sandbox.write(&format!("{folder}/config.json"), r#"{"torch_dtype": "float32"}"#);
}

/// A model of several files, each of one bf16 tensor of zeros with so many elements, that takes no room on disk.
pub(crate) fn write_sparse_model(sandbox: &Sandbox, folder: &str, files: usize, elements: u64) {
    sandbox.write(&format!("{folder}/config.json"), "{}");
    for number in 1..=files {
        let name = format!("layer.{number}.weight");
        let (header, bytes) = header(&[(&name, "BF16", &[elements / 1024, 1024])]);
        let path = sandbox.path(folder).join(format!("part-{number}.safetensors"));
        let mut file = File::create(path).unwrap();
        file.write_all(&header).unwrap();
        file.set_len(header.len() as u64 + bytes).unwrap();
    }
}

/// So many bf16 values between -1 and 1, never NaN, the same for the same seed.
pub(crate) fn noise(elements: u64, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(elements as usize * 2);
    for _ in 0..elements {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let value = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        bytes.extend_from_slice(&value.to_le_bytes()[2..]);
    }
    bytes
}

/// Name, type and shape of every tensor of a file, in the order of their offsets.
pub(crate) fn read_header(path: &Path) -> Vec<(String, String, Vec<u64>)> {
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let mut tensors: Vec<(&String, &Value)> =
        header.iter().filter(|(name, _)| *name != "__metadata__").collect();
    tensors.sort_by_key(|(_, tensor)| tensor["data_offsets"][0].as_u64());
    let read = |(name, tensor): (&String, &Value)| {
        let shape = tensor["shape"].as_array().unwrap().iter().map(|side| side.as_u64().unwrap()).collect();
        (name.clone(), tensor["dtype"].as_str().unwrap().to_owned(), shape)
    };
    tensors.into_iter().map(read).collect()
}

/// The values of every tensor of a file of F32 tensors.
pub(crate) fn read_values(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(path).unwrap();
    let mut data = bytes[8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize..].chunks_exact(4);
    let mut values = BTreeMap::new();
    for (name, dtype, shape) in read_header(path) {
        assert_eq!(dtype, "F32");
        let elements = shape.iter().product::<u64>() as usize;
        let of_tensor = data.by_ref().take(elements).map(|four| f32::from_le_bytes(four.try_into().unwrap()));
        values.insert(name, of_tensor.collect());
    }
    values
}
