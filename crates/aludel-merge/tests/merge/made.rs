//! Makes small models for tests, and merges them.

use std::path::Path;

use aludel_checkpoint::{Checkpoint, Dtype, Layout, OutputFolder, OutputTensor, WeightMap};
use aludel_kernels::element::Element;
use aludel_merge::execute::{ExecuteOptions, execute};
use aludel_merge::plan::{Plan, PlanOptions};
use aludel_merge::problem::Problems;
use aludel_merge::recipe::Recipe;
use serde_json::Value;

/// The elements of every tensor: three rows of two, or a vector where it is a norm's.
const ELEMENTS: usize = 6;

fn shape(name: &str) -> Vec<usize> {
    if name.contains("norm") { vec![ELEMENTS] } else { vec![3, 2] }
}

/// Writes a model of f32 tensors, each of which begins with the value given and goes on in steps of 1/1024 whose signs differ
/// from model to model.
pub(crate) fn model(folder: &Path, config: &Value, tensors: &[(String, f32)]) {
    let planned = |(name, _): &(String, f32)| OutputTensor {
        name: name.clone(),
        dtype: Dtype::F32,
        shape: shape(name),
    };
    let layout = Layout::plan(tensors.iter().map(planned).collect(), u64::MAX).unwrap();
    let mut output = OutputFolder::create(folder, true).unwrap();
    output.skip_sync();
    let shards = output.shards(&layout).unwrap();
    for (index, planned) in layout.tensors().iter().enumerate() {
        let value = tensors.iter().find(|(name, _)| *name == planned.name).unwrap().1;
        let sign = |i: usize| if (i + value as usize).is_multiple_of(3) { -1.0 } else { 1.0 };
        let elements = (0..ELEMENTS).map(|i| value + sign(i) * i as f32 / 1024.0);
        let bytes = Element::F32.encode(&elements.collect::<Vec<_>>());
        shards.write_at(&layout.placement(index), 0, &bytes).unwrap();
    }
    shards.finish().unwrap();
    output.write("config.json", config.to_string().as_bytes()).unwrap();
    output.finish().unwrap();
}

/// A tensor to write: name, type, shape, and its values, of which there are as many as the shape says.
pub(crate) type Given<'a> = (&'a str, Dtype, &'a [usize], Vec<f32>);

/// Writes a model of these tensors, each in its type: one that is computed on, or `U8`.
pub(crate) fn write(folder: &Path, config: &Value, tensors: &[Given<'_>]) {
    let planned = |(name, dtype, shape, _): &Given<'_>| OutputTensor {
        name: (*name).to_owned(),
        dtype: *dtype,
        shape: shape.to_vec(),
    };
    let layout = Layout::plan(tensors.iter().map(planned).collect(), u64::MAX).unwrap();
    let mut output = OutputFolder::create(folder, true).unwrap();
    output.skip_sync();
    let shards = output.shards(&layout).unwrap();
    for (index, planned) in layout.tensors().iter().enumerate() {
        let (_, dtype, _, values) = tensors.iter().find(|given| given.0 == planned.name).unwrap();
        let bytes = match dtype {
            Dtype::F32 => Element::F32.encode(values),
            Dtype::F16 => Element::F16.encode(values),
            Dtype::BF16 => Element::BF16.encode(values),
            _ => values.iter().map(|&value| value as u8).collect(),
        };
        shards.write_at(&layout.placement(index), 0, &bytes).unwrap();
    }
    shards.finish().unwrap();
    output.write("config.json", config.to_string().as_bytes()).unwrap();
    output.finish().unwrap();
}

/// Values of the size of weights, the same for the same seed.
pub(crate) fn noise(elements: usize, seed: u64) -> Vec<f32> {
    let uniform = |i| aludel_kernels::random::uniform(aludel_kernels::random::StreamKey(seed), i);
    (0..elements as u64).map(|i| uniform(i) - 0.5).collect()
}

/// Runs what measures, without progress.
pub(crate) fn quietly<T>(run: impl FnOnce(&ExecuteOptions<'_>) -> T) -> T {
    run(&ExecuteOptions { sync: false, ..ExecuteOptions::default() })
}

/// Merges, and gives the first value of every tensor of the output.
pub(crate) fn merged(recipe: &str, target: &Path) -> Result<Vec<(String, f32)>, Problems> {
    merge(recipe, target)?;
    Ok(values(target))
}

/// Merges.
pub(crate) fn merge(recipe: &str, target: &Path) -> Result<(), Problems> {
    let plan = Plan::new(&Recipe::parse(recipe)?, &PlanOptions { threads: 2, ..PlanOptions::default() })?;
    execute_plan(&plan, target);
    Ok(())
}

/// Carries out a plan.
pub(crate) fn execute_plan(plan: &Plan, target: &Path) {
    let options = ExecuteOptions { replace: true, sync: false, ..ExecuteOptions::default() };
    execute(plan, target, &options).unwrap();
}

/// The first value of every tensor of a model.
fn values(folder: &Path) -> Vec<(String, f32)> {
    elements(folder).into_iter().map(|(name, elements)| (name, elements[0])).collect()
}

/// Every element of every tensor of a model of f32 tensors.
pub(crate) fn elements(folder: &Path) -> Vec<(String, Vec<f32>)> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let map = WeightMap::open(&checkpoint).unwrap();
    let tensor = |(name, entry): (&String, &aludel_checkpoint::TensorEntry)| {
        (name.clone(), Element::F32.decode(map.bytes(entry, 0..entry.bytes)))
    };
    checkpoint.tensors().iter().map(tensor).collect()
}

/// A model's `config.json`.
pub(crate) fn config_of(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
}
