//! Recipes that do not fit: every fault with its place and remedy, and exit code 3.

use snapbox::str;

use crate::sandbox::Sandbox;
use crate::weights::write_model;

#[test]
fn all_faults_of_a_text_are_reported_at_once() {
    let sandbox = Sandbox::new(&["a"]);
    let recipe = "\
merge_methd: ties
base_model: models/base+
models:
  - model: models/a
    paramters: {weight: 1}
  - weight: 0.5
dtype: float8
slices: []
";
    sandbox.write("r.yml", recipe);
    let merge = sandbox.aludel(&["merge", "r.yml", "out"]);
    merge.assert().code(3).stdout_eq("").stderr_eq(str![[r#"
error: r.yml:1:1: merge_methd: unknown key `merge_methd`
  hint: did you mean `merge_method`?
error: r.yml:1:1: `merge_method` is missing
  hint: add it, as in `merge_method: linear`
error: r.yml:2:13: base_model: `models/base+` has nothing before or after a `+`
  hint: write the folder of the model, a `+`, and the folder of the adapter
error: r.yml:5:5: models[0].paramters: unknown key `paramters`
  hint: did you mean `parameters`?
error: r.yml:6:5: models[1].weight: unknown key `weight`
  hint: values for the merge method stand under `parameters:`; known here: `model`, `parameters`
error: r.yml:6:5: models[1]: `model` is missing
  hint: name the model: `- model: path/of/the/model`
error: r.yml:7:8: dtype: `float8` is no element type that a merge computes on
  hint: did you mean `float`? accepted are `float32`, `float16` and `bfloat16`
error: r.yml:8:9: slices: `slices` and `models` exclude each other
  hint: keep one of them
aludel: 8 problems, nothing was written

"#]]);
    assert_eq!(sandbox.names("."), ["models", "r.yml"]);
}

#[test]
fn six_faults_between_recipe_method_and_models_are_reported_at_once() {
    let sandbox = Sandbox::new(&["a", "base"]);
    let recipe = "\
merge_method: ties
base_model: models/base
models:
  - model: models/a
    parameters:
      wieght: 1
      density: [0.2, many]
  - model: models/absent
    parameters: {weight: heavy}
  - model: models/a@v2
    parameters: {weight: 1, normalize: false}
chat_template: chatlm
";
    sandbox.write("r.yml", recipe.replace(", many", ""));
    let merge = sandbox.aludel(&["merge", "r.yml", "out"]);
    merge.assert().code(3).stdout_eq("").stderr_eq(str![[r#"
error: r.yml:6:7: models[0].parameters.wieght: `ties` takes no parameter `wieght`
  hint: did you mean `weight`?
error: r.yml:8:12: models[1].model: models/absent does not exist: give a model folder, a file of weights, or the `owner/name` of a model on a hub
error: r.yml:9:26: models[1].parameters.weight: expected a number, found the text `heavy`
error: r.yml:10:12: models[2].model: `models/a` is on disk, where models have no revisions: leave out `@v2`
error: r.yml:11:29: models[2].parameters.normalize: `normalize` holds for the whole merge and cannot be set for one model
  hint: move it to the `parameters:` at the top of the recipe
error: r.yml:12:16: chat_template: `chatlm` is no chat template that is known by name
  hint: did you mean `chatml`?
aludel: 6 problems, nothing was written

"#]]);
    assert_eq!(sandbox.names("."), ["models", "r.yml"]);
}

#[test]
fn models_that_do_not_match_are_named_with_their_tensors() {
    let sandbox = Sandbox::new(&[]);
    let zeros = |count: usize| vec![0; count * 4];
    write_model(
        &sandbox,
        "models/a",
        &[("embed_tokens.weight", "F32", &[4, 2]), ("up", "F32", &[2])],
        &zeros(10),
    );
    write_model(
        &sandbox,
        "models/b",
        &[("embed_tokens.weight", "F32", &[5, 2]), ("upp", "F32", &[2])],
        &zeros(12),
    );
    let recipe = "\
merge_method: linear
models:
  - {model: models/a, parameters: {weight: 1}}
  - {model: models/b, parameters: {weight: 1}}
";
    sandbox.write("r.yml", recipe);
    sandbox.aludel(&["plan", "r.yml"]).assert().code(3).stdout_eq("").stderr_eq(str![[r#"
error: `embed_tokens.weight` is [4, 2] in `models/a` and [5, 2] in `models/b`
  hint: the vocabularies differ in size: say with `tokenizer_source` whose tokens the output has, `base`, `union` or one of the models
error: `models/b` has no tensor `up`, which `models/a` has
  hint: its nearest is `upp`; are the models of one architecture?
error: `models/a` has no tensor `upp`, which `models/b` has
  hint: its nearest is `up`; are the models of one architecture?
aludel: 3 problems, nothing was written

"#]]);
}

#[test]
fn broken_yaml_is_refused_at_its_place() {
    let sandbox = Sandbox::new(&[]);
    sandbox.write("r.yml", "merge_method: [linear\nmodels: }\n");
    sandbox.aludel(&["plan", "r.yml"]).assert().code(3).stdout_eq("").stderr_eq(str![[r#"
error: r.yml:2:7: not valid YAML: illegal placement of ':' indicator
aludel: 1 problem, nothing was written

"#]]);
}

#[test]
fn a_recipe_that_cannot_be_read_is_refused() {
    let sandbox = Sandbox::new(&[]);
    sandbox.aludel(&["plan", "absent.yml"]).assert().code(3).stdout_eq("").stderr_eq(str![[r#"
error: cannot read the recipe absent.yml: No such file or directory (os error 2)
aludel: 1 problem, nothing was written

"#]]);
    sandbox.write("binary.yml", [0xff, 0xfe]);
    sandbox.aludel(&["plan", "binary.yml"]).assert().code(3).stdout_eq("").stderr_eq(str![[r#"
error: cannot read the recipe binary.yml: stream did not contain valid UTF-8
  hint: a recipe is YAML text in UTF-8
aludel: 1 problem, nothing was written

"#]]);
}

#[test]
fn a_refusal_as_json_lists_the_problems() {
    let sandbox = Sandbox::new(&["a"]);
    sandbox.write("r.yml", "merge_method: linaer\nmodels: [{model: models/a}]\n");
    let failure = sandbox.json(&["plan", "r.yml", "--json"]);
    let expected = serde_json::json!({"error": {
        "exit_code": 3,
        "message": "1 problem, nothing was written",
        "recipe": "r.yml",
        "problems": [{
            "place": {"line": 1, "column": 15, "path": "merge_method"},
            "message": "unknown merge method `linaer`",
            "hint": "did you mean `linear`?",
        }],
    }});
    assert_eq!(failure, expected);
}
