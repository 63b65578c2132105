//! Plans and runs recipes of several documents: stages are built into the passes of the output, with the values that they
//! would have had on disk in f32.

use std::path::Path;

use crate::made::{config_of, elements, execute_plan, merged, model};
use aludel_merge::plan::{Plan, PlanOptions};
use aludel_merge::recipe::Recipe;
use aludel_merge::sequence::Sequence;
use serde_json::json;

const NAMES: [&str; 6] = [
    "model.embed_tokens.weight",
    "model.layers.0.mlp.weight",
    "model.layers.1.mlp.weight",
    "model.layers.2.mlp.weight",
    "model.norm.weight",
    "lm_head.weight",
];

/// Four models, `base`, `a`, `b` and `c`.
fn models(folder: &Path) {
    for (number, name) in ["base", "a", "b", "c"].into_iter().enumerate() {
        let value = |i: usize| 1.0 + number as f32 * (0.5 + i as f32 / 16.0);
        let tensors: Vec<_> =
            NAMES.iter().enumerate().map(|(i, &tensor)| (tensor.to_owned(), value(i))).collect();
        model(&folder.join(name), &json!({"num_hidden_layers": 3, "model_type": "llama"}), &tensors);
    }
}

/// A document with `{a}` and the like in the place of paths.
fn with_paths(text: &str, folder: &Path) -> String {
    let path = |text: String, name: &&str| {
        text.replace(&format!("{{{name}}}"), &folder.join(name).display().to_string())
    };
    ["base", "a", "b", "c", "first"].iter().fold(text.to_owned(), path)
}

/// Two documents, the first of which is named `first` and used as `{first}` by the second.
const CHAINS: [(&str, &str); 5] = [
    (
        "merge_method: linear\nmodels: [{model: '{a}', parameters: {weight: 0.3}}, {model: '{b}', parameters: {weight: 0.7}}]\ndtype: float32\n",
        "merge_method: ties\nbase_model: '{base}'\nmodels: [{model: '{first}', parameters: {weight: 1, density: 0.5}}, {model: '{c}', parameters: {weight: 0.5, density: 0.4}}]\ndtype: float32\n",
    ),
    (
        "merge_method: ties\nbase_model: '{base}'\nmodels: [{model: '{a}', parameters: {weight: 1, density: 0.5}}, {model: '{c}', parameters: {weight: 0.5, density: 0.4}}]\ndtype: float32\n",
        "merge_method: slerp\nbase_model: '{b}'\nmodels: [{model: '{first}'}]\nparameters: {t: [0.2, 0.8]}\ndtype: float32\n",
    ),
    (
        "merge_method: slerp\nbase_model: '{base}'\nmodels: [{model: '{a}'}]\nparameters: {t: 0.3}\ndtype: float32\n",
        "merge_method: dare_ties\nbase_model: '{first}'\nmodels: [{model: '{b}', parameters: {weight: 1, density: 0.5}}, {model: '{c}', parameters: {weight: 0.5, density: 0.6}}]\ndtype: float32\n",
    ),
    (
        "merge_method: passthrough\nslices: [{sources: [{model: '{a}', layer_range: [0, 2]}]}, {sources: [{model: '{b}', layer_range: [1, 3]}]}]\ndtype: float32\n",
        "merge_method: linear\nslices: [{sources: [{model: '{first}', layer_range: [1, 4]}, {model: '{c}', layer_range: [0, 3]}]}, {sources: [{model: '{first}', layer_range: [0, 1]}, {model: '{first}', layer_range: [3, 4]}]}]\nparameters: {weight: 0.5}\ndtype: float32\n",
    ),
    (
        "merge_method: task_arithmetic\nbase_model: '{base}'\nmodels: [{model: '{a}', parameters: {weight: 0.5}}, {model: '{b}', parameters: {weight: -1}}]\ndtype: float32\n",
        "merge_method: model_stock\nbase_model: '{base}'\nmodels: [{model: '{first}'}, {model: '{c}'}]\ndtype: float32\n",
    ),
];

#[test]
fn a_chain_in_one_pass_has_the_bits_of_a_chain_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    models(folder);
    for (first, second) in CHAINS {
        merged(&with_paths(first, folder), &folder.join("first")).unwrap();
        merged(&with_paths(second, folder), &folder.join("on-disk")).unwrap();
        let fused = format!("name: first\n{first}---\n{}", second.replace("{first}", "first"));
        merged(&with_paths(&fused, folder), &folder.join("fused")).unwrap();
        assert_eq!(elements(&folder.join("fused")), elements(&folder.join("on-disk")), "{fused}");
        assert_eq!(config_of(&folder.join("fused")), config_of(&folder.join("on-disk")), "{fused}");
    }
}

/// Runs each document by itself, with results in between beside `target`.
fn merged_in_runs(text: &str, target: &Path, results: &Path) {
    let options = PlanOptions { target: Some(target.to_path_buf()), replace: true, ..PlanOptions::default() };
    let sequence = Sequence::of(Recipe::parse(text).unwrap(), &options, results).unwrap();
    let foreseen = sequence.plans().unwrap();
    assert_eq!(foreseen.len(), sequence.runs().len());
    for (run, foreseen) in sequence.runs().iter().zip(foreseen) {
        let plan = run.plan().unwrap();
        let sources =
            |plan: &Plan| -> Vec<_> { plan.sources.iter().map(|source| source.path.clone()).collect() };
        assert_eq!(sources(&plan), sources(&foreseen));
        assert_eq!((&plan.steps, &plan.side_files.names), (&foreseen.steps, &foreseen.side_files.names));
        execute_plan(&plan, run.target().unwrap());
    }
}

/// Random masks and all: each recipe of the chain has the random streams that it would have in one pass.
#[test]
fn a_chain_in_runs_has_the_bits_of_a_chain_in_one_pass() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    models(folder);
    let dare = "merge_method: dare_ties\nbase_model: '{base}'\nmodels: [{model: '{a}', parameters: {weight: 1, density: 0.5}}, {model: '{c}', parameters: {weight: 0.5, density: 0.6}}]\ndtype: float32\n";
    let again = dare.replace("{a}", "{first}");
    for (first, second) in CHAINS.into_iter().chain([(dare, again.as_str())]) {
        let chain = format!("name: first\n{first}---\n{}", second.replace("{first}", "first"));
        let chain = with_paths(&chain, folder);
        merged(&chain, &folder.join("fused")).unwrap();
        merged_in_runs(&chain, &folder.join("out"), &folder.join("results"));
        assert_eq!(elements(&folder.join("out")), elements(&folder.join("fused")), "{chain}");
        assert_eq!(config_of(&folder.join("out")), config_of(&folder.join("fused")), "{chain}");
        assert!(folder.join("results/first/model.safetensors").exists());
    }
}

#[test]
fn a_chain_that_is_no_pass_is_merged_in_runs() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    models(folder);
    let chain = with_paths(ROWS_THAT_DIFFER, folder);
    let refused = merged(&chain, &folder.join("out")).unwrap_err().to_string();
    assert!(refused.contains("with --intermediate-dir"), "{refused}");
    merged_in_runs(&chain, &folder.join("out"), &folder.join("results"));
    let (first, second) = chain.split_once("---\n").unwrap();
    let second = second.replace("model: first", &format!("model: '{}'", folder.join("alone").display()));
    merged(first.strip_prefix("name: first\n").unwrap(), &folder.join("alone")).unwrap();
    merged(&second, &folder.join("by hand")).unwrap();
    assert_eq!(elements(&folder.join("out")), elements(&folder.join("by hand")));
}

#[test]
fn a_result_whose_name_is_no_folder_is_refused() {
    let text = "name: ../first\nmerge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1}\n---\nmerge_method: linear\nmodels: [{model: ../first}]\nparameters: {weight: 1}\n";
    let recipe = Recipe::parse(text).unwrap();
    let refused = Sequence::of(recipe, &PlanOptions::default(), Path::new("results")).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "1:7 name: `../first` cannot be a folder: it means a folder (the result is written to a folder of this name; choose another)"
    );
}

/// A vector is rows of one element to the first recipe, and one row to the second.
const ROWS_THAT_DIFFER: &str = "name: first\nmerge_method: nuslerp\nmodels: [{model: '{a}'}, {model: '{b}'}]\nparameters: {weight: 1, nuslerp_flatten: false, nuslerp_row_wise: true}\ndtype: float32\n---\n\
     merge_method: model_stock\nbase_model: '{base}'\nmodels: [{model: first}, {model: '{c}'}]\nparameters: {filter_wise: true}\ndtype: float32\n";

#[test]
fn stages_read_the_checkpoints_and_leave_no_files() {
    let folder = tempfile::tempdir().unwrap();
    models(folder.path());
    let (first, second) = CHAINS[0];
    let fused = format!("{}---\nname: first\n{first}", second.replace("{first}", "first"));
    let recipe = Recipe::parse(&with_paths(&fused, folder.path())).unwrap();
    let plan = Plan::new(&recipe, &PlanOptions::default()).unwrap();
    let sources: Vec<_> =
        plan.sources.iter().map(|source| source.path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(sources, ["a", "b", "c", "base"]);
    assert!(plan.steps.iter().all(|step| step.inputs.len() == 4));
    assert_eq!(
        (plan.stages[0].name.as_str(), plan.stages[0].method, plan.method),
        ("first", "linear", "ties")
    );
    assert!(plan.to_string().starts_with("method   ties\nstage    first (linear), in the same passes\n"));
    assert_eq!(plan.recipe, with_paths(&fused, folder.path()));
}

/// One model in the same place of two stages: with one stream for both, the two would drop the same elements.
#[test]
fn stages_draw_their_own_random_numbers() {
    let folder = tempfile::tempdir().unwrap();
    models(folder.path());
    let stage = |name: &str| {
        format!(
            "name: {name}\nmerge_method: dare_linear\nbase_model: '{{base}}'\nmodels: [{{model: '{{a}}', parameters: {{weight: 1, density: 0.5}}}}]\nparameters: {{rescale: false}}\n---\n"
        )
    };
    let output = "merge_method: linear\nmodels: [{model: x, parameters: {weight: 1}}, {model: y, parameters: {weight: -1}}]\nparameters: {normalize: false}\ndtype: float32\n";
    let text = with_paths(&(stage("x") + &stage("y") + output), folder.path());
    merged(&text, &folder.path().join("out")).unwrap();
    let elements: Vec<f32> =
        elements(&folder.path().join("out")).into_iter().flat_map(|(_, elements)| elements).collect();
    let differ = elements.iter().filter(|&&element| element != 0.0).count();
    // Each of 36 elements differs with probability 1/2; the seed is fixed.
    assert!((9..=27).contains(&differ), "{differ} of {}", elements.len());
}

#[test]
fn what_a_stage_makes_of_a_tensor_may_be_used_twice_and_in_part() {
    let folder = tempfile::tempdir().unwrap();
    models(folder.path());
    let text = "name: first\nmerge_method: linear\nmodels: [{model: '{a}'}, {model: '{b}'}]\nparameters: {weight: 1}\n---\n\
                name: second\nmerge_method: linear\nmodels: [{model: first}, {model: '{c}'}]\nparameters: {weight: 1}\n---\n\
                merge_method: linear\nslices: [{sources: [{model: first, layer_range: [0, 1]}, {model: second, layer_range: [1, 2]}]}]\n\
                parameters: {weight: 1}\ndtype: float32\n";
    let text = with_paths(text, folder.path());
    let plan = Plan::new(&Recipe::parse(&text).unwrap(), &PlanOptions::default()).unwrap();
    let of = |name: &str| {
        let step = plan.steps.iter().find(|step| step.tensor == name).unwrap();
        let inputs = step
            .inputs
            .iter()
            .map(|input| input.tensor.rsplit_once("layers.").map_or("", |(_, rest)| &rest[..1]));
        inputs.collect::<Vec<_>>()
    };
    assert_eq!(of("model.norm.weight"), [""; 3]);
    // Layer 0 of the first stage's two models, layer 1 of the second's three.
    assert_eq!(of("model.layers.0.mlp.weight"), ["0", "0", "1", "1", "1"]);
    let left: Vec<_> =
        plan.dropped.iter().map(|dropped| (dropped.tensor.as_str(), dropped.reason.as_str())).collect();
    assert!(
        left.contains(&("model.layers.2.mlp.weight", "no later recipe takes what is made of it")),
        "{left:?}"
    );
    let used: usize = plan.steps.iter().map(|step| step.inputs.len()).sum();
    assert_eq!(used + plan.dropped.len(), 3 * NAMES.len());
}

#[test]
fn a_stage_that_cannot_be_planned_is_told_once() {
    let folder = tempfile::tempdir().unwrap();
    models(folder.path());
    let text = "name: first\nmerge_method: linear\nmodels: [{model: '{a}'}, {model: absent}]\nparameters: {weight: 1}\n---\n\
                merge_method: linear\nmodels: [{model: first}, {model: fisrt}]\nparameters: {weight: 1}\n";
    let recipe = Recipe::parse(&with_paths(text, folder.path())).unwrap();
    let problems = Plan::new(&recipe, &PlanOptions::default()).unwrap_err();
    let told: Vec<_> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].starts_with("3:") && told[0].contains("absent does not exist"), "{told:?}");
    let hint = "(did you mean the result of the recipe named `first`?)";
    assert!(told[1].starts_with("7:") && told[1].ends_with(hint), "{told:?}");
}

/// One pass over a tensor has rows of one length. A vector is one row to `model_stock`, and to `nuslerp` along the first
/// dimension it is rows of one element.
#[test]
fn stages_that_see_other_rows_are_refused_unless_they_compute_nothing_by_row() {
    let folder = tempfile::tempdir().unwrap();
    models(folder.path());
    let text = |row_wise: bool, filter_wise: bool| {
        let text = format!(
            "name: first\nmerge_method: nuslerp\nmodels: [{{model: '{{a}}'}}, {{model: '{{b}}'}}]\nparameters: {{weight: 1, nuslerp_flatten: false, nuslerp_row_wise: {row_wise}}}\n---\n\
             merge_method: model_stock\nbase_model: '{{base}}'\nmodels: [{{model: first}}, {{model: '{{c}}'}}]\nparameters: {{filter_wise: {filter_wise}}}\n"
        );
        with_paths(&text, folder.path())
    };
    let planned = |row_wise, filter_wise| {
        Plan::new(&Recipe::parse(&text(row_wise, filter_wise)).unwrap(), &PlanOptions::default())
    };
    let told = [(true, true), (false, true), (true, false), (false, false)].map(|(row_wise, filter_wise)| {
        planned(row_wise, filter_wise).map_or_else(|problems| problems.to_string(), |_| String::new())
    });
    assert_eq!(told.iter().filter(|told| !told.is_empty()).count(), 1, "{told:?}");
    let refused = told.iter().find(|told| !told.is_empty()).unwrap();
    assert!(refused.contains("is made by `model_stock` of what `nuslerp` makes"), "{refused}");
    assert!(refused.contains("rows of 6 and of 1 elements"), "{refused}");
}
