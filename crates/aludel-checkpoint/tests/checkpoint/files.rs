//! Builds small safetensors files and model folders byte by byte, valid or not, for the tests beside it.

use std::fs;
use std::path::Path;

/// A file: the length of `json` as prefix, `json`, then `data`.
pub(crate) fn file_bytes(json: &str, data: &[u8]) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes(), json.as_bytes(), data].concat()
}

pub(crate) fn write_file(path: &Path, json: &str, data: &[u8]) {
    fs::write(path, file_bytes(json, data)).unwrap();
}

/// One entry of a header: a U8 vector at these offsets.
pub(crate) fn bytes_entry(name: &str, start: usize, end: usize) -> String {
    format!(r#""{name}":{{"dtype":"U8","shape":[{}],"data_offsets":[{start},{end}]}}"#, end - start)
}

/// A file of U8 vectors that lie one after another.
pub(crate) fn write_vectors(path: &Path, vectors: &[(&str, &[u8])]) {
    let mut entries = Vec::new();
    let mut data = Vec::new();
    for (name, bytes) in vectors {
        entries.push(bytes_entry(name, data.len(), data.len() + bytes.len()));
        data.extend_from_slice(bytes);
    }
    write_file(path, &format!("{{{}}}", entries.join(",")), &data);
}

/// `model.safetensors.index.json` with these pairs of tensor and file.
pub(crate) fn write_index(folder: &Path, pairs: &[(&str, &str)]) {
    let map: serde_json::Map<String, serde_json::Value> =
        pairs.iter().map(|(tensor, file)| ((*tensor).to_owned(), (*file).into())).collect();
    let index = serde_json::json!({ "metadata": { "total_size": 0 }, "weight_map": map });
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}
