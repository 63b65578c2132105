//! Tokenizers of other models: what is said and written, and mergekit's command as it is pasted.

use snapbox::str;

use crate::sandbox::Sandbox;

#[test]
fn a_model_gets_the_tokenizer_of_another() {
    let sandbox = Sandbox::with("vocabulary/models", &["a", "b"]);
    let arguments =
        ["tokensurgeon", "models/a", "models/b", "out", "--k", "4", "--device", "cpu", "--batch-size", "-1"];
    sandbox.aludel(&arguments).assert().code(0).stdout_eq("").stderr_eq(str![[r#"
warning: --device has no effect: `aludel merge --device cuda` is what computes on a GPU
merging 2 models by tokensurgeon into out: 8.4 kB to read, 7.8 kB to write
left out model.layers.0.input_layernorm.weight and 18 more: the donor gives its tokenizer alone
merged 2 models into out (7.8 kB) in [..]: [..]/s read, [..]/s written[..]

"#]]);
    assert!(sandbox.path("out/recipe.yml").is_file());
    let recipe = std::fs::read_to_string(sandbox.path("out/recipe.yml")).unwrap();
    snapbox::assert_data_eq!(
        recipe,
        str![[r##"
# aludel tokensurgeon
model: "models/a"
donor: "models/b"
approximation_method: omp
k: 4
prefix_match: "no"
byte_match: "no"
new_vocab_noise: 0
new_vocab_scale: 1

"##]]
    );
    let tokenizer = |folder: &str| std::fs::read(sandbox.path(folder).join("tokenizer.json")).unwrap();
    assert_eq!(tokenizer("out"), tokenizer("models/b"));
}

#[test]
fn pieces_are_cut_by_the_models_own_tokenizer() {
    let sandbox = Sandbox::with("vocabulary/models", &["a", "b"]);
    sandbox
        .aludel(&["tokensurgeon", "models/a", "models/b", "out", "-a", "subword", "-q"])
        .assert()
        .code(0)
        .stderr_eq("");
}

#[test]
fn a_filter_that_is_not_there_is_refused() {
    let sandbox = Sandbox::with("vocabulary/models", &["a", "b"]);
    let arguments = ["tokensurgeon", "models/a", "models/b", "out", "--magikarp"];
    sandbox.aludel(&arguments).assert().code(3).stdout_eq("").stderr_eq(str![[r#"
error: --magikarp: tokens that are hardly trained are not looked for
  hint: leave it out: all tokens that both models know may be taken
aludel: 1 problem, nothing was written

"#]]);
    let arguments = ["tokensurgeon", "models/a", "models/b", "out", "-a", "landmark_pca"];
    sandbox.aludel(&arguments).assert().code(2).stdout_eq("");
}
