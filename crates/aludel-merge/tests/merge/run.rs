//! Runs whole merges on small models made on the spot: what does not depend on threads and tiles, what is refused and when,
//! what is copied, dropped and tied.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use aludel_checkpoint::{Checkpoint, Dtype, Layout, OutputFolder, OutputTensor};
use aludel_kernels::element::Element;
use aludel_kernels::random::{StreamKey, uniform};
use aludel_merge::execute::{ExecuteOptions, MergeError, Pipeline, Report, execute};
use aludel_merge::plan::{Action, Plan, PlanOptions};
use aludel_merge::problem::Problems;
use aludel_merge::recipe::Recipe;

/// A tensor to be written: name, shape, type and bytes.
type Made = (&'static str, Vec<usize>, Dtype, Vec<u8>);

fn floats(name: &'static str, shape: &[usize], model: u64) -> Made {
    let elements = shape.iter().product::<usize>() as u64;
    // Sevenths are multiples of 1/64, so that differences of 16-bit weights tie.
    let value = |i: u64| {
        let u = uniform(StreamKey(model), i) - 0.5;
        if i.is_multiple_of(7) { (u * 8.0).round() / 64.0 } else { u }
    };
    (name, shape.to_vec(), Dtype::BF16, Element::BF16.encode(&(0..elements).map(value).collect::<Vec<_>>()))
}

fn model(folder: &Path, config: &str, tensors: Vec<Made>) -> PathBuf {
    let outputs = tensors.iter().map(|(name, shape, dtype, _)| OutputTensor {
        name: (*name).into(),
        dtype: *dtype,
        shape: shape.clone(),
    });
    let layout = Layout::plan(outputs.collect(), u64::MAX).unwrap();
    let mut output = OutputFolder::create(folder, false).unwrap();
    output.skip_sync();
    let shards = output.shards(&layout).unwrap();
    for (index, planned) in layout.tensors().iter().enumerate() {
        let made = tensors.iter().find(|made| made.0 == planned.name).unwrap();
        shards.write_at(&layout.placement(index), 0, &made.3).unwrap();
    }
    shards.finish().unwrap();
    output.write("config.json", config.as_bytes()).unwrap();
    output.finish().unwrap()
}

const CONFIG: &str =
    r#"{"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "torch_dtype": "bfloat16"}"#;

/// Three models, large enough that selections sample and sweep: 300,000 elements in the largest tensor.
fn three_models(folder: &Path) {
    for (key, name) in [(1, "base"), (2, "a"), (3, "b")] {
        let tensors = vec![
            floats("model.embed_tokens.weight", &[1000, 300], key * 10),
            floats("model.layers.0.mlp.weight", &[401, 41], key * 10 + 1),
            floats("model.layers.1.mlp.weight", &[700, 250], key * 10 + 2),
            floats("model.norm.weight", &[41], key * 10 + 3),
        ];
        model(&folder.join(name), CONFIG, tensors);
    }
}

fn recipe(folder: &Path, method: &str, parameters: &str) -> String {
    let folder = folder.display();
    format!(
        "merge_method: {method}\nbase_model: {folder}/base\nmodels:\n  - model: {folder}/a\n    parameters: {{{parameters}}}\n  \
         - model: {folder}/b\n    parameters: {{{parameters}}}\ndtype: bfloat16\n"
    )
}

fn plan(recipe: &str, options: &PlanOptions) -> Result<Plan, Problems> {
    Plan::new(&Recipe::parse(recipe)?, options)
}

fn run(plan: &Plan, target: &Path) -> Result<Report, MergeError> {
    run_by(plan, target, Pipeline::default())
}

fn run_by(plan: &Plan, target: &Path, pipeline: Pipeline) -> Result<Report, MergeError> {
    let options = ExecuteOptions { replace: true, sync: false, pipeline, ..ExecuteOptions::default() };
    execute(plan, target, &options)
}

fn weights(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("model.safetensors")).unwrap()
}

#[test]
fn bytes_do_not_depend_on_threads_or_tiles() {
    let folder = tempfile::tempdir().unwrap();
    three_models(folder.path());
    for (method, parameters) in [
        ("ties", "weight: 0.7, density: 0.3"),
        ("dare_ties", "weight: 0.7, density: 0.3"),
        ("breadcrumbs", "weight: 0.7, density: 0.6"),
        ("model_stock", ""),
        ("task_arithmetic", "weight: 0.7"),
        ("della", "weight: 0.7, density: 0.4"),
        ("della_linear", "weight: 0.7, density: 0.6, epsilon: 0.3"),
        ("sce", "; select_topk: 0.4"),
        ("ramplus_tl", "; epsilon: 0.1"),
        ("multislerp", "weight: 0.7"),
        ("karcher", "; max_iter: 20"),
        ("nuslerp", "weight: 0.7; nuslerp_flatten: false"),
        ("nuslerp", "weight: 0.7; nuslerp_flatten: false, nuslerp_row_wise: true"),
        (
            "formula",
            "share: 0.4; formula: 'd = model[0] - base; base + average(share * (model - base)) * d / row_norm(d)'",
        ),
        ("geometric_median", "; without: base"),
        ("arcee_fusion", "; without: b"),
        ("nearswap", "; t: 0.1, without: b"),
        ("expo", "; alpha: 0.1, without: b"),
    ] {
        let (own, global) = parameters.split_once(';').unwrap_or((parameters, ""));
        let (global, without) = global.split_once("without: ").unwrap_or((global, ""));
        let mut recipe = recipe(folder.path(), method, own) + &format!("parameters: {{{global}}}\n");
        match without {
            "base" => recipe = recipe.replace("base_model:", "# base_model:"),
            "b" => {
                let listed = format!("  - model: {}/b\n    parameters: {{{own}}}\n", folder.path().display());
                recipe = recipe.replace(&listed, "");
            }
            _ => {}
        }
        let mut first: Option<Vec<u8>> = None;
        for (threads, tile) in [(1, 1), (2, 1), (7, 2), (2, 4), (1, 16)] {
            let options =
                PlanOptions { threads, tile: Some(tile * 65_536), seed: 3, ..PlanOptions::default() };
            let target = folder.path().join("out");
            run(&plan(&recipe, &options).unwrap(), &target).unwrap();
            let bytes = weights(&target);
            assert!(
                *first.get_or_insert_with(|| bytes.clone()) == bytes,
                "{method}, {threads} threads, tile {tile}"
            );
        }
    }
}

/// What goes on at once changes no byte, and no count: not of tensors that are merged tile by tile, nor of those that are merged together.
#[test]
fn bytes_do_not_depend_on_what_goes_on_at_once() {
    let folder = tempfile::tempdir().unwrap();
    three_models(folder.path());
    let whole = Pipeline { leaves_cache: Some(false), ..Pipeline::default() };
    let pipelines = [
        whole,
        Pipeline { overlaps: false, ..whole },
        Pipeline { groups: false, ..whole },
        Pipeline { leaves_cache: Some(true), ..whole },
        Pipeline { overlaps: false, groups: false, leaves_cache: Some(true) },
    ];
    for (method, parameters) in [
        ("ties", "weight: 0.7, density: 0.3"),
        ("dare_ties", "weight: 0.7, density: 0.3"),
        ("della", "weight: 0.7, density: 0.4"),
        ("model_stock", ""),
    ] {
        let recipe = recipe(folder.path(), method, parameters);
        let mut first: Option<(Vec<u8>, u64, u64, u64)> = None;
        for (tile, threads) in [(1, 2), (4, 3)] {
            let options = PlanOptions { threads, tile: Some(tile * 65_536), ..PlanOptions::default() };
            for pipeline in pipelines {
                let target = folder.path().join("out");
                let report = run_by(&plan(&recipe, &options).unwrap(), &target, pipeline).unwrap();
                let found = (weights(&target), report.sweeps, report.bytes_read, report.bytes_copied);
                let first = first.get_or_insert_with(|| found.clone());
                assert!(*first == found, "{method} with tile {tile}: {pipeline:?} gives {:?}", &found.1);
            }
        }
    }
}

/// What is computed on is not copied; what is only copied is, once between buffers and once to the system.
#[test]
fn copies_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["base", "a", "b"] {
        let other = ("model.steps", vec![1000], Dtype::U8, vec![7; 1000]);
        model(&folder.path().join(name), CONFIG, vec![floats("model.w", &[300, 1000], 3), other]);
    }
    let recipe = recipe(folder.path(), "task_arithmetic", "weight: 0.5");
    let report = run(&plan(&recipe, &PlanOptions::default()).unwrap(), &folder.path().join("out")).unwrap();
    let header = weights(&folder.path().join("out")).len() as u64 - 601_000;
    assert_eq!(report.bytes_written, 601_000 + header);
    assert_eq!(report.bytes_copied, report.bytes_written + 1000);
}

#[test]
fn another_seed_is_another_mask() {
    let folder = tempfile::tempdir().unwrap();
    three_models(folder.path());
    let recipe = recipe(folder.path(), "dare_linear", "weight: 0.5, density: 0.5");
    let merged = |seed, target: &str| {
        let target = folder.path().join(target);
        run(&plan(&recipe, &PlanOptions { seed, ..PlanOptions::default() }).unwrap(), &target).unwrap();
        weights(&target)
    };
    assert!(merged(1, "x") == merged(1, "y"));
    assert!(merged(1, "x") != merged(2, "z"));
}

/// A mask keeps its share, and dropping at random leaves the mean where it was.
#[test]
fn dare_keeps_its_share_and_is_unbiased() {
    let folder = tempfile::tempdir().unwrap();
    let elements = 400_000;
    let constant = |value: f32| {
        let bytes = Element::F32.encode(&vec![value; elements]);
        vec![("w", vec![elements], Dtype::F32, bytes)]
    };
    model(&folder.path().join("base"), CONFIG, constant(0.0));
    model(&folder.path().join("a"), CONFIG, constant(1.0));
    model(&folder.path().join("b"), CONFIG, constant(0.0));
    let recipe = recipe(folder.path(), "dare_linear", "weight: 1, density: 0.3")
        .replace("bfloat16", "float32")
        + "parameters: {rescale_mode: density}\n";
    let target = folder.path().join("out");
    run(&plan(&recipe, &PlanOptions::default()).unwrap(), &target).unwrap();
    let bytes = weights(&target);
    let values = Element::F32.decode(&bytes[bytes.len() - 4 * elements..]);
    let kept = values.iter().filter(|&&value| value != 0.0).count() as f64 / elements as f64;
    let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / elements as f64;
    // Five standard deviations of a share of 0.3 in 400,000 draws.
    assert!((kept - 0.3).abs() < 0.0037, "{kept}");
    assert!((mean - 1.0).abs() < 0.0121, "{mean}");
    assert!(values.iter().all(|&value| value == 0.0 || (value - 1.0 / 0.3).abs() < 1e-6));
}

#[test]
fn a_value_that_is_not_finite_is_named_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    three_models(folder.path());
    let file = folder.path().join("b/model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&0x7fc0u16.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    let recipe = recipe(folder.path(), "ties", "weight: 1, density: 0.5");
    let target = folder.path().join("out");
    let error = run(&plan(&recipe, &PlanOptions::default()).unwrap(), &target).unwrap_err();
    let MergeError::NonFinite { tensor, model, index, value } = error else { panic!("{error}") };
    assert_eq!((tensor.as_str(), index), ("model.norm.weight", 40));
    assert!(model.ends_with("/b") && value.is_nan(), "{model}: {value}");
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
    let allowed = PlanOptions { allow_non_finite: true, ..PlanOptions::default() };
    assert!(run(&plan(&recipe, &allowed).unwrap(), &target).is_ok());
}

#[test]
fn a_plan_reads_headers_only() {
    let folder = tempfile::tempdir().unwrap();
    three_models(folder.path());
    let recipe = recipe(folder.path(), "ties", "weight: 1, density: 0.5");
    let before = plan(&recipe, &PlanOptions::default()).unwrap();
    for name in ["base", "a", "b"] {
        // The tensors' bytes become a hole: a plan that read them would see other values, or none.
        let path = folder.path().join(name).join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(header).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
    }
    let after = plan(&recipe, &PlanOptions::default()).unwrap();
    assert_eq!(serde_json::to_value(&before.steps).unwrap(), serde_json::to_value(&after.steps).unwrap());
    assert_eq!(after.steps.len(), 4);
    // Two passes over three models of four tensors, 2 bytes each.
    assert_eq!(after.work.bytes_read, 2 * 3 * 2 * (300_000 + 401 * 41 + 175_000 + 41));
}

#[test]
fn all_problems_of_the_headers_are_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    three_models(folder.path());
    fs::remove_dir_all(folder.path().join("b")).unwrap();
    let tensors = vec![
        floats("model.embed_tokens.weight", &[1001, 300], 5),
        floats("model.layers.0.mlp.weight", &[401, 42], 6),
        floats("model.layers.1.mlp.weights", &[700, 250], 7),
        floats("model.norm.weight", &[41], 8),
    ];
    model(&folder.path().join("b"), CONFIG, tensors);
    let text = recipe(folder.path(), "ties", "weight: 1, densty: 0.5");
    let problems =
        plan(&text, &PlanOptions { memory: 1 << 10, ..PlanOptions::default() }).unwrap_err().to_string();
    for expected in [
        "models[0].parameters.densty",
        "did you mean `density`?",
        "`model.embed_tokens.weight` is [1000, 300]",
        "the vocabularies differ in size",
        "`model.layers.0.mlp.weight` is [401, 41]",
        "has no tensor `model.layers.1.mlp.weight`, which",
        "has no tensor `model.layers.1.mlp.weights`, which",
        "MiB of memory, and may take 0 MiB",
    ] {
        assert!(problems.contains(expected), "{expected:?} is not in:\n{problems}");
    }
}

#[test]
fn other_types_are_copied_where_the_models_agree() {
    let folder = tempfile::tempdir().unwrap();
    let ids = |last: u8| ("position_ids", vec![1, 4], Dtype::I64, [vec![7; 31], vec![last]].concat());
    for (name, last) in [("base", 7), ("a", 7), ("b", 7)] {
        model(&folder.path().join(name), CONFIG, vec![floats("w", &[41], 1), ids(last)]);
    }
    let text = recipe(folder.path(), "task_arithmetic", "weight: 1");
    let planned = plan(&text, &PlanOptions::default()).unwrap();
    assert!(planned.steps.iter().any(|step| step.tensor == "position_ids" && step.action == Action::Copy));
    let target = folder.path().join("out");
    run(&planned, &target).unwrap();
    let entry = Checkpoint::open(&target).unwrap().tensor("position_ids").unwrap().clone();
    assert_eq!((entry.dtype, entry.shape), (Dtype::I64, vec![1, 4]));
    let start = entry.offset as usize;
    assert_eq!(weights(&target)[start..start + 32], [7; 32]);

    fs::remove_dir_all(folder.path().join("b")).unwrap();
    model(&folder.path().join("b"), CONFIG, vec![floats("w", &[41], 1), ids(8)]);
    let error = run(&plan(&text, &PlanOptions::default()).unwrap(), &target).unwrap_err();
    assert!(matches!(&error, MergeError::Disagree { tensor, .. } if tensor == "position_ids"), "{error}");
}

#[test]
fn tied_embeddings_stay_tied() {
    let folder = tempfile::tempdir().unwrap();
    let tied = r#"{"tie_word_embeddings": true}"#;
    let embedding = |key| floats("model.embed_tokens.weight", &[41, 8], key);
    let head = |key| floats("lm_head.weight", &[41, 8], key);
    model(&folder.path().join("base"), tied, vec![embedding(1)]);
    model(&folder.path().join("a"), tied, vec![embedding(2), head(2)]);
    model(&folder.path().join("b"), tied, vec![embedding(3)]);
    let text = recipe(folder.path(), "task_arithmetic", "weight: 1");
    let planned = plan(&text, &PlanOptions::default()).unwrap();
    assert_eq!(
        planned.steps.iter().map(|step| step.tensor.as_str()).collect::<Vec<_>>(),
        ["model.embed_tokens.weight"]
    );
    assert_eq!(planned.dropped.len(), 1);
    assert!(planned.dropped[0].tensor == "lm_head.weight" && planned.dropped[0].reason.contains("tied"));

    // An untied base: the head is merged, and a tied model's embedding stands in for the head that it lacks.
    fs::remove_dir_all(folder.path().join("base")).unwrap();
    model(&folder.path().join("base"), r#"{"tie_word_embeddings": false}"#, vec![embedding(1), head(4)]);
    let planned = plan(&text, &PlanOptions::default()).unwrap();
    let step = planned.steps.iter().find(|step| step.tensor == "lm_head.weight").unwrap();
    let inputs: Vec<_> = step.inputs.iter().map(|input| input.tensor.as_str()).collect();
    assert_eq!(inputs, ["lm_head.weight", "model.embed_tokens.weight", "lm_head.weight"]);
    assert!(planned.dropped.is_empty());
}

#[test]
fn a_sharded_output_is_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    three_models(folder.path());
    let text = recipe(folder.path(), "ties", "weight: 1, density: 0.5");
    let (whole, sharded) = (folder.path().join("whole"), folder.path().join("sharded"));
    run(&plan(&text, &PlanOptions::default()).unwrap(), &whole).unwrap();
    run(&plan(&text, &PlanOptions { shard_bytes: 400_000, ..PlanOptions::default() }).unwrap(), &sharded)
        .unwrap();
    let (whole, sharded) = (Checkpoint::open(&whole).unwrap(), Checkpoint::open(&sharded).unwrap());
    assert_eq!((whole.files().len(), sharded.files().len()), (1, 2));
    for (name, entry) in whole.tensors() {
        let other = sharded.tensor(name).unwrap();
        let bytes = |checkpoint: &Checkpoint, entry: &aludel_checkpoint::TensorEntry| {
            let all = fs::read(&checkpoint.files()[entry.file].path).unwrap();
            all[entry.offset as usize..(entry.offset + entry.bytes) as usize].to_vec()
        };
        assert!(bytes(&whole, entry) == bytes(&sharded, other), "{name}");
    }
}
