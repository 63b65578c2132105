//! Mixtures of experts: what is built, held against what mergekit-moe builds (`tests/golden/experts`), and what is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aludel_checkpoint::{Checkpoint, Config, Dtype, WeightMap};
use aludel_kernels::element::Element;
use aludel_kernels::nn::{Accumulate, Cpu, Device, Product};
use aludel_model::decoder::{Decoder, Keep};
use aludel_model::{Batch, Use};
use serde_json::{Value, json};
use snapbox::str;

use crate::sandbox::Sandbox;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/experts").join(path)
}

/// With the golden models under `models/`.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new(&[]);
    for entry in golden("models").read_dir().unwrap() {
        let folder = entry.unwrap().path();
        for file in folder.read_dir().unwrap() {
            let file = file.unwrap().path();
            let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
            let target = format!("models/{}/{}", name(&folder), name(&file));
            sandbox.write(&target, std::fs::read(&file).unwrap());
        }
    }
    sandbox
}

/// The type, the bytes and the values of every tensor.
fn tensors(path: &Path) -> BTreeMap<String, (Dtype, Vec<u8>, Vec<f32>)> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let map = WeightMap::open(&checkpoint).unwrap();
    let tensor = |entry: &aludel_checkpoint::TensorEntry| {
        let element = match entry.dtype {
            Dtype::F32 => Element::F32,
            Dtype::F16 => Element::F16,
            _ => Element::BF16,
        };
        let bytes = map.bytes(entry, 0..entry.bytes).to_vec();
        (entry.dtype, bytes.clone(), element.decode(&bytes))
    };
    checkpoint.tensors().iter().map(|(name, entry)| (name.clone(), tensor(entry))).collect()
}

/// Whether a tensor is a router's: its values are computed, all others are a model's.
fn is_gate(name: &str) -> bool {
    name.ends_with(".gate.weight") || name.ends_with("shared_expert_gate.weight")
}

fn assert_close(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    let rms = (expected.iter().map(|x| x * x).sum::<f32>() / expected.len() as f32).sqrt();
    assert_eq!(got.len(), expected.len(), "{what}");
    for (got, expected) in got.iter().zip(expected) {
        assert!(
            (got - expected).abs() <= tolerance * expected.abs().max(rms),
            "{what}: {got} for {expected}"
        );
    }
}

/// Keys that mergekit writes and that say what transformers takes without them.
fn defaults() -> Value {
    json!({
        "qkv_bias": true, "output_router_logits": false, "router_aux_loss_coef": 0.001, "router_jitter_noise": 0.0,
        "attention_bias": false, "mlp_bias": false, "pretraining_tp": 1, "use_sliding_window": false, "sliding_window": null,
        "max_window_layers": 28, "layer_types": ["full_attention", "full_attention"], "head_dim": 4,
    })
}

fn assert_config(got: &Config, expected: &Config, case: &str) {
    // Of DeepSeek, mergekit writes all keys that transformers has for any config, and the base model's type.
    let is_asked = |key: &str| {
        let is_known = case != "deepseek" || key != "dtype" && got.value(key).is_some();
        key != "transformers_version" && is_known
    };
    for (key, value) in expected.entries().filter(|(key, _)| is_asked(key)) {
        let default = defaults();
        let got = got.value(key).or_else(|| default.get(key)).unwrap_or(&Value::Null);
        assert_eq!(got, value, "{case}: {key}");
    }
}

/// The first logits after the last of some tokens.
fn logits(folder: &Path, count: usize) -> Vec<f32> {
    let device = Arc::new(Cpu::new(None).unwrap());
    let model = Decoder::open(folder, device, Use::Frozen).unwrap();
    let tokens = [0, 7, 21, 33, 5, 40];
    let pass = model.forward(&Batch::pack([&tokens[..]]), Keep::Nothing, &[]).unwrap();
    let (device, head) = (model.device(), model.head());
    let mut logits = device.zeros(tokens.len() * head.vocabulary, device.activation()).unwrap();
    let product =
        Product { rows: tokens.len(), inputs: head.width, outputs: head.vocabulary, scale: head.scale };
    device.linear(product, pass.hidden(), head.weight, head.bias, &mut logits, Accumulate::Overwrite);
    let last = (tokens.len() - 1) * head.vocabulary;
    device.read(&logits, last..last + count).unwrap()
}

#[test]
fn mixtures_are_those_of_mergekit() {
    let sandbox = sandbox();
    let cases: Value = serde_json::from_slice(&std::fs::read(golden("cases.json")).unwrap()).unwrap();
    let mut computed = 0;
    for (case, expectation) in cases.as_object().unwrap() {
        let folder = golden("cases").join(case);
        sandbox.write("recipe.yml", std::fs::read(folder.join("recipe.yml")).unwrap());
        let output = sandbox.process(&["moe", "recipe.yml", case, "-q"]).output().unwrap();
        assert!(output.status.success(), "{case}: {}", String::from_utf8_lossy(&output.stderr));
        let (got, expected) = (tensors(&sandbox.path(case)), tensors(&folder.join("expected.safetensors")));
        assert!(got.keys().eq(expected.keys()), "{case}");
        for (name, (dtype, bytes, values)) in &got {
            let expected = &expected[name];
            assert_eq!(*dtype, expected.0, "{case}: {name}");
            if is_gate(name) {
                // One step of the type that is written.
                let step = match dtype {
                    Dtype::F32 => 0.0,
                    Dtype::F16 => 1.0 / 1024.0,
                    _ => 1.0 / 128.0,
                };
                let tolerance = expectation["tolerance"].as_f64().unwrap() as f32 + step;
                assert_close(values, &expected.2, tolerance, &format!("{case}: {name}"));
            } else {
                assert_eq!(*bytes, expected.1, "{case}: {name}");
            }
        }
        let config = |path: &Path| Config::read(&path.join("config.json")).unwrap();
        assert_config(&config(&sandbox.path(case)), &config(&folder), case);
        let family = config(&folder).value("model_type").cloned().unwrap();
        if ["mixtral", "qwen3_moe"].iter().any(|known| family == *known) {
            let expected: Vec<f32> = serde_json::from_value(expectation["logits"].clone()).unwrap();
            assert_close(&logits(&sandbox.path(case), expected.len()), &expected, 2e-3, case);
            computed += 1;
        }
    }
    assert_eq!(computed, 5);
}

const RANDOM: &str = "\
base_model: models/llama-a
gate_mode: random
dtype: float32
experts:
  - {source_model: models/llama-a, noise_scale: 0.5}
  - {source_model: models/llama-a}
";

#[test]
fn chance_depends_on_the_seed_alone() {
    let sandbox = sandbox();
    sandbox.write("r.yml", RANDOM);
    sandbox.write("u.yml", RANDOM.replace("random", "uniform_random"));
    let build = |recipe: &str, output: &str, more: &[&str]| {
        sandbox.aludel(&[&["moe", recipe, output, "-q"], more].concat()).assert().code(0);
        tensors(&sandbox.path(output))
    };
    let one = build("r.yml", "one", &["--threads", "1"]);
    assert_eq!(one, build("r.yml", "two", &["--threads", "3"]));
    let other = build("r.yml", "other", &["--seed", "1"]);
    let gate = "model.layers.0.block_sparse_moe.gate.weight";
    assert_ne!(one[gate], other[gate]);
    assert_ne!(one[gate].2, one[&gate.replace('0', "1")].2, "layers differ");
    let uniform = build("u.yml", "uniform", &[]);
    let bound = 0.25; // The root of one sixteenth, of 16 inputs.
    assert!(uniform[gate].2.iter().all(|value| value.abs() <= bound));
    assert!(uniform[gate].2.iter().any(|value| value.abs() > bound / 2.0));
    // What noise adds has its deviation: 2,304 elements, five standard errors.
    let mut squares = Vec::new();
    for layer in 0..2 {
        for name in ["w1", "w2", "w3"] {
            let expert = |number: usize| {
                &one[&format!("model.layers.{layer}.block_sparse_moe.experts.{number}.{name}.weight")].2
            };
            squares.extend(expert(0).iter().zip(expert(1)).map(|(a, b)| f64::from(a - b).powi(2)));
        }
    }
    let deviation = (squares.iter().sum::<f64>() / squares.len() as f64).sqrt();
    assert!((deviation - 0.5).abs() < 5.0 * 0.5 / (2.0 * squares.len() as f64).sqrt(), "{deviation}");
}

#[test]
fn a_residual_scale_is_a_factor_of_the_last_projection() {
    let sandbox = sandbox();
    let recipe = RANDOM.replace("noise_scale: 0.5", "residual_scale: 0.5");
    sandbox.write("r.yml", recipe);
    sandbox.aludel(&["moe", "r.yml", "out", "-q"]).assert().code(0);
    let got = tensors(&sandbox.path("out"));
    for (name, factor) in [("w1", 1.0), ("w2", 0.5), ("w3", 1.0)] {
        let expert = |number: usize| {
            &got[&format!("model.layers.1.block_sparse_moe.experts.{number}.{name}.weight")].2
        };
        let scaled: Vec<f32> = expert(1).iter().map(|value| value * factor).collect();
        assert_eq!(*expert(0), scaled, "{name}");
    }
}

#[test]
fn a_plan_shows_what_is_taken_and_what_has_to_run_first() {
    let sandbox = sandbox();
    sandbox.write("r.yml", std::fs::read(golden("cases/mixtral-hidden/recipe.yml")).unwrap());
    sandbox.aludel(&["plan", "r.yml", "out", "--threads", "1"]).assert().code(0).stderr_eq("").stdout_eq(
        str![[r#"
method   moe
model    models/mistral-a (21 tensors, 16.1 kB)
model    models/mistral-b (21 tensors, 16.1 kB)
first    gates are made of what `models/mistral-a` makes of the prompts of 2 experts
output   29 tensors in 1 file(s), 3 side file(s)
passes   1 over 29 tensors
dropped  lm_head.weight and 14 more of models/mistral-b: only the feed-forward layers of an expert are taken
read     18.6 kB in all passes
write    40.6 kB
memory   [..] MB at the most, 1 threads, tiles of 262144 elements

"#]],
    );
    let plan = sandbox.json(&["plan", "r.yml", "--json"]);
    assert_eq!(plan["method"], "moe");
    assert_eq!(plan["awaited"].as_array().unwrap().len(), 1);
}

#[test]
fn what_cannot_work_is_refused_before_anything_runs() {
    let sandbox = sandbox();
    let refused = |recipe: &str, command: &[&str], said: snapbox::data::Inline| {
        sandbox.write("r.yml", recipe);
        sandbox.aludel(command).assert().code(3).stdout_eq("").stderr_eq(said);
    };
    let moe = ["moe", "r.yml", "out"];
    let prompts = "positive_prompts: [sun]";
    let same = format!(
        "base_model: models/llama-a\nexperts:\n- {{source_model: models/llama-b, {prompts}}}\n- {{source_model: models/llama-b, positive_prompts: [sea]}}\n"
    );
    refused(
        &same,
        &moe,
        str![[r#"
error: r.yml:3:18: experts[0].source_model: all experts are `models/llama-b`: the output takes more memory and computes the same
  hint: give other models, or --i-understand-this-is-not-useful-without-training to train it
aludel: 1 problem, nothing was written

"#]],
    );
    refused(
        &same.replacen("llama-b, positive", "qwen3-b, positive", 1),
        &moe,
        str![[r#"
error: r.yml:3:18: experts[0].source_model: this model is of the family `qwen3`, and `models/llama-a` is `llama`
  hint: the experts of a mixture are models of one family with their base
aludel: 1 problem, nothing was written

"#]],
    );
    refused(
        &same.replace("llama", "qwen2").replacen("qwen2-b", "qwen2-c", 1),
        &moe,
        str![[r#"
error: r.yml:1:13: base_model: no mixture of experts can be made of these `qwen2` models
  hint: Mixtral is made of `llama`, `mistral`; DeepSeek MoE is made of `llama`, `mistral`; Qwen MoE has one shared expert, not 0; Qwen3 MoE is made of `qwen3`
aludel: 1 problem, nothing was written

"#]],
    );
    refused(
        &same,
        &["merge", "r.yml", "out"],
        str![[r#"
error: this recipe has `experts`: it is no merge, but builds a mixture of experts
  hint: give it to `aludel moe`
aludel: 1 problem, nothing was written

"#]],
    );
    assert_eq!(sandbox.names("."), ["models", "r.yml"]);
}

#[test]
fn one_model_for_all_experts_is_taken_where_it_is_meant() {
    let sandbox = sandbox();
    let recipe = RANDOM.replace("random", "cheap_embed");
    let recipe = recipe.replace("noise_scale: 0.5", "positive_prompts: [sun]");
    sandbox.write("r.yml", recipe.replace("llama-a}", "llama-a, positive_prompts: [sea]}"));
    let flag = "--i-understand-this-is-not-useful-without-training";
    sandbox.aludel(&["moe", "r.yml", "out", "-q"]).assert().code(3);
    sandbox.aludel(&["moe", "r.yml", "out", "-q", flag, "--load-in-4bit", "--cuda"]).assert().code(0);
    assert!(sandbox.path("out/tokenizer.json").exists());
}
