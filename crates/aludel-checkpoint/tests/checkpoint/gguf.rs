//! Converts the GGUF fixtures and holds the folders against values and token ids from other implementations.
//!
//! `tests/reference/make_gguf.py` makes the fixtures and says where every expected value comes from.

use std::path::{Path, PathBuf};

use aludel_checkpoint::gguf::{Conversion, ConvertOptions, ConvertReport, convert};
use aludel_checkpoint::{Checkpoint, Dtype, Error, OutputFolder};
use half::{bf16, f16};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf").join(name)
}

fn options(dtype: Option<Dtype>) -> ConvertOptions {
    ConvertOptions { dtype, shard_bytes: u64::MAX }
}

/// A converted fixture, in a folder that lives as long as this does.
struct Converted {
    _home: tempfile::TempDir,
    folder: PathBuf,
    report: ConvertReport,
}

impl Converted {
    fn new(name: &str, options: &ConvertOptions) -> Self {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("out");
        let output = OutputFolder::create(&folder, false).unwrap();
        let report = convert(&fixture(name), &output, options, &mut |_| {}).unwrap();
        output.finish().unwrap();
        Self { _home: home, folder, report }
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.bytes(name)).unwrap()
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.join(name)).unwrap()
    }
}

/// Every tensor as f32, by name.
fn values(bytes: &[u8]) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let tensors = SafeTensors::deserialize(bytes).unwrap();
    let mut values: Vec<_> = tensors
        .iter()
        .map(|(name, view)| {
            let data = view.data();
            let values = match view.dtype() {
                Dtype::F32 => data.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect(),
                Dtype::BF16 => {
                    data.as_chunks().0.iter().map(|word| bf16::from_le_bytes(*word).to_f32()).collect()
                }
                Dtype::F16 => {
                    data.as_chunks().0.iter().map(|word| f16::from_le_bytes(*word).to_f32()).collect()
                }
                other => panic!("{name} is {other:?}"),
            };
            (name.to_owned(), view.shape().to_vec(), values)
        })
        .collect();
    values.sort_by(|left, right| left.0.cmp(&right.0));
    values
}

/// Equality that shows one difference, not two lists.
fn assert_same(name: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{name}");
    if let Some(index) = (0..found.len()).find(|&index| found[index] != expected[index]) {
        panic!("{name}[{index}] is {}, not {}", found[index], expected[index]);
    }
}

#[test]
fn every_block_type_decodes_to_the_reference_values() {
    let converted = Converted::new("blocks.gguf", &options(Some(Dtype::F32)));
    let expected = values(&std::fs::read(fixture("blocks.safetensors")).unwrap());
    let found = values(&converted.bytes("model.safetensors"));
    assert_eq!(found.len(), 29);
    for ((name, shape, found), (expected_name, expected_shape, expected)) in found.iter().zip(&expected) {
        assert_eq!((name, shape), (expected_name, expected_shape));
        assert_same(name, found, expected);
    }
    assert_eq!(found.len(), expected.len());
}

#[test]
fn values_are_rounded_once_to_the_chosen_type() {
    let expected = values(&std::fs::read(fixture("blocks.safetensors")).unwrap());
    for (dtype, round) in [
        (Dtype::BF16, (|value| bf16::from_f32(value).to_f32()) as fn(f32) -> f32),
        (Dtype::F16, |value| f16::from_f32(value).to_f32()),
    ] {
        let converted = Converted::new("blocks.gguf", &options(Some(dtype)));
        assert_eq!(converted.report.dtype, dtype);
        for ((name, _, found), (_, _, exact)) in
            values(&converted.bytes("model.safetensors")).iter().zip(&expected)
        {
            let rounded: Vec<f32> = exact.iter().map(|&value| round(value)).collect();
            assert_same(name, found, &rounded);
        }
    }
}

#[test]
fn without_a_choice_half_precision_stays_and_quantised_becomes_bf16() {
    let dtype = |name: &str| Conversion::plan(&fixture(name), &options(None)).unwrap().dtype();
    assert_eq!(dtype("blocks.gguf"), Dtype::BF16);
    assert_eq!(dtype("byte_level.gguf"), Dtype::F16);
}

#[test]
fn the_plan_knows_every_byte_that_is_written() {
    for shard_bytes in [u64::MAX, 8 << 10] {
        let options = ConvertOptions { dtype: None, shard_bytes };
        let plan = Conversion::plan(&fixture("byte_level.gguf"), &options).unwrap();
        let converted = Converted::new("byte_level.gguf", &options);
        let sizes = std::fs::read_dir(&converted.folder)
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len());
        assert_eq!(sizes.sum::<u64>(), plan.output_bytes());
        let checkpoint = Checkpoint::open(&converted.folder).unwrap();
        assert_eq!(checkpoint.tensors().len(), 11);
        assert_eq!(checkpoint.files().len(), plan.layout().shards().len());
    }
}

#[test]
fn progress_ends_at_the_total() {
    let home = tempfile::tempdir().unwrap();
    let output = OutputFolder::create(&home.path().join("out"), false).unwrap();
    let plan = Conversion::plan(&fixture("blocks.gguf"), &options(None)).unwrap();
    let mut seen = Vec::new();
    let report =
        plan.write(&output, &mut |progress| seen.push((progress.bytes, progress.total_bytes))).unwrap();
    assert!(seen.is_sorted());
    assert_eq!(seen.last(), Some(&(report.bytes_written, report.bytes_written)));
    // Three layers, the embedding and seven norms, two bytes each.
    assert_eq!(report.bytes_written, 2 * (3 * 7680 + 16 * 256 + 7 * 256));
}

#[test]
fn the_config_says_what_the_metadata_says() {
    let converted = Converted::new("byte_level.gguf", &options(None));
    assert_eq!(
        converted.json("config.json"),
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": 342,
            "num_hidden_layers": 1,
            "hidden_size": 8,
            "intermediate_size": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 4,
            "hidden_act": "silu",
            "max_position_embeddings": 128,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000.0,
            "rope_scaling": null,
            "attention_bias": false,
            "mlp_bias": false,
            "tie_word_embeddings": true,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": null,
            "torch_dtype": "float16",
        })
    );
    assert_eq!(converted.json("generation_config.json"), json!({ "bos_token_id": 0, "eos_token_id": 1 }));
    assert_eq!(
        converted.json("special_tokens_map.json"),
        json!({ "bos_token": "<|begin|>", "eos_token": "<|end|>" })
    );
    let tokenizer = converted.json("tokenizer_config.json");
    let template = "{% for message in messages %}<|begin|>{{ message['content'] }}<|end|>{% endfor %}";
    assert_eq!(tokenizer["chat_template"], template);
    assert_eq!(tokenizer["add_bos_token"], false);
}

#[test]
fn rebuilt_tokenizers_give_the_ids_of_those_that_were_trained() {
    let goldens: Value = serde_json::from_slice(&std::fs::read(fixture("tokens.json")).unwrap()).unwrap();
    for name in ["byte_level", "sentence_piece"] {
        let converted = Converted::new(&format!("{name}.gguf"), &options(None));
        assert_eq!(converted.report.warnings, Vec::<String>::new());
        let tokenizer = Tokenizer::from_file(converted.folder.join("tokenizer.json")).unwrap();
        let cases = goldens[name].as_array().unwrap();
        assert_eq!(cases.len(), 8);
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            let encoded = tokenizer.encode(text, true).unwrap();
            assert_eq!(encoded.get_ids(), expected, "{name} {text:?}");
            assert_eq!(tokenizer.decode(&expected, name == "sentence_piece").unwrap(), text, "{name}");
        }
    }
}

#[test]
fn tokens_that_only_pad_the_embedding_are_left_out() {
    let converted = Converted::new("byte_level.gguf", &options(None));
    let tokenizer = converted.json("tokenizer.json");
    let vocabulary = tokenizer["model"]["vocab"].as_object().unwrap();
    assert_eq!(vocabulary.len(), 340);
    assert!(vocabulary.keys().all(|token| !token.starts_with("[PAD")));
    assert_eq!(tokenizer["added_tokens"].as_array().unwrap().len(), 2);
    assert_eq!(tokenizer["added_tokens"][1]["content"], "<|end|>");
    assert_eq!(tokenizer["added_tokens"][1]["special"], true);
}

#[test]
fn what_is_no_gguf_is_refused_by_what_it_is() {
    let error = |path: &Path| Conversion::plan(path, &options(None)).unwrap_err();
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(error(folder.path()), Error::NotACheckpoint { .. }));
    assert!(matches!(error(&folder.path().join("none.gguf")), Error::NotFound { .. }));
    assert!(matches!(error(&fixture("tokens.json")), Error::NotACheckpoint { .. }));
    assert!(matches!(
        Conversion::plan(&fixture("blocks.gguf"), &options(Some(Dtype::I8))).unwrap_err(),
        Error::Unsupported { .. }
    ));
}

/// The byte-level fixture with every `from` made `to`, which is as long, so that all lengths stay true.
fn altered(from: &str, to: &str) -> (tempfile::TempDir, PathBuf) {
    assert_eq!(from.len(), to.len());
    let mut bytes = std::fs::read(fixture("byte_level.gguf")).unwrap();
    let places: Vec<usize> =
        (0..bytes.len() - from.len()).filter(|&at| bytes[at..].starts_with(from.as_bytes())).collect();
    assert!(!places.is_empty(), "{from} is not in the fixture");
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("altered.gguf");
    std::fs::write(&path, bytes).unwrap();
    (home, path)
}

#[test]
fn a_model_named_mistral_becomes_one() {
    let (home, path) = altered("byte level", "Mistral 7B");
    let output = OutputFolder::create(&home.path().join("out"), false).unwrap();
    convert(&path, &output, &options(None), &mut |_| {}).unwrap();
    let folder = output.finish().unwrap();
    let config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["model_type"], "mistral");
    assert_eq!(config["architectures"], json!(["MistralForCausalLM"]));
    assert_eq!(config["sliding_window"], Value::Null);
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    for (from, to, expected) in [
        ("blk.0.ffn_gate.weight", "blk.0.ffn_exps.weight", "no place for its tensors blk.0.ffn_exps.weight"),
        ("blk.0.ffn_gate.weight", "blk.1.ffn_gate.weight", "no place for its tensors blk.1.ffn_gate.weight"),
        ("blk.0.ffn_gate.weight", "blk.0.ffn_gate.scales", "no place for its tensors blk.0.ffn_gate.scales"),
        ("output_norm.weight", "rope_freqs.weight\0", "no place for its tensors rope_freqs.weight"),
        ("llama", "lamma", "architecture \"lamma\" is not known; known are llama, qwen2"),
        ("smollm", "smolln", "in the way \"smolln\", which is not known"),
        ("gpt2", "bert", "its tokenizer is \"bert\""),
        ("llama.block_count", "llama.block_taunt", "\"llama.block_count\" is missing"),
    ] {
        let (_home, path) = altered(from, to);
        let error = Conversion::plan(&path, &options(None)).unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains(expected) && message.contains("altered.gguf"),
            "{message} should say {expected}"
        );
    }
}
