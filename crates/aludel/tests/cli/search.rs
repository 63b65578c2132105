//! Searches for parameters of merges of the example models: optima that are known, records that are gone on with, what is refused.

use std::fs;
use std::path::Path;

use serde_json::Value;
use snapbox::str;

use crate::sandbox::Sandbox;

const SCALED: &str = "merge_method: task_arithmetic # how far from the base\nbase_model: models/base\nmodels:\n  - model: models/scripture\n    parameters: {weight: 0.4}\n";

/// The example models, and the beginning of the held-out text.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new(&[]);
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    for model in ["base", "scripture", "technical"] {
        for entry in examples.join("models").join(model).read_dir().unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            sandbox.write(&format!("models/{model}/{name}"), fs::read(&path).unwrap());
        }
    }
    let held_out = fs::read_to_string(examples.join("data/genesis-heldout.jsonl")).unwrap();
    let row: Value = serde_json::from_str(held_out.lines().next().unwrap()).unwrap();
    let text: String = row["text"].as_str().unwrap().chars().take(1500).collect();
    sandbox.write("held-out.txt", text);
    sandbox.write("recipe.yml", SCALED);
    sandbox
}

const SEARCH: [&str; 10] = [
    "search",
    "recipe.yml",
    "--data",
    "held-out.txt",
    "--vary",
    "models[0].parameters.weight=0..2",
    "--window",
    "128",
    "--evaluations",
    "41",
];

/// The cross-entropy of a merge, by the commands that make and score a folder.
fn scored(sandbox: &Sandbox, recipe: &str) -> f64 {
    sandbox.aludel(&["merge", recipe, "merged", "--force", "--no-sync"]).assert().code(0);
    let evaluation = sandbox.json(&["eval", "merged", "--data", "held-out.txt", "--window", "128", "--json"]);
    evaluation["cross_entropy"].as_f64().unwrap()
}

#[test]
fn the_best_of_a_grid_is_no_better_and_the_recipe_found_is_the_merge_that_was_scored() {
    let sandbox = sandbox();
    sandbox
        .aludel(&SEARCH)
        .assert()
        .code(0)
        .stdout_eq(str![[r#"
score                        [..] (2.[..] as given)
measure                      cross-entropy, nats a token
models[0].parameters.weight  [..] (0.4 as given)
merges                       41 scored
recipe                       recipe.search/best.yml
report                       recipe.search/report.html

"#]])
        .stderr_eq(str![[r#"
searching 1 number of a merge by task_arithmetic: [..] tokens to predict
...
"#]]);
    assert_eq!(sandbox.names("recipe.search"), ["best.yml", "log.jsonl", "report.html"]);
    let log = fs::read_to_string(sandbox.path("recipe.search/log.jsonl")).unwrap();
    let entries: Vec<Value> = log.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect();
    let score = |entry: &Value| entry["score"].as_f64().unwrap();
    let best = entries.iter().min_by(|a, b| score(a).total_cmp(&score(b))).unwrap();
    let recipe = fs::read_to_string(sandbox.path("recipe.search/best.yml")).unwrap();
    assert_eq!(recipe, SCALED.replace("0.4", best["values"][0].as_str().unwrap()));
    let again = scored(&sandbox, "recipe.search/best.yml");
    assert!((again - score(best)).abs() < 1e-9, "{again} {best}");
    for weight in ["0", "0.25", "0.5", "0.75", "1", "1.25", "1.5", "1.75", "2"] {
        sandbox.write("grid.yml", SCALED.replace("0.4", weight));
        let of_grid = scored(&sandbox, "grid.yml");
        // Weights of 16 bits make a merge's loss uneven by some 1e-4.
        assert!(score(best) < of_grid + 5e-4, "{weight}: {of_grid} {best}");
    }
}

#[test]
fn the_model_that_is_compared_with_is_found_where_it_is() {
    let sandbox = sandbox();
    let found = sandbox.json(&[&SEARCH[..], &["--against", "models/scripture", "--json"]].concat());
    let weight = found["values"]["models[0].parameters.weight"].as_f64().unwrap();
    assert!((weight - 1.0).abs() < 0.05 && found["score"].as_f64().unwrap() < 1e-3, "{found}");
    assert_eq!(found["measure"], "KL from the other model, nats a token");
    assert!(found["score_as_given"].as_f64().unwrap() > 0.01, "{found}");
}

#[test]
fn a_search_that_was_cut_off_goes_on_to_the_same_result() {
    let sandbox = sandbox();
    let to = |folder: &'static str| [&SEARCH[..], &["--json", "--output", folder]].concat();
    let whole = sandbox.json(&to("whole"));
    let shorter = |count| [&to("cut")[..8], &["--evaluations", count, "--json", "--output", "cut"]].concat();
    sandbox.aludel(&shorter("13")).assert().code(0);
    let log = sandbox.path("cut/log.jsonl");
    let text = fs::read_to_string(&log).unwrap();
    fs::write(&log, &text[..text.len() - 40]).unwrap();
    sandbox.aludel(&to("cut")).assert().code(3).stderr_eq(str![[r#"
error: cut holds a search
  hint: go on with it by --resume, discard it by --force, or choose another folder with --output
aludel: 1 problem, nothing was written

"#]]);
    let again = sandbox.json(&[&to("cut")[..], &["--resume"]].concat());
    assert_eq!((&again["values"], &again["score"]), (&whole["values"], &whole["score"]));
    assert_eq!(
        fs::read(sandbox.path("cut/best.yml")).unwrap(),
        fs::read(sandbox.path("whole/best.yml")).unwrap()
    );
    let values = |folder: &str| -> Vec<Value> {
        let text = fs::read_to_string(sandbox.path(folder).join("log.jsonl")).unwrap();
        text.lines()
            .skip(1)
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["values"].clone())
            .collect()
    };
    assert_eq!(values("cut"), values("whole"));
    sandbox.write(
        "held-out.txt",
        "In the beginning God created the heaven and the earth. And the earth was without form.",
    );
    sandbox.aludel(&[&to("cut")[..], &["--resume"]].concat()).assert().code(3).stderr_eq(str![[r#"
error: cut/log.jsonl is the record of another search: its data differs
  hint: discard it by --force, or choose another folder
aludel: 1 problem, nothing was written

"#]]);
}

#[test]
fn what_cannot_vary_is_told() {
    let sandbox = sandbox();
    let vary = |place: &'static str| ["search", "recipe.yml", "--data", "held-out.txt", "--vary", place];
    sandbox.aludel(&vary("models[0].parameters.wieght=0..1")).assert().code(3).stderr_eq(str![[r#"
error: the recipe has no number at `models[0].parameters.wieght`
  hint: did you mean `models[0].parameters.weight`?
aludel: 1 problem, nothing was written

"#]]);
    sandbox.aludel(&vary("models[0].parameters.weight=1..0")).assert().code(2);
    assert_eq!(sandbox.names("."), ["held-out.txt", "models", "recipe.yml"]);
}
