//! Extracts adapters, adds them to the base again, and holds the result to the fine-tuned model and to what the report says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::made::{config_of, elements, merge, noise, quietly, write};
use aludel_checkpoint::{Adapter, Dtype};
use aludel_merge::adapter::extract::{Report, Settings, extract};
use aludel_merge::execute::MergeError;
use aludel_merge::plan::PlanOptions;
use aludel_merge::recipe::FloatType;
use serde_json::{Value, json};

type Tensors = BTreeMap<String, Vec<f32>>;

fn golden(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/adapters").join(path).display().to_string()
}

fn settings<'a>(finetuned: &'a str, base: &'a str) -> Settings<'a> {
    Settings {
        finetuned,
        base,
        rank: 128,
        error: None,
        epsilon: 0.0,
        distribute_scale: true,
        include: &[],
        exclude: &[],
        save: &[],
        embed_lora: false,
        skip_undecomposable: false,
        dtype: FloatType::F32,
    }
}

fn extracted(settings: &Settings<'_>, target: &Path, threads: usize) -> Result<Report, MergeError> {
    let options = PlanOptions { threads, ..PlanOptions::default() };
    quietly(|execute| extract(settings, target, &options, execute))
}

fn refusal(settings: &Settings<'_>, folder: &Path) -> String {
    let target = folder.join("refused");
    let Err(MergeError::Problems(problems)) = extracted(settings, &target, 1) else { panic!("not refused") };
    assert!(
        !target.exists() && folder.read_dir().unwrap().all(|entry| entry.unwrap().file_name() != ".refused")
    );
    let told = |problem: &aludel_merge::problem::Problem| {
        let hint = problem.hint.clone().unwrap_or_default();
        format!("{} ({hint})", problem.message)
    };
    problems.iter().map(told).collect::<Vec<_>>().join("\n")
}

/// All tensors of what may stand for a model, in f32.
fn tensors(model: &str, folder: &Path) -> Tensors {
    let target = folder.join("whole");
    merge(&format!("merge_method: passthrough\nmodels: [{{model: '{model}'}}]\ndtype: float32\n"), &target)
        .unwrap();
    elements(&target).into_iter().collect()
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

/// The norm of what one model has beyond another, over the tensors that are named.
fn apart(a: &Tensors, b: &Tensors, is_counted: impl Fn(&str) -> bool) -> f64 {
    let names = a.keys().filter(|name| is_counted(name));
    let of = |name: &String| norm(a[name].iter().zip(&b[name]).map(|(a, b)| a - b));
    names.map(|name| of(name).powi(2)).sum::<f64>().sqrt()
}

fn adapter_config(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("adapter_config.json")).unwrap()).unwrap()
}

#[test]
fn what_an_adapter_added_is_extracted_whole() {
    let folder = tempfile::tempdir().unwrap();
    let cases: Value = serde_json::from_slice(&std::fs::read(golden("cases.json")).unwrap()).unwrap();
    for (case, model) in cases["merged"].as_object().unwrap() {
        let base = golden(&format!("models/{}", model.as_str().unwrap()));
        let finetuned = format!("{base}+{}", golden(&format!("adapters/{case}")));
        let expected = tensors(&finetuned, folder.path());
        let unchanged = tensors(&base, folder.path());
        for embed_lora in [false, true] {
            let target = folder.path().join(format!("{case}-{embed_lora}"));
            let settings = Settings { embed_lora, ..settings(&finetuned, &base) };
            let report = extracted(&settings, &target, 2).unwrap();
            assert!(report.error < 2e-6, "{case}: {}", report.error);
            assert!(report.left_out.is_empty(), "{case}: {:?}", report.left_out);
            let got = tensors(&format!("{base}+{}", target.display()), folder.path());
            let changed = apart(&expected, &unchanged_like(&expected, &unchanged), |_| true);
            assert!(apart(&expected, &got, |_| true) < 3e-6 * changed, "{case} {embed_lora}");
        }
    }
}

/// The base's tensors, with a head where the fine-tuned model has got one of its own.
fn unchanged_like(finetuned: &Tensors, base: &Tensors) -> Tensors {
    let mut base = base.clone();
    if finetuned.contains_key("lm_head.weight") && !base.contains_key("lm_head.weight") {
        let is_embedding = |name: &str| name.ends_with("embed_tokens.weight") || name.ends_with("wte.weight");
        let embedding = base.iter().find(|(name, _)| is_embedding(name)).unwrap().1.clone();
        base.insert("lm_head.weight".to_owned(), embedding);
    }
    base
}

/// A model with two layers, whose weights have this much noise upon those of seed 1.
fn model(folder: &Path, change: f32, tokens: usize, dtype: Dtype) -> String {
    let mut given = Vec::new();
    let mut add = |name: String, shape: Vec<usize>| {
        let seed = name.len() as u64 + u64::from(name.as_bytes()[name.len() / 2]);
        let count = shape.iter().product();
        let mut values = noise(count, seed);
        values.iter_mut().zip(noise(count, seed + 1000)).for_each(|(value, noise)| *value += change * noise);
        given.push((name, dtype, shape, values));
    };
    add("model.embed_tokens.weight".to_owned(), vec![tokens, 20]);
    for layer in 0..2 {
        add(format!("model.layers.{layer}.self_attn.q_proj.weight"), vec![20, 20]);
        add(format!("model.layers.{layer}.mlp.up_proj.weight"), vec![36, 20]);
        add(format!("model.layers.{layer}.input_layernorm.weight"), vec![20]);
    }
    add("model.norm.weight".to_owned(), vec![20]);
    add("lm_head.weight".to_owned(), vec![tokens, 20]);
    let given: Vec<crate::made::Given<'_>> = given
        .iter()
        .map(|(name, dtype, shape, values)| (name.as_str(), *dtype, shape.as_slice(), values.clone()))
        .collect();
    let config = json!({"architectures": ["LlamaForCausalLM"], "vocab_size": tokens});
    write(folder, &config, &given);
    folder.display().to_string()
}

#[test]
fn the_error_that_is_stated_is_the_error_of_the_model_with_the_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let base = model(&folder.path().join("base"), 0.0, 30, Dtype::F32);
    let finetuned = model(&folder.path().join("finetuned"), 0.3, 30, Dtype::BF16);
    let (before, after) = (tensors(&base, folder.path()), tensors(&finetuned, folder.path()));
    for (rank, error, dtype) in
        [(4, None, FloatType::F32), (20, Some(0.5), FloatType::F32), (7, Some(0.1), FloatType::BF16)]
    {
        let target = folder.path().join(format!("rank-{rank}"));
        let settings = Settings { rank, error, dtype, ..settings(&finetuned, &base) };
        let report = extracted(&settings, &target, 2).unwrap();
        let got = tensors(&format!("{base}+{}", target.display()), folder.path());
        let stated = |name: &str| report.extracted.iter().find(|extracted| extracted.tensor == name);
        assert_eq!(report.extracted.len(), 4);
        for name in before.keys() {
            let of = |other: &str| other == name;
            let changed = apart(&after, &before, of);
            let left = apart(&after, &got, of) / changed;
            match stated(name) {
                Some(stated) => {
                    assert!((stated.norm / changed - 1.0).abs() < 1e-5, "{name}");
                    assert!((stated.error - left).abs() < 1e-5, "{name}: {left}, stated {}", stated.error);
                    assert!(stated.rank <= rank && stated.singular_values.len() == stated.rank);
                    if let Some(error) = error {
                        assert!(stated.error <= error || stated.rank == rank, "{name}: {}", stated.error);
                    }
                }
                None => assert_eq!(left, 0.0, "{name}"),
            }
        }
        let all = apart(&after, &got, |_| true) / apart(&after, &before, |_| true);
        assert!((report.error - all).abs() < 1e-5, "{} for {all}", report.error);
        assert!((report.norm / apart(&after, &before, |_| true) - 1.0).abs() < 1e-5);
    }
}

#[test]
fn what_is_written_depends_on_the_seed_and_not_on_threads() {
    let folder = tempfile::tempdir().unwrap();
    let base = model(&folder.path().join("base"), 0.0, 30, Dtype::F32);
    let finetuned = model(&folder.path().join("finetuned"), 0.3, 30, Dtype::F32);
    let settings = Settings { rank: 2, ..settings(&finetuned, &base) };
    let weights = |threads: usize, seed: u64| {
        let target = folder.path().join(format!("{threads}-{seed}"));
        let options = PlanOptions { threads, seed, ..PlanOptions::default() };
        quietly(|execute| extract(&settings, &target, &options, execute)).unwrap();
        std::fs::read(target.join("adapter_model.safetensors")).unwrap()
    };
    let one = weights(1, 0);
    assert_eq!(weights(3, 0), one);
    assert_ne!(weights(1, 1), one);
}

#[test]
fn modules_are_chosen_saved_and_left_out_as_mergekit_does() {
    let folder = tempfile::tempdir().unwrap();
    let base = model(&folder.path().join("base"), 0.0, 30, Dtype::F32);
    let finetuned = model(&folder.path().join("finetuned"), 0.3, 30, Dtype::F32);
    let (include, exclude) = (["self_attn".to_owned()], [r"layers\.0".to_owned(), "lm_head".to_owned()]);
    let save = ["q_proj".to_owned()];
    let run = |name: &str, settings: &Settings<'_>| {
        let target = folder.path().join(name);
        let report = extracted(settings, &target, 1).unwrap();
        (report, adapter_config(&target))
    };
    let default = Settings { rank: 4, ..settings(&finetuned, &base) };
    let (report, config) = run("default", &default);
    assert_eq!(config["target_modules"], json!(["q_proj", "up_proj"]));
    assert_eq!(config["modules_to_save"], json!(["embed_tokens", "input_layernorm", "norm", "lm_head"]));
    assert_eq!((report.extracted.len(), report.saved.len(), report.left_out.len()), (4, 5, 0));

    let (report, config) =
        run("chosen", &Settings { include: &include, exclude: &exclude, ..default.clone() });
    assert_eq!(config["target_modules"], json!(["model.layers.1.self_attn.q_proj"]));
    assert_eq!(config["modules_to_save"], json!(["embed_tokens"]));
    assert_eq!(report.left_out.len(), 7);
    assert!(report.left_out.iter().all(|left_out| left_out.norm.unwrap() > 0.0), "{:?}", report.left_out);

    let (report, config) =
        run("saved", &Settings { save: &save, skip_undecomposable: true, ..default.clone() });
    assert_eq!(config["modules_to_save"], json!(["embed_tokens", "q_proj", "lm_head"]));
    assert_eq!(config["target_modules"], json!(["up_proj"]));
    assert!(report.left_out.iter().all(|left_out| left_out.reason == "--skip-undecomposable"));

    let (_, config) =
        run("embed", &Settings { embed_lora: true, distribute_scale: false, ..default.clone() });
    assert_eq!(config["target_modules"], json!(["embed_tokens", "q_proj", "up_proj", "lm_head"]));
    let adapter = Adapter::open(&folder.path().join("embed")).unwrap();
    assert!(adapter.modules()["model.embed_tokens"].is_embedding);
    let (values, report) = (elements(&folder.path().join("embed")), run("embed-both", &default).0);
    let of = |end: &str| values.iter().find(|(name, _)| name.ends_with(end)).unwrap().1.clone();
    let first = report.extracted[0].singular_values[0];
    let row = norm(of("layers.0.self_attn.q_proj.lora_A.weight")[..20].iter().copied());
    assert!((row / first - 1.0).abs() < 1e-4, "all of the scale is A's: {row} for {first}");
    let column = norm(of("layers.0.self_attn.q_proj.lora_B.weight").into_iter().step_by(4));
    assert!((column - 1.0).abs() < 1e-4, "{column}");
}

#[test]
fn a_larger_vocabulary_is_saved_whole_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let base = model(&folder.path().join("base"), 0.0, 30, Dtype::F32);
    let finetuned = model(&folder.path().join("finetuned"), 0.1, 33, Dtype::F32);
    std::fs::write(folder.path().join("finetuned/tokenizer.json"), "{}").unwrap();
    let target = folder.path().join("out");
    let settings = Settings { embed_lora: true, ..settings(&finetuned, &base) };
    let report = extracted(&settings, &target, 1).unwrap();
    assert_eq!(report.resized, Some((30, 33)));
    assert!(target.join("tokenizer.json").is_file());
    let card = std::fs::read_to_string(target.join("README.md")).unwrap();
    assert!(card.contains("resize_token_embeddings(33)"), "{card}");
    let whole = folder.path().join("whole");
    let after = tensors(&finetuned, folder.path());
    let got = tensors(&format!("{base}+{}", target.display()), folder.path());
    assert_eq!(config_of(&whole)["vocab_size"], 33);
    assert_eq!(got["lm_head.weight"], after["lm_head.weight"]);
    assert_eq!(got["model.embed_tokens.weight"], after["model.embed_tokens.weight"]);
}

#[test]
fn a_tied_head_is_saved_with_its_embedding() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (embedding, architecture) in
        [("model.embed_tokens.weight", "LlamaForCausalLM"), ("transformer.wte.weight", "GPT2LMHeadModel")]
    {
        let config = json!({"architectures": [architecture], "tie_word_embeddings": true, "vocab_size": 30});
        let tied = |name: &str, seed: u64| {
            let q = noise(64, 1);
            write(
                &at(name),
                &config,
                &[(embedding, Dtype::F32, &[30, 8], noise(240, seed)), ("q.weight", Dtype::F32, &[8, 8], q)],
            );
            at(name).display().to_string()
        };
        let (base, finetuned) = (tied("base", 1), tied("finetuned", 2));
        for embed_lora in [false, true] {
            let settings = Settings { embed_lora, ..settings(&finetuned, &base) };
            let target = at("out");
            let _ = std::fs::remove_dir_all(&target);
            let report = extracted(&settings, &target, 1).unwrap();
            assert_eq!((report.unchanged, report.extracted.len()), (1, usize::from(embed_lora)));
            let config = adapter_config(&target);
            let got = tensors(&format!("{base}+{}", target.display()), folder.path());
            let expected = tensors(&finetuned, folder.path())[embedding].clone();
            for values in [&got["lm_head.weight"], &got[embedding]] {
                let apart = norm(values.iter().zip(&expected).map(|(a, b)| a - b));
                assert!(apart < 1e-5 * norm(expected.iter().copied()), "{embedding} {embed_lora}: {apart}");
            }
            // peft takes no adapter without the names of modules.
            let targets =
                if embed_lora { json!([module_word(embedding)]) } else { json!("dummy-target-modules") };
            assert_eq!(config["target_modules"], targets);
        }
    }
}

fn module_word(tensor: &str) -> &str {
    tensor.trim_end_matches(".weight").rsplit('.').next().unwrap()
}

#[test]
fn models_that_have_nothing_to_extract_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let base = model(&at("base"), 0.0, 30, Dtype::F32);
    let same = model(&at("same"), 0.0, 30, Dtype::F32);
    let told = refusal(&settings(&same, &base), folder.path());
    assert!(told.contains("have the same weights: there is nothing to extract"), "{told}");

    let finetuned = model(&at("finetuned"), 0.1, 30, Dtype::F32);
    let exclude = [".".to_owned()];
    let told = refusal(&Settings { exclude: &exclude, ..settings(&finetuned, &base) }, folder.path());
    assert!(told.contains("everything in which the models differ is left out"), "{told}");
    let include = ["(?=a)".to_owned()];
    let told = refusal(&Settings { include: &include, ..settings(&finetuned, &base) }, folder.path());
    assert!(told.contains("--include-regex: `(?=a)` cannot be read"), "{told}");

    let llama = golden("models/llama");
    let told = refusal(&settings(&llama, &base), folder.path());
    for part in [
        "base` has no tensor `model.layers.0.mlp.down_proj.weight` and ",
        "`model.layers.0.mlp.up_proj.weight` is [24, 16] in `",
        "(an adapter joins two models of the same shape)",
    ] {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
    let mut values = noise(400, 3);
    values[7] = f32::NAN;
    let pair = [("a.weight", Dtype::F32, &[20, 20][..], values)];
    write(&at("nan"), &json!({}), &pair);
    write(&at("plain"), &json!({}), &[("a.weight", Dtype::F32, &[20, 20], noise(400, 3))]);
    let (nan, plain): (PathBuf, PathBuf) = (at("nan"), at("plain"));
    let (nan, plain) = (nan.display().to_string(), plain.display().to_string());
    let error = extracted(&settings(&nan, &plain), &at("out"), 1).unwrap_err();
    assert!(
        matches!(&error, MergeError::NonFinite { tensor, index: 7, .. } if tensor == "a.weight"),
        "{error}"
    );
    assert!(!at("out").exists());
}
