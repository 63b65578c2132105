//! Merges into FP8 and holds the output against torch's codes, and against the same merge in F32.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use aludel_checkpoint::{Checkpoint, Dtype, WeightMap};
use aludel_merge::plan::{Form, Plan, PlanOptions};
use aludel_merge::problem::Problems;
use aludel_merge::recipe::Recipe;
use serde_json::json;

use crate::made::{config_of, elements, execute_plan, merge, noise, write};

fn plan(recipe: &str, options: PlanOptions) -> Result<Plan, Problems> {
    Plan::new(&Recipe::parse(recipe)?, &PlanOptions { form: Form::Fp8, ..options })
}

/// The type and the bytes of every tensor.
fn stored(path: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let map = WeightMap::open(&checkpoint).unwrap();
    let tensors = checkpoint.tensors().iter();
    tensors
        .map(|(name, entry)| {
            let bytes = map.bytes(entry, 0..entry.bytes).to_vec();
            (name.clone(), (entry.dtype, entry.shape.clone(), bytes))
        })
        .collect()
}

/// Every value of a model whose weights are FP8, as a merge reads them.
fn decoded(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let checkpoint = Checkpoint::open_source(path).unwrap();
    let map = WeightMap::open(&checkpoint).unwrap();
    let values = |tensor: &aludel_checkpoint::Encoded| {
        let mut values = vec![0.0; tensor.elements() as usize];
        tensor.fill(&map, 0..tensor.elements(), &mut values);
        values
    };
    checkpoint.encoded().iter().map(|(name, tensor)| (name.clone(), values(tensor))).collect()
}

#[test]
fn the_codes_and_scales_are_those_of_torch() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let recipe = fs::read_to_string(golden.join("fp8/recipe.yml")).unwrap();
    let recipe = recipe.replace("models/", &format!("{}/models/", golden.display()));
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("out");
    execute_plan(&plan(&recipe, PlanOptions::default()).unwrap(), &target);
    let expected = stored(&golden.join("fp8/expected.safetensors"));
    assert_eq!(stored(&target), expected);
    assert_eq!(expected.values().filter(|(dtype, ..)| *dtype == Dtype::F8_E4M3).count(), 21);

    let config = config_of(&target);
    let quantisation = &config["quantization_config"];
    assert_eq!(quantisation["quant_method"], "compressed-tensors");
    assert_eq!(quantisation["format"], "float-quantized");
    assert_eq!(quantisation["ignore"], json!(["lm_head"]));
    let group = &quantisation["config_groups"]["group_0"];
    assert_eq!(group["targets"], json!(["Linear"]));
    assert_eq!(
        (&group["weights"]["strategy"], &group["weights"]["dynamic"]),
        (&json!("channel"), &json!(false))
    );
    assert_eq!(
        (&group["input_activations"]["strategy"], &group["input_activations"]["dynamic"]),
        (&json!("token"), &json!(true))
    );
    assert_eq!(config["torch_dtype"], "float32");
}

/// Two models of matrices whose rows lie across units of work, of a router and of an embedding.
fn models(folder: &Path) -> (PathBuf, String) {
    let tensors: [(&str, &[usize]); 6] = [
        ("model.embed_tokens.weight", &[31, 40]),
        ("model.layers.0.mlp.experts.0.w1.weight", &[401, 700]),
        ("model.layers.0.mlp.gate.weight", &[4, 40]),
        ("model.layers.0.input_layernorm.weight", &[40]),
        ("model.layers.0.self_attn.q_proj.weight", &[3, 100_001]),
        ("model.layers.0.self_attn.q_proj.bias", &[3]),
    ];
    for (seed, name) in [(1, "a"), (2, "b")] {
        let tensor = |(at, &(name, shape)): (usize, &(&'static str, &'static [usize]))| {
            let mut values = noise(shape.iter().product(), seed * 100 + at as u64);
            // Some rows of zeros, and rows of many sizes.
            let columns = shape[shape.len() - 1];
            for (row, values) in values.chunks_mut(columns).enumerate() {
                let size = if row % 5 == 4 { 0.0 } else { 10f32.powi(row as i32 % 9 - 6) };
                values.iter_mut().for_each(|value| *value *= size);
            }
            (name, Dtype::BF16, shape, values)
        };
        let given: Vec<crate::made::Given<'_>> = tensors.iter().enumerate().map(tensor).collect();
        write(&folder.join(name), &json!({"torch_dtype": "bfloat16", "tie_word_embeddings": true}), &given);
    }
    let (a, b) = (folder.join("a"), folder.join("b"));
    let recipe = format!(
        "merge_method: slerp\nbase_model: {a}\nmodels: [{{model: {a}}}, {{model: {b}}}]\nparameters: {{t: 0.3}}\ndtype: DTYPE\n",
        a = a.display(),
        b = b.display()
    );
    (folder.join("out"), recipe)
}

#[test]
fn what_is_read_back_is_within_half_a_step_of_the_merge_whatever_the_threads_and_files() {
    let folder = tempfile::tempdir().unwrap();
    let (target, recipe) = models(folder.path());
    merge(&recipe.replace("DTYPE", "float32"), &target).unwrap();
    let exact: BTreeMap<String, Vec<f32>> = elements(&target).into_iter().collect();

    let recipe = recipe.replace("DTYPE", "bfloat16");
    let options = || PlanOptions { threads: 1, tile: Some(65_536), ..PlanOptions::default() };
    execute_plan(&plan(&recipe, options()).unwrap(), &target);
    let (expected, read) = (stored(&target), decoded(&target));
    let names: Vec<&str> = read.keys().map(String::as_str).collect();
    assert_eq!(names, ["model.layers.0.mlp.experts.0.w1.weight", "model.layers.0.self_attn.q_proj.weight"]);
    for (name, values) in &read {
        let columns = expected[name].1[1];
        let (mut error, mut size) = (0.0, 0.0);
        for (read, exact) in values.chunks(columns).zip(exact[name].chunks(columns)) {
            let scale = exact.iter().fold(0f32, |most, value| most.max(value.abs())) / 448.0;
            for (read, exact) in read.iter().zip(exact) {
                let step = (exact.abs() / 16.0).max(scale / 1024.0) * 1.001;
                assert!((read - exact).abs() <= step, "{name}: {read} for {exact}");
                error += f64::from(read - exact).powi(2);
                size += f64::from(*exact).powi(2);
            }
        }
        let relative = (error / size).sqrt();
        assert!((0.02..0.03).contains(&relative), "{name}: {relative}");
    }
    assert_eq!(expected["model.layers.0.mlp.gate.weight"].0, Dtype::BF16);
    let ignored = &config_of(&target)["quantization_config"]["ignore"];
    assert_eq!(ignored, &json!(["model.layers.0.mlp.gate", "lm_head"]));

    let other = PlanOptions { threads: 3, shard_bytes: 100_000, ..PlanOptions::default() };
    let other = plan(&recipe, other).unwrap();
    assert!(other.layout.shards().len() > 2);
    execute_plan(&other, &target);
    assert_eq!(stored(&target), expected);
}

#[test]
fn an_output_that_cannot_be_fp8_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({});
    write(&folder.path().join("a"), &config, &[("w.weight", Dtype::F32, &[2, 2], vec![1.0; 4])]);
    let passthrough = |model: &str| {
        format!("merge_method: passthrough\nmodels: [{{model: {}}}]\n", folder.path().join(model).display())
    };
    let told = plan(&passthrough("a"), PlanOptions::default()).unwrap_err().to_string();
    assert!(told.contains("no linear weights in layers"), "{told}");
}
