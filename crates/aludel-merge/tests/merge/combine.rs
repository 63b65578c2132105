//! Combines adapters, and holds the result to what peft makes of the same (`tests/golden/adapters/weighted`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::made::{elements, merge, noise, quietly};
use aludel_checkpoint::Adapter;
use aludel_merge::adapter::combine::{Mixing, Of, Report, Settings, Sign, combine};
use aludel_merge::execute::MergeError;
use aludel_merge::plan::PlanOptions;
use serde_json::{Value, json};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/adapters").join(path)
}

fn adapters(cases: &[(&str, f64)]) -> Vec<(String, f64)> {
    cases
        .iter()
        .map(|(case, weight)| (golden(&format!("adapters/{case}")).display().to_string(), *weight))
        .collect()
}

fn combined(settings: &Settings<'_>, target: &Path, threads: usize) -> Result<Report, MergeError> {
    let options = PlanOptions { threads, ..PlanOptions::default() };
    quietly(|execute| combine(settings, target, &options, execute))
}

/// The scaled product of every module, row by row, and whether A and B are those of `other` up to zeros where `exactly` is asked for.
fn products(folder: &Path) -> BTreeMap<String, Vec<f32>> {
    let adapter = Adapter::open(folder).unwrap();
    let values: BTreeMap<String, Vec<f32>> = elements(folder).into_iter().collect();
    let product = |(name, module): (&String, &aludel_checkpoint::AdapterModule)| {
        let (a, b) = (&values[&module.a], &values[&module.b]);
        let element = |row: usize, column: usize| {
            let of =
                |r: usize| f64::from(b[row * module.rank + r]) * f64::from(a[r * module.inputs + column]);
            ((0..module.rank).map(of).sum::<f64>() * module.scale) as f32
        };
        let row = |row: usize| (0..module.inputs).map(move |column| element(row, column));
        (name.clone(), (0..module.outputs).flat_map(row).collect())
    };
    adapter.modules().iter().map(product).collect()
}

fn apart(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm =
        |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-30)
}

fn number(case: &Value, key: &str) -> f64 {
    case[key].as_f64().unwrap()
}

/// The settings of a recorded case.
fn mixing_of(case: &Value) -> (Mixing, Of) {
    let sign = if case["majority_sign_method"] == "frequency" { Sign::Frequency } else { Sign::Total };
    match case["combination_type"].as_str().unwrap() {
        "linear" => (Mixing::Linear, Of::Factors),
        "cat" => (Mixing::Linear, Of::Concatenated),
        "svd" => (Mixing::Linear, Of::Products { rank: case["svd_rank"].as_u64().map(|rank| rank as usize) }),
        "ties" => (Mixing::Ties { density: number(case, "density"), sign }, Of::Factors),
        "magnitude_prune" => (Mixing::MagnitudePrune { density: number(case, "density") }, Of::Factors),
        other => panic!("{other}"),
    }
}

#[test]
fn combinations_are_those_of_peft() {
    let folder = tempfile::tempdir().unwrap();
    let cases: Value = serde_json::from_slice(&std::fs::read(golden("cases.json")).unwrap()).unwrap();
    let cases = cases["weighted"].as_object().unwrap();
    assert_eq!(cases.len(), 8);
    for (name, case) in cases {
        let weights = case["weights"].as_array().unwrap().iter().map(|weight| weight.as_f64().unwrap());
        let names = case["adapters"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
        let adapters = adapters(&names.zip(weights).collect::<Vec<_>>());
        let (mixing, of) = mixing_of(case);
        let target = folder.path().join(name);
        combined(&Settings { adapters: &adapters, mixing, of, dtype: None }, &target, 2).unwrap();
        let (got, expected) = (products(&target), products(&golden(&format!("weighted/{name}"))));
        assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
        for (module, expected) in &expected {
            let difference = apart(&got[module], expected);
            assert!(difference < 2e-6, "{name}: {module}: {difference}");
        }
        if of != Of::Factors {
            continue;
        }
        // Each factor is peft's.
        let (got, expected): (BTreeMap<_, _>, BTreeMap<_, _>) = (
            elements(&target).into_iter().collect(),
            elements(&golden(&format!("weighted/{name}"))).into_iter().collect(),
        );
        for (tensor, expected) in &expected {
            assert!(apart(&got[tensor], expected) < 1e-6, "{name}: {tensor}");
        }
    }
}

#[test]
fn a_model_with_concatenated_adapters_is_the_model_with_each() {
    let folder = tempfile::tempdir().unwrap();
    let adapters = adapters(&[("patterns", 1.0), ("second", 1.0), ("embedding", 1.0)]);
    let target = folder.path().join("cat");
    let settings =
        Settings { adapters: &adapters, mixing: Mixing::Linear, of: Of::Concatenated, dtype: None };
    let report = combined(&settings, &target, 1).unwrap();
    assert_eq!(report.error, None);
    let base = golden("models/llama").display().to_string();
    let chained = adapters.iter().fold(base.clone(), |model, (adapter, _)| format!("{model}+{adapter}"));
    let whole = |model: &str, name: &str| {
        let recipe = format!("merge_method: passthrough\nmodels: [{{model: '{model}'}}]\ndtype: float32\n");
        merge(&recipe, &folder.path().join(name)).unwrap();
        elements(&folder.path().join(name))
    };
    let (one, each) = (whole(&format!("{base}+{}", target.display()), "one"), whole(&chained, "each"));
    for ((name, one), (_, each)) in one.iter().zip(&each) {
        assert!(apart(one, each) < 1e-6, "{name}");
    }
}

#[test]
fn products_are_factored_with_the_error_that_is_stated() {
    let folder = tempfile::tempdir().unwrap();
    let adapters = adapters(&[("plain", 0.8), ("second", -0.5)]);
    let run = |mixing: Mixing, rank: usize, threads: usize| {
        let target = folder.path().join(format!("{rank}-{threads}"));
        let _ = std::fs::remove_dir_all(&target);
        let of = Of::Products { rank: Some(rank) };
        let report =
            combined(&Settings { adapters: &adapters, mixing, of, dtype: None }, &target, threads).unwrap();
        (report, target)
    };
    for mixing in [
        Mixing::Linear,
        Mixing::Ties { density: 0.6, sign: Sign::Frequency },
        Mixing::MagnitudePrune { density: 0.4 },
        Mixing::DareLinear { density: 0.5 },
        Mixing::DareTies { density: 0.5, sign: Sign::Total },
    ] {
        let (whole, exact) = run(mixing, 16, 2);
        assert!(whole.error.unwrap() < 2e-6, "{mixing:?}: {:?}", whole.error);
        let (report, target) = run(mixing, 3, 2);
        let (got, expected) = (products(&target), products(&exact));
        for module in &report.modules {
            let error = apart(&got[&module.module], &expected[&module.module]);
            assert!((error - module.error.unwrap()).abs() < 1e-5, "{mixing:?} {}: {error}", module.module);
            assert_eq!(module.rank, 3);
        }
        let (_, again) = run(mixing, 3, 1);
        let weights = |folder: &Path| std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
        assert_eq!(weights(&again), weights(&target), "{mixing:?}");
    }
}

/// An adapter of these ranks by module, of models with 8 inputs and 6 outputs.
fn adapter(folder: &Path, config: &Value, modules: &[(&str, usize)]) -> String {
    let given: Vec<(String, Vec<usize>)> = modules
        .iter()
        .flat_map(|(module, rank)| {
            let name = |side: &str| format!("base_model.model.{module}.lora_{side}.weight");
            [(name("A"), vec![*rank, 8]), (name("B"), vec![6, *rank])]
        })
        .collect();
    let given: Vec<crate::made::Given<'_>> = given
        .iter()
        .map(|(name, shape)| {
            let dtype = aludel_checkpoint::Dtype::F32;
            (name.as_str(), dtype, shape.as_slice(), noise(shape.iter().product(), shape[0] as u64))
        })
        .collect();
    crate::made::write(folder, &json!({}), &given);
    std::fs::rename(folder.join("model.safetensors"), folder.join("adapter_model.safetensors")).unwrap();
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    folder.display().to_string()
}

#[test]
fn ranks_and_scales_of_their_own_are_heeded() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let first = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": true, "target_modules": ["q", "k"],
        "rank_pattern": {"k": 2}, "task_type": "CAUSAL_LM", "base_model_name_or_path": "the/base"});
    let second = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 2, "target_modules": "q|v"});
    let adapters = [
        (adapter(&at("first"), &first, &[("l.q", 4), ("l.k", 2)]), 0.5),
        (adapter(&at("second"), &second, &[("l.q", 4), ("l.v", 4)]), -2.0),
    ];
    for (mixing, of) in [
        (Mixing::Linear, Of::Concatenated),
        (Mixing::Linear, Of::Products { rank: Some(6) }),
        (Mixing::Linear, Of::Products { rank: None }),
    ] {
        let target = at("out");
        let _ = std::fs::remove_dir_all(&target);
        let report =
            combined(&Settings { adapters: &adapters, mixing, of, dtype: None }, &target, 1).unwrap();
        let (got, first, second) = (products(&target), products(&at("first")), products(&at("second")));
        let sum: Vec<f32> = first["l.q"].iter().zip(&second["l.q"]).map(|(a, b)| 0.5 * a - 2.0 * b).collect();
        let error = report.modules[0].error.unwrap_or(0.0);
        assert!((apart(&got["l.q"], &sum) - error).abs() < 1e-5);
        assert!(apart(&got["l.k"], &first["l.k"].iter().map(|x| 0.5 * x).collect::<Vec<_>>()) < 1e-6);
        assert!(apart(&got["l.v"], &second["l.v"].iter().map(|x| -2.0 * x).collect::<Vec<_>>()) < 1e-6);
        let config: Value =
            serde_json::from_slice(&std::fs::read(target.join("adapter_config.json")).unwrap()).unwrap();
        // The second chose by an expression, so that names are written out.
        assert_eq!(config["target_modules"], json!(["l.q", "l.k", "l.v"]));
        assert_eq!(
            (&config["task_type"], &config["base_model_name_or_path"]),
            (&json!("CAUSAL_LM"), &json!("the/base"))
        );
        assert_eq!(config["use_rslora"], false);
    }
}

#[test]
fn what_has_no_combination_is_refused_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let config =
        |rank: usize| json!({"peft_type": "LORA", "r": rank, "lora_alpha": 2, "target_modules": ["q"]});
    let four = adapter(&at("four"), &config(4), &[("l.q", 4)]);
    let two = adapter(&at("two"), &config(2), &[("l.q", 2)]);
    let of_golden = |case: &str| golden(&format!("adapters/{case}")).display().to_string();
    for (names, told) in [
        (vec![four.clone(), two], "`l.q` has rank 4 in `"),
        (
            vec![of_golden("plain"), of_golden("conv1d-dora")],
            "has magnitudes (DoRA), which cannot be combined",
        ),
        (vec![of_golden("saved")], "has whole tensors of the model, such as `"),
        (vec![of_golden("lora-bias")], "has biases (`lora_bias`)"),
        (
            vec![four, "nowhere".to_owned()],
            "nowhere does not exist: give the folder that peft saved the adapter in",
        ),
    ] {
        let adapters: Vec<(String, f64)> = names.into_iter().map(|name| (name, 1.0)).collect();
        let settings = Settings { adapters: &adapters, mixing: Mixing::Linear, of: Of::Factors, dtype: None };
        let error = combined(&settings, &at("out"), 1).unwrap_err();
        assert!(matches!(&error, MergeError::Problems(_)) && error.to_string().contains(told), "{error}");
        assert!(!at("out").exists());
    }
}
