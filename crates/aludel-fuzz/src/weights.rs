//! Checkpoints of all formats: opened, and every tensor that was accepted is read.

use std::io::{Cursor, Write};
use std::path::Path;

use aludel_checkpoint::gguf::{Conversion, ConvertOptions};
use aludel_checkpoint::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter, Checkpoint, WeightMap};
use aludel_merge::execute::{ExecuteOptions, execute};
use aludel_merge::plan::Plan;
use aludel_merge::recipe::Recipe;
use zip::write::{SimpleFileOptions, ZipWriter};

use crate::scratch::{fixture, folder};
use crate::texts::{MODELS, options, told, with_models};

/// Elements of one tensor that are decoded: lying shapes show themselves in the first and the last.
const DECODED: u64 = 256;

/// Opens a checkpoint and reads all of its tensors.
fn read(path: &Path) {
    let Ok(checkpoint) = Checkpoint::open_source(path) else { return };
    let Ok(map) = WeightMap::open(&checkpoint) else { return };
    for entry in checkpoint.tensors().values() {
        assert!(
            entry.offset + entry.bytes <= checkpoint.files()[entry.file].bytes,
            "a tensor beyond its file"
        );
        let bytes = map.bytes(entry, 0..entry.bytes);
        assert_eq!(bytes.len() as u64, entry.bytes);
    }
    let mut values = vec![0.0; DECODED as usize];
    for encoded in checkpoint.encoded().values() {
        let elements = encoded.elements();
        let few = elements.min(DECODED);
        for start in [0, elements - few] {
            encoded.fill(&map, start..start + few, &mut values[..few as usize]);
        }
    }
}

pub(crate) fn safetensors(bytes: &[u8]) {
    read(&folder(&[("model.safetensors", bytes)]).join("model.safetensors"));
    // The scales of quantised weights are understood only with the config that names them.
    let config = fixture("crates/aludel-checkpoint/tests/fixtures/fp8/block/config.json");
    read(&folder(&[("model.safetensors", bytes), ("config.json", &config)]));
}

pub(crate) fn safetensors_seeds() -> Vec<Vec<u8>> {
    ["tests/golden/models/one-a/model.safetensors", "tests/golden/models/c-f16/model.safetensors"]
        .map(fixture)
        .into_iter()
        .chain([fixture("crates/aludel-checkpoint/tests/fixtures/fp8/block/model.safetensors")])
        .collect()
}

pub(crate) fn index(bytes: &[u8]) {
    let weights = fixture("tests/golden/models/one-a/model.safetensors");
    let files: [(&str, &[u8]); 3] = [
        ("model.safetensors.index.json", bytes),
        ("model-00001-of-00002.safetensors", &weights),
        ("outside/model.safetensors", &weights),
    ];
    read(&folder(&files));
}

pub(crate) fn index_seeds() -> Vec<Vec<u8>> {
    let names: Vec<String> = {
        let path = folder(&[("model.safetensors", &fixture("tests/golden/models/one-a/model.safetensors"))]);
        let checkpoint = Checkpoint::open(&path).expect("a fixture");
        checkpoint.tensors().keys().cloned().collect()
    };
    let index = |file: &str| {
        let map: serde_json::Map<String, serde_json::Value> =
            names.iter().map(|name| (name.clone(), file.into())).collect();
        serde_json::json!({"metadata": {"total_size": 1024}, "weight_map": map}).to_string().into_bytes()
    };
    ["model-00001-of-00002.safetensors", "../model.safetensors", "outside/model.safetensors"]
        .map(index)
        .into()
}

pub(crate) fn gguf(bytes: &[u8]) {
    let path = folder(&[("model.gguf", bytes)]).join("model.gguf");
    read(&path);
    let options = ConvertOptions { dtype: None, shard_bytes: u64::MAX };
    if let Ok(plan) = Conversion::plan(&path, &options) {
        let made: u64 =
            plan.side_files().filter_map(|name| plan.side_file(name)).map(|file| file.len() as u64).sum();
        assert!(made <= 64 * bytes.len() as u64 + (1 << 20), "{made} bytes of side files");
    }
    // Whether tokens and merges make a tokenizer is for whoever opens it.
    drop(aludel_model::Tokenizer::open(&path));
}

pub(crate) fn gguf_seeds() -> Vec<Vec<u8>> {
    ["byte_level.gguf", "sentence_piece.gguf", "blocks.gguf"]
        .map(|name| fixture(&format!("crates/aludel-checkpoint/tests/fixtures/gguf/{name}")))
        .into()
}

pub(crate) fn torch(bytes: &[u8]) {
    read(&folder(&[("pytorch_model.bin", bytes)]));
}

pub(crate) fn torch_seeds() -> Vec<Vec<u8>> {
    ["zip.bin", "legacy.bin", "compressed.bin", "evil.bin", "protocol4.pt"]
        .map(|name| fixture(&format!("crates/aludel-checkpoint/tests/fixtures/torch/{name}")))
        .into()
}

/// A pickle within an archive, whose own checksums are right.
pub(crate) fn pickle(bytes: &[u8]) {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, content) in
        [("m/data.pkl", bytes), ("m/data/0", &[1; 256]), ("m/data/1", &[2; 64]), ("m/version", b"3\n")]
    {
        archive.start_file(name, stored).expect("a name");
        archive.write_all(content).expect("memory");
    }
    torch(&archive.finish().expect("memory").into_inner());
}

pub(crate) fn pickle_seeds() -> Vec<Vec<u8>> {
    let pickle_of = |name: &str| {
        let bytes = fixture(&format!("crates/aludel-checkpoint/tests/fixtures/torch/{name}"));
        let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).expect("a fixture");
        let names: Vec<String> = archive.file_names().flatten().map(Into::into).collect();
        let name = names.iter().find(|name| name.ends_with("data.pkl")).expect("a pickle");
        let mut text = Vec::new();
        std::io::copy(&mut archive.by_name(name).expect("a pickle"), &mut text).expect("a pickle");
        text
    };
    ["zip.bin", "protocol4.pt", "evil.bin"].map(pickle_of).into()
}

pub(crate) fn adapter(bytes: &[u8]) {
    let weights = fixture("tests/golden/adapters/adapters/plain/adapter_model.safetensors");
    drop(Adapter::open(&folder(&[(ADAPTER_CONFIG, bytes), (ADAPTER_WEIGHTS, &weights)])));
}

pub(crate) fn adapter_seeds() -> Vec<Vec<u8>> {
    ["plain", "dora", "patterns"]
        .map(|name| fixture(&format!("tests/golden/adapters/adapters/{name}/adapter_config.json")))
        .into()
}

/// What was collected of two models for a merge: the inputs of linear layers of one, and gradients.
pub(crate) fn statistics(bytes: &[u8]) {
    let path = folder(&[("statistics.safetensors", bytes)]);
    let file = path.join("statistics.safetensors");
    for (method, key) in [("fisher", "fisher"), ("regmean", "gram")] {
        let other = format!("tests/golden/statistics/{key}-b.safetensors");
        let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(other);
        let recipe = format!(
            "merge_method: {method}\nmodels: [{{model: {MODELS}/a, parameters: {{{key}: '{}'}}}}, {{model: {MODELS}/b, parameters: {{{key}: '{}'}}}}]\n",
            file.display(),
            other.display()
        );
        match Plan::new(&Recipe::parse(&with_models(recipe.as_bytes())).expect("a recipe"), &options()) {
            Ok(plan) => {
                let options = ExecuteOptions { sync: false, ..ExecuteOptions::default() };
                drop(execute(&plan, &path.join(method), &options));
            }
            Err(problems) => told(&problems),
        }
    }
}

pub(crate) fn statistics_seeds() -> Vec<Vec<u8>> {
    ["fisher-a", "gram-a"].map(|name| fixture(&format!("tests/golden/statistics/{name}.safetensors"))).into()
}
