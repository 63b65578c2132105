//! Layers drawn at random: the recipe, and the model that it makes.

use snapbox::str;

use crate::sandbox::Sandbox;

const MODELS: [&str; 4] = ["-m", "models/a", "-m", "models/b"];

fn arguments<'a>(others: &[&'a str]) -> Vec<&'a str> {
    [&["layershuffle"], &MODELS[..], others].concat()
}

#[test]
fn a_dry_run_prints_a_recipe_that_the_seed_decides() {
    let sandbox = Sandbox::new(&["a", "b"]);
    let dry = arguments(&["--dry-run", "--random-seed", "5", "--fp16"]);
    sandbox.aludel(&dry).assert().code(0).stderr_eq("").stdout_eq(str![[r#"
merge_method: passthrough
dtype: float16
slices:
  - sources:
      - model: "models/b"
        layer_range: [0, 1]
  - sources:
      - model: "models/a"
        layer_range: [1, 2]
  - sources:
      - model: "models/b"
        layer_range: [2, 3]

"#]]);
    let full = arguments(&["--dry-run", "--full-random", "-w", "0.5", "-w", "1"]);
    sandbox.aludel(&full).assert().code(0).stderr_eq("").stdout_eq(str![[r#"
merge_method: passthrough
slices:
  - sources:
      - model: "models/b"
        layer_range: [0, 1]
  - sources:
      - model: "models/a"
        layer_range: [1, 2]
  - sources:
      - model: "models/b"
        layer_range: [0, 1]
  - sources:
      - model: "models/b"
        layer_range: [0, 1]

"#]]);
}

#[test]
fn the_recipe_that_is_written_makes_the_same_model() {
    let sandbox = Sandbox::new(&["a", "b"]);
    let run = arguments(&["out", "--write-yaml", "recipe.yml", "-q", "--seed", "3", "--copy-tokenizer"]);
    sandbox.aludel(&run).assert().code(0).stdout_eq("").stderr_eq("");
    sandbox.aludel(&["merge", "recipe.yml", "again", "-q"]).assert().code(0);
    sandbox.aludel(&["diff", "out", "again"]).assert().code(0);
    assert_eq!(sandbox.names("."), ["again", "models", "out", "recipe.yml"]);
}

#[test]
fn weights_that_do_not_fit_the_models_are_refused() {
    let sandbox = Sandbox::new(&["a", "b"]);
    let run = arguments(&["out", "-w", "1"]);
    sandbox.aludel(&run).assert().code(3).stdout_eq("").stderr_eq(str![[r#"
error: 2 models and 1 weights
  hint: give one `--weight` for each `--model`, in the same order
aludel: 1 problem, nothing was written

"#]]);
}
