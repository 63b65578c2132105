//! Merges models with adapters, and holds them to what peft makes of the same (`tests/golden/adapters`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::made::{config_of, elements, merge, merged};
use aludel_checkpoint::{Checkpoint, TensorEntry, WeightMap};
use aludel_kernels::element::Element;
use aludel_merge::plan::{Plan, PlanOptions};
use aludel_merge::recipe::Recipe;
use serde_json::Value;

type Tensors = BTreeMap<String, Vec<f32>>;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/adapters").join(path)
}

fn cases() -> Value {
    serde_json::from_slice(&std::fs::read(golden("cases.json")).unwrap()).unwrap()
}

/// Every tensor of a folder or file, which are all f32.
fn tensors(path: &Path) -> Tensors {
    tensors_in(path, Element::F32)
}

/// Every tensor of a folder or file, which are all of this type.
fn tensors_in(path: &Path, element: Element) -> Tensors {
    let checkpoint = Checkpoint::open(path).unwrap();
    let map = WeightMap::open(&checkpoint).unwrap();
    let values = |entry: &TensorEntry| {
        assert_eq!(entry.bytes as usize, entry.shape.iter().product::<usize>() * element.size());
        element.decode(map.bytes(entry, 0..entry.bytes))
    };
    checkpoint.tensors().iter().map(|(name, entry)| (name.clone(), values(entry))).collect()
}

fn with_adapter(model: &str, adapter: &str) -> String {
    format!(
        "{}+{}",
        golden(&format!("models/{model}")).display(),
        golden(&format!("adapters/{adapter}")).display()
    )
}

fn passed_through(model: &str) -> String {
    format!("merge_method: passthrough\nmodels: [{{model: '{model}'}}]\ndtype: float32\n")
}

fn assert_close(got: &[f32], expected: &[f32], name: &str) {
    let rms = (expected.iter().map(|x| x * x).sum::<f32>() / expected.len() as f32).sqrt();
    assert_eq!(got.len(), expected.len(), "{name}");
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() <= 1e-6 * expected.abs().max(rms), "{name}: {got} for {expected}");
    }
}

#[test]
fn a_model_with_an_adapter_is_what_peft_merges() {
    let folder = tempfile::tempdir().unwrap();
    for (case, model) in cases()["merged"].as_object().unwrap() {
        let model = model.as_str().unwrap();
        let target = folder.path().join(case);
        merged(&passed_through(&with_adapter(model, case)), &target).unwrap();
        let got = tensors(&target);
        let mut expected = tensors(&golden(&format!("merged/{case}.safetensors")));
        let base = tensors(&golden(&format!("models/{model}")));
        let embedding =
            base.keys().find(|name| name.ends_with("embed_tokens.weight") || name.ends_with("wte.weight"));
        let embedding = embedding.unwrap();
        // peft changes both of two tied matrices where it merges, though it computes with one of them unchanged.
        if !base.contains_key("lm_head.weight") && expected.contains_key(embedding) {
            let changed = expected.remove(embedding).unwrap();
            let old = base[embedding].clone();
            let (at_input, head) = if case == "tied-head" { (old, changed) } else { (changed, old) };
            expected.extend([(embedding.clone(), at_input), ("lm_head.weight".to_owned(), head)]);
            assert_eq!(config_of(&target)["tie_word_embeddings"], false, "{case}");
        }
        for (name, got) in &got {
            match expected.get(name) {
                Some(expected) => assert_close(got, expected, &format!("{case}: {name}")),
                None => assert_eq!(got, &base[name], "{case}: {name}"),
            }
        }
        assert!(expected.keys().chain(base.keys()).all(|name| got.contains_key(name)), "{case}");
    }
}

#[test]
fn in_half_precision_it_is_that_rounded_once() {
    let folder = tempfile::tempdir().unwrap();
    for (half, dtype) in [(Element::BF16, "bfloat16"), (Element::F16, "float16")] {
        for (case, model) in cases()["merged"].as_object().unwrap() {
            let recipe = passed_through(&with_adapter(model.as_str().unwrap(), case));
            merge(&recipe, &folder.path().join("whole")).unwrap();
            merge(&format!("{recipe}out_dtype: {dtype}\n"), &folder.path().join("half")).unwrap();
            let (whole, got) =
                (tensors(&folder.path().join("whole")), tensors_in(&folder.path().join("half"), half));
            assert_eq!(whole.len(), got.len(), "{case}");
            for (name, whole) in whole {
                assert_eq!(got[&name], half.decode(&half.encode(&whole)), "{dtype}, {case}: {name}");
            }
        }
    }
}

#[test]
fn models_and_adapters_in_half_precision_are_read_as_their_values() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for dtype in ["bfloat16", "float16"] {
        let model =
            |path: &Path| format!("merge_method: passthrough\nmodels: [{{model: '{}'}}]\n", path.display());
        // The same values, stored twice: in half precision, and in f32.
        merge(
            &format!("{}dtype: float32\nout_dtype: {dtype}\n", model(&golden("models/llama"))),
            &at("half"),
        )
        .unwrap();
        merge(&format!("{}dtype: float32\n", model(&at("half"))), &at("whole")).unwrap();
        for case in ["plain", "dora", "patterns"] {
            let adapted = |name: &str| {
                let adapter = golden(&format!("adapters/{case}"));
                let with_adapter = format!("{}+{}", at(name).display(), adapter.display());
                merge(&passed_through(&with_adapter), &at("out")).unwrap();
                tensors(&at("out"))
            };
            assert_eq!(adapted("half"), adapted("whole"), "{dtype}, {case}");
        }
    }
}

#[test]
fn a_tied_head_follows_where_the_adapter_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let adapter = copy(&golden("adapters/tied-embedding"), &folder.path().join("adapter"));
    change_config(&adapter, "ensure_weight_tying", true.into());
    let model = format!("{}+{}", golden("models/tied").display(), adapter.display());
    merged(&passed_through(&model), &folder.path().join("out")).unwrap();
    let got = tensors(&folder.path().join("out"));
    assert!(!got.contains_key("lm_head.weight"));
    assert_eq!(config_of(&folder.path().join("out"))["tie_word_embeddings"], true);
}

#[test]
fn models_with_adapters_are_merged_like_models_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for case in ["plain", "second", "dora"] {
        merged(&passed_through(&with_adapter("llama", case)), &at(case)).unwrap();
    }
    let base = golden("models/llama").display().to_string();
    let recipes = [
        "merge_method: ties\nbase_model: {base}\nmodels: [{model: '{plain}', parameters: {weight: 0.7, density: 0.4}}, {model: '{second}', parameters: {weight: 0.4, density: 0.3}}]\ndtype: float32\n",
        "merge_method: slerp\nbase_model: '{plain}'\nmodels: [{model: '{dora}'}]\nparameters: {t: 0.3}\ndtype: float32\n",
        "merge_method: passthrough\nslices: [{sources: [{model: '{dora}', layer_range: [1, 2]}]}, {sources: [{model: '{plain}', layer_range: [0, 2]}]}]\ndtype: float32\n",
        "name: mixed\nmerge_method: linear\nmodels: [{model: '{plain}'}, {model: '{second}'}]\nparameters: {weight: 0.5}\n---\nmerge_method: task_arithmetic\nbase_model: {base}\nmodels: [{model: mixed}, {model: '{dora}'}]\nparameters: {weight: 0.5}\ndtype: float32\n",
    ];
    for recipe in recipes {
        let filled = |model: &dyn Fn(&str) -> String| {
            let cases = ["plain", "second", "dora"];
            let filled = cases
                .iter()
                .fold(recipe.to_owned(), |text, case| text.replace(&format!("{{{case}}}"), &model(case)));
            filled.replace("{base}", &base)
        };
        merged(&filled(&|case| at(case).display().to_string()), &at("on-disk")).unwrap();
        merged(&filled(&|case| with_adapter("llama", case)), &at("while-read")).unwrap();
        assert_eq!(elements(&at("while-read")), elements(&at("on-disk")), "{recipe}");
        assert_eq!(config_of(&at("while-read")), config_of(&at("on-disk")), "{recipe}");
    }
}

#[test]
fn adapters_add_up_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let both = format!("{}+{}", with_adapter("llama", "plain"), golden("adapters/dora").display());
    merged(&passed_through(&both), &at("both")).unwrap();
    merged(&passed_through(&with_adapter("llama", "plain")), &at("one")).unwrap();
    let then = format!("{}+{}", at("one").display(), golden("adapters/dora").display());
    merged(&passed_through(&then), &at("two")).unwrap();
    assert_eq!(elements(&at("both")), elements(&at("two")));
}

#[test]
fn a_plan_names_adapters_and_accounts_for_their_tensors() {
    let recipe = Recipe::parse(&passed_through(&with_adapter("llama", "plain"))).unwrap();
    let plan = Plan::new(&recipe, &PlanOptions::default()).unwrap();
    let text = format!("{plan:#}");
    assert!(text.contains("lora     ") && text.contains("adapters/plain (12 tensors, "), "{text}");
    assert!(text.contains("q_proj.weight, with adapter `"), "{text}");
    assert!(plan.dropped.is_empty(), "{:?}", plan.dropped);
}

#[test]
fn what_does_not_fit_is_told_with_names_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let changed = |key: &str, value: Value| {
        let adapter = copy(&golden("adapters/plain"), &folder.path().join(key));
        change_config(&adapter, key, value);
        format!("{}+{}", golden("models/llama").display(), adapter.display())
    };
    let small = copy(&golden("models/llama"), &folder.path().join("small"));
    let mut header = std::fs::read(small.join("model.safetensors")).unwrap();
    let old = b"model.layers.1.self_attn.v_proj.weight";
    let position = header.windows(old.len()).position(|window| window == old).unwrap();
    header[position..position + old.len()].copy_from_slice(b"model.layers.1.self_attn.x_proj.weight");
    std::fs::write(small.join("model.safetensors"), header).unwrap();
    let cases = [
        (with_adapter("gpt2", "plain"), "changes `model.layers.0.mlp.down_proj.weight`, which `"),
        (
            format!("{}+{}", small.display(), golden("adapters/plain").display()),
            "it was trained on `models/llama`",
        ),
        (
            with_adapter("llama", "absent"),
            "absent does not exist: give the folder that peft saved the adapter in",
        ),
        (with_adapter("llama", ".."), "an adapter is a folder with adapter_config.json"),
        (changed("peft_type", "IA3".into()), "`peft_type` is \"IA3\", and only LORA is read"),
        (changed("r", 5.into()), "has rank 4 where adapter_config.json says 5"),
        (changed("use_dora", true.into()), "has no lora_magnitude_vector"),
        (
            changed("kasa_config", serde_json::json!({"beta": 1})),
            "`kasa_config: {\"beta\":1}` is not understood",
        ),
        (with_adapter("qwen2", "embedding") + "@v2", "leave out `@v2`"),
    ];
    for (model, told) in cases {
        let problems = Recipe::parse(&passed_through(&model))
            .and_then(|recipe| Plan::new(&recipe, &PlanOptions::default()))
            .unwrap_err()
            .to_string();
        assert!(problems.contains(told), "{model}: {problems}");
    }
}

#[test]
fn wrong_shapes_are_told_with_both() {
    let folder = tempfile::tempdir().unwrap();
    let model = copy(&golden("models/llama"), &folder.path().join("model"));
    let weights = model.join("model.safetensors");
    let text = std::fs::read(&weights).unwrap();
    let name = b"model.layers.0.mlp.down_proj.weight\":{\"dtype\":\"F32\",\"shape\":[16,24]";
    let position = text.windows(name.len()).position(|window| window == name).unwrap();
    let mut other = text;
    other[position + name.len() - 7..position + name.len()].copy_from_slice(b"[12,32]");
    std::fs::write(&weights, other).unwrap();
    let model = format!("{}+{}", model.display(), golden("adapters/plain").display());
    let problems = Plan::new(&Recipe::parse(&passed_through(&model)).unwrap(), &PlanOptions::default());
    let problems = problems.unwrap_err().to_string();
    assert!(
        problems.contains("down_proj.weight` is [12, 32] in `") && problems.contains("is [16, 24]"),
        "{problems}"
    );
}

fn copy(from: &Path, to: &Path) -> PathBuf {
    std::fs::create_dir_all(to).unwrap();
    for entry in from.read_dir().unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    to.to_path_buf()
}

fn change_config(adapter: &Path, key: &str, value: Value) {
    let path = adapter.join("adapter_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    std::fs::write(&path, config.to_string()).unwrap();
}
