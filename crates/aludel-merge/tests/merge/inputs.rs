//! Merges files of torch, GGUF files and FP8 checkpoints, and holds the output against what others read from them, bit for bit.
//!
//! The fixtures are aludel-checkpoint's.

use std::fs;
use std::path::{Path, PathBuf};

use aludel_checkpoint::gguf::{ConvertOptions, convert};
use aludel_checkpoint::{Checkpoint, Dtype, OutputFolder, WeightMap};
use aludel_kernels::element::Element;
use aludel_merge::plan::{Plan, PlanOptions};
use aludel_merge::recipe::Recipe;

use crate::made::{config_of, merge};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../aludel-checkpoint/tests/fixtures").join(name)
}

/// The bits of every floating-point tensor, by name.
fn bits(path: &Path) -> Vec<(String, Vec<u32>)> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let map = WeightMap::open(&checkpoint).unwrap();
    let mut tensors = Vec::new();
    for (name, entry) in checkpoint.tensors() {
        let element = match entry.dtype {
            Dtype::F32 => Element::F32,
            Dtype::F16 => Element::F16,
            Dtype::BF16 => Element::BF16,
            _ => continue,
        };
        let values = element.decode(map.bytes(entry, 0..entry.bytes));
        tensors.push((name.clone(), values.into_iter().map(f32::to_bits).collect()));
    }
    tensors.sort();
    tensors
}

fn passthrough(model: &Path, dtype: &str) -> String {
    format!("merge_method: passthrough\nmodels: [{{model: {}}}]\n{dtype}\n", model.display())
}

fn linear(first: &Path, second: &Path) -> String {
    format!(
        "merge_method: linear\nmodels:\n  - {{model: {}, parameters: {{weight: 0.3}}}}\n  - {{model: {}, parameters: {{weight: 0.7}}}}\ndtype: float32\n",
        first.display(),
        second.display()
    )
}

#[test]
fn what_is_made_while_it_is_read_is_what_others_read() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("out");
    for (model, expected) in [
        ("torch/zip.bin", "torch/expected.safetensors"),
        ("torch/legacy.bin", "torch/expected.safetensors"),
        ("torch/sharded", "torch/expected.safetensors"),
        ("fp8/block", "fp8/block.safetensors"),
        ("fp8/channel", "fp8/channel.safetensors"),
        ("fp8/fbgemm", "fp8/fbgemm.safetensors"),
        ("fp8/tensor", "fp8/tensor.safetensors"),
        ("gguf/blocks.gguf", "gguf/blocks.safetensors"),
    ] {
        merge(&passthrough(&fixture(model), "dtype: float32"), &target).unwrap();
        assert_eq!(bits(&target), bits(&fixture(expected)), "{model}");
    }
}

#[test]
fn a_merge_does_not_depend_on_how_its_models_are_stored() {
    let folder = tempfile::tempdir().unwrap();
    let (other, plain, target) =
        (folder.path().join("other"), folder.path().join("plain"), folder.path().join("out"));
    for (model, expected) in [
        ("torch/zip.bin", "torch/expected.safetensors"),
        ("fp8/block", "fp8/block.safetensors"),
        ("gguf/blocks.gguf", "gguf/blocks.safetensors"),
    ] {
        // Another model of the same shapes: half of everything.
        merge(
            &format!("{}parameters: {{scale: 0.5}}\n", passthrough(&fixture(expected), "dtype: bfloat16")),
            &other,
        )
        .unwrap();
        merge(&linear(&fixture(expected), &other), &plain).unwrap();
        merge(&linear(&fixture(model), &other), &target).unwrap();
        assert_eq!(bits(&target), bits(&plain), "{model}");
    }
}

#[test]
fn a_gguf_file_gives_what_its_conversion_gives() {
    let folder = tempfile::tempdir().unwrap();
    let (converted, target) = (folder.path().join("converted"), folder.path().join("out"));
    for name in ["gguf/byte_level.gguf", "gguf/sentence_piece.gguf", "gguf/blocks.gguf"] {
        let output = OutputFolder::create(&converted, true).unwrap();
        let options = ConvertOptions { dtype: None, shard_bytes: u64::MAX };
        convert(&fixture(name), &output, &options, &mut |_| {}).unwrap();
        output.finish().unwrap();
        merge(&passthrough(&fixture(name), ""), &target).unwrap();
        assert_eq!(bits(&target), bits(&converted), "{name}");
        let files = |folder: &Path| {
            let names =
                fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<String> =
                names.filter(|name| name != "README.md" && name != "recipe.yml").collect();
            names.sort();
            names
        };
        assert_eq!(files(&target), files(&converted), "{name}");
        for file in files(&target).iter().filter(|file| file.ends_with(".json")) {
            assert_eq!(
                fs::read(target.join(file)).unwrap(),
                fs::read(converted.join(file)).unwrap(),
                "{name}: {file}"
            );
        }
    }
}

#[test]
fn the_output_of_a_quantised_model_says_that_it_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("out");
    let recipe = passthrough(&fixture("fp8/tensor"), "");
    let plan = Plan::new(&Recipe::parse(&recipe).unwrap(), &PlanOptions::default()).unwrap();
    let text = format!("{plan:#}");
    assert!(text.contains("FP8 weights are multiplied by their scales"), "{text}");
    assert!(text.contains("decoded from F8_E4M3 with a scale of its own"), "{text}");
    assert!(text.contains("input_scale and 1 more"), "{text}");
    merge(&recipe, &target).unwrap();
    let config = config_of(&target);
    assert_eq!((config.get("quantization_config"), &config["torch_dtype"]), (None, &"bfloat16".into()));
    let output = Checkpoint::open(&target).unwrap();
    assert!(output.tensors().values().all(|entry| entry.dtype == Dtype::BF16));
    assert_eq!(output.tensors().len(), 3, "no scales are left");
}

#[test]
fn other_quantisations_are_refused_at_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    fs::copy(fixture("fp8/block/model.safetensors"), model.join("model.safetensors")).unwrap();
    fs::write(model.join("config.json"), r#"{"quantization_config": {"quant_method": "gptq", "bits": 4}}"#)
        .unwrap();
    let problems =
        Plan::new(&Recipe::parse(&passthrough(&model, "")).unwrap(), &PlanOptions::default()).unwrap_err();
    let text = problems.to_string();
    assert!(
        text.contains("2:") && text.contains("quantised by gptq") && text.contains("dequantize()"),
        "{text}"
    );
}
