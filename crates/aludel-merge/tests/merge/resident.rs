//! Merges in memory with one set of parameters after another, held against folders of the same merges.

use std::path::Path;

use aludel_checkpoint::{Checkpoint, WeightMap};
use aludel_merge::execute::{ExecuteOptions, Merged, Resident};
use aludel_merge::plan::{Plan, PlanOptions, Source};
use aludel_merge::recipe::Recipe;

use crate::made::execute_plan;

/// A plan of the example models; `parameters` are those of the recipe and of both models.
fn plan(method: &str, parameters: [&str; 3], options: &PlanOptions) -> Plan {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/models");
    let models = models.display();
    let [all, first, second] = parameters;
    // A base that is no member is refused.
    let base = if method == "linear" { String::new() } else { format!("base_model: {models}/base\n") };
    let text = format!(
        "merge_method: {method}\n{base}parameters: {{{all}}}\nmodels:\n  - {{model: {models}/technical, parameters: {{{first}}}}}\n  - {{model: {models}/scripture, parameters: {{{second}}}}}\n"
    );
    Plan::new(&Recipe::parse(&text).unwrap(), options).unwrap()
}

/// Holds a merge against a folder of it.
fn check(plan: &Plan, merged: &Merged, what: &str) {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("out");
    execute_plan(plan, &target);
    let checkpoint = Checkpoint::open(&target).unwrap();
    let map = WeightMap::open(&checkpoint).unwrap();
    assert_eq!(merged.tensors.len(), checkpoint.tensors().len());
    for tensor in &merged.tensors {
        let entry = checkpoint.tensor(&tensor.name).unwrap();
        assert_eq!((tensor.dtype, &tensor.shape), (entry.dtype, &entry.shape), "{what}: {}", tensor.name);
        assert!(map.bytes(entry, 0..entry.bytes) == tensor.bytes.as_slice(), "{what}: {}", tensor.name);
    }
}

const TIES: [[&str; 3]; 4] = [
    ["", "weight: 0.5, density: 0.5", "weight: 0.5, density: 0.7"],
    // New weights.
    ["lambda: 1.2", "weight: 0.3, density: 0.5", "weight: 0.9, density: 0.7"],
    // A new density of one model.
    ["lambda: 1.2", "weight: 0.3, density: 0.4", "weight: 0.9, density: 0.7"],
    ["lambda: 0.7", "weight: 0.3, density: 0.4", "weight: 0.8, density: 0.7"],
];

#[test]
fn every_merge_is_the_folder_of_it() {
    let slerp = [["t: 0.5", "", ""], ["t: 0.25", "", ""], ["t: 0.25", "", ""], ["t: [0, 1]", "", ""]];
    let dare = [
        ["", "weight: 0.5, density: 0.5", "weight: 0.5, density: 0.7"],
        ["", "weight: 0.1, density: 0.5", "weight: 0.5, density: 0.2"],
        ["rescale: false", "weight: 0.1, density: 0.5", "weight: 0.5, density: 0.2"],
        ["", "weight: 0.5, density: 0.5", "weight: 0.5, density: 0.7"],
    ];
    // Tiles of one chunk cut the embedding, whose tiles then go to different threads.
    let options = PlanOptions { threads: 3, tile: Some(65_536), seed: 5, ..PlanOptions::default() };
    let cases =
        [("ties", TIES), ("linear", TIES), ("dare_ties", dare), ("della", dare), ("model_stock", TIES)];
    for (method, rounds) in cases {
        let mut resident = Resident::default();
        for (round, parameters) in rounds.into_iter().enumerate() {
            let parameters = match method {
                "linear" => [if round == 2 { "normalize: false" } else { "" }, parameters[1], parameters[2]],
                "model_stock" => ["", "", ""],
                _ => parameters,
            };
            let parameters = if method == "linear" {
                parameters.map(without_density)
            } else {
                parameters.map(str::to_owned)
            };
            let parameters = [&*parameters[0], &*parameters[1], &*parameters[2]];
            let plan = plan(method, parameters, &options);
            let merged = resident.merge(&plan, &ExecuteOptions::default()).unwrap();
            check(&plan, &merged, &format!("{method}, round {round}"));
        }
    }
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/models");
    let mut resident = Resident::default();
    for [all, ..] in slerp {
        let models = models.display();
        let text = format!(
            "merge_method: slerp\nbase_model: {models}/base\nparameters: {{{all}}}\nmodels: [{{model: {models}/base}}, {{model: {models}/scripture}}]\n"
        );
        let plan = Plan::new(&Recipe::parse(&text).unwrap(), &options).unwrap();
        let merged = resident.merge(&plan, &ExecuteOptions::default()).unwrap();
        check(&plan, &merged, all);
    }
}

fn without_density(parameters: &str) -> String {
    parameters.split(", density").next().unwrap_or_default().to_owned()
}

#[test]
fn only_what_changed_is_found_anew() {
    let options = PlanOptions { threads: 2, ..PlanOptions::default() };
    let mut resident = Resident::default();
    let mut counts = Vec::new();
    let mut read = Vec::new();
    for parameters in TIES {
        let plan = plan("ties", parameters, &options);
        let merged = resident.merge(&plan, &ExecuteOptions::default()).unwrap();
        let tensors = plan.steps.len();
        counts.push((merged.reused / tensors, merged.computed / tensors));
        read.push(merged.bytes_read);
    }
    // A threshold for each model and tensor.
    assert_eq!(counts, [(0, 2), (2, 0), (1, 1), (2, 0)]);
    // A merge whose thresholds are known reads its inputs once.
    let plan = plan("ties", TIES[0], &options);
    let bytes = |source: &Source| -> u64 {
        Checkpoint::open(&source.path).unwrap().tensors().values().map(|tensor| tensor.bytes).sum()
    };
    let once: u64 = plan.sources.iter().map(bytes).sum();
    assert_eq!((read[1], read[3]), (once, once));
    assert!(read[0] > once && read[2] > once && read[2] < read[0], "{read:?} {once}");
}

#[test]
fn buffers_are_used_again_and_never_while_somebody_holds_them() {
    let options = PlanOptions { threads: 2, ..PlanOptions::default() };
    let mut resident = Resident::default();
    let mut merge = |parameters| {
        let plan = plan("ties", parameters, &options);
        resident.merge(&plan, &ExecuteOptions::default()).unwrap()
    };
    let first = merge(TIES[0]);
    let held = first.tensors[0].bytes.clone();
    let (before, others) = (held.to_vec(), first.tensors[1].bytes.as_ptr());
    drop(first);
    let second = merge(TIES[1]);
    assert!(*held == before && second.tensors[0].bytes.as_ptr() != held.as_ptr());
    assert!(*second.tensors[0].bytes != before);
    assert_eq!(second.tensors[1].bytes.as_ptr(), others);
}
