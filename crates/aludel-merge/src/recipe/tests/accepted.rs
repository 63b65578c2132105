//! Recipes as people write them for mergekit.

use std::path::PathBuf;

use super::{models, scope};
use crate::recipe::{FloatType, Recipe, TokenizerSource};

const TIES: &str = r"
# Two fine-tunes of one base.
models:
  - model: models/base
    # no parameters necessary for the base model
  - model: models/orca
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1.0
  - model: models/math
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: models/base
parameters:
  normalize: true
  int8_mask: true
dtype: float16
";

const SLERP: &str = r"
models:
  - model: a/one
  - model: b/two@main
merge_method: slerp
base_model: a/one
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5 # fallback for rest of tensors
dtype: bfloat16
";

const DARE_TIES: &str = r#"
---
merge_method: dare_ties
base_model: ./base
models:
  - {model: ./code, parameters: {weight: 0.3, density: "5e-1"}}
  - {model: ./chat, parameters: {weight: 0.6, density: .5}}
parameters: {int8_mask: 1, lambda: 1e-0}
dtype: float32
out_dtype: bfloat16
tokenizer_source: union
chat_template: chatml
...
"#;

fn texts(recipe: &Recipe) -> Vec<&str> {
    models(recipe).iter().map(|model| model.reference.value.text()).collect()
}

#[test]
fn ties_with_the_base_listed() {
    let recipe = Recipe::parse(TIES).unwrap();
    assert_eq!(&*recipe.text, TIES);
    assert_eq!(recipe.merge_method.value, "ties");
    assert_eq!(recipe.merge_method.place.to_string(), "17:15 merge_method");
    assert_eq!(texts(&recipe), ["models/base", "models/orca", "models/math"]);
    assert_eq!(models(&recipe)[2].reference.place.to_string(), "10:12 models[2].model");
    assert_eq!(models(&recipe)[2].parameters.names().collect::<Vec<_>>(), ["density", "weight"]);
    assert_eq!(recipe.parameters.names().collect::<Vec<_>>(), ["normalize", "int8_mask"]);
    assert_eq!((recipe.dtype, recipe.out_dtype), (Some(FloatType::F16), None));
    assert!(recipe.tokenizer.is_none() && recipe.chat_template.is_none());

    let inputs = scope(&recipe).models_with_base();
    let facts: Vec<_> = inputs.iter().map(|input| (input.entry, input.is_base)).collect();
    assert_eq!(facts, [(Some(0), true), (Some(1), false), (Some(2), false)]);
}

#[test]
fn slerp_with_filtered_gradients() {
    let recipe = Recipe::parse(SLERP).unwrap();
    assert_eq!(texts(&recipe), ["a/one", "b/two@main"]);
    assert_eq!(models(&recipe)[1].reference.value.path(), PathBuf::from("b/two"));
    assert_eq!(models(&recipe)[1].reference.value.revision(), Some("main"));
    assert_eq!(recipe.parameters.find("t").unwrap().place.to_string(), "8:3 parameters.t");
    let ends = |tensor| {
        [0.0, 1.0].map(|position| scope(&recipe).number("t", None, tensor, position).unwrap().unwrap())
    };
    assert_eq!(ends("model.layers.3.self_attn.q_proj.weight"), [0.0, 1.0]);
    assert_eq!(ends("model.layers.3.mlp.up_proj.weight"), [1.0, 0.0]);
    assert_eq!(ends("model.norm.weight"), [0.5, 0.5]);
}

#[test]
fn dare_ties_in_flow_style_with_the_base_apart() {
    let recipe = Recipe::parse(DARE_TIES).unwrap();
    assert_eq!((recipe.dtype, recipe.out_dtype), (Some(FloatType::F32), Some(FloatType::BF16)));
    assert_eq!(recipe.tokenizer.as_ref().unwrap().source.value, TokenizerSource::Union);
    assert_eq!(recipe.chat_template.as_ref().unwrap().value, "chatml");
    let inputs = scope(&recipe).models_with_base();
    let facts: Vec<_> =
        inputs.iter().map(|input| (input.reference.value.text(), input.entry, input.is_base)).collect();
    assert_eq!(facts, [("./code", Some(0), false), ("./chat", Some(1), false), ("./base", None, true)]);
    for model in [0, 1] {
        assert_eq!(scope(&recipe).number("density", Some(model), "x", 0.0), Ok(Some(0.5)));
    }
    assert_eq!(scope(&recipe).boolean("int8_mask", None, "x", 0.0), Ok(Some(true)));
    assert_eq!(scope(&recipe).number("lambda", None, "x", 0.0), Ok(Some(1.0)));
}

#[test]
fn no_base_means_no_further_input() {
    let recipe = Recipe::parse("merge_method: linear\nmodels: [{model: a}, {model: a}]").unwrap();
    let facts: Vec<_> =
        scope(&recipe).models_with_base().iter().map(|input| (input.entry, input.is_base)).collect();
    assert_eq!(facts, [(Some(0), false), (Some(1), false)]);
}

#[test]
fn a_key_without_a_value_counts_as_absent() {
    let text = "merge_method: linear\nmodels:\n- model: a\n  parameters:\nbase_model: null\nparameters: ~\n\
                dtype:\nslices: null\ntokenizer:\n";
    let recipe = Recipe::parse(text).unwrap();
    assert!(recipe.base_model.is_none() && recipe.dtype.is_none());
    assert_eq!(models(&recipe)[0].parameters.names().count() + recipe.parameters.names().count(), 0);
}

#[test]
fn anchors_aliases_and_merge_keys_are_expanded() {
    let text = "
merge_method: ties
models:
  - model: a
    parameters: &shared {weight: 0.25, density: 0.5}
  - model: b
    parameters: *shared
  - model: c
    parameters:
      <<: *shared
      weight: 0.75
  - model: d
    parameters:
      <<: [{weight: 1}, *shared]
";
    let recipe = Recipe::parse(text).unwrap();
    let pairs: Vec<_> = (0..4)
        .map(|model| {
            ["weight", "density"]
                .map(|name| scope(&recipe).number(name, Some(model), "x", 0.0).unwrap().unwrap())
        })
        .collect();
    assert_eq!(pairs, [[0.25, 0.5], [0.25, 0.5], [0.75, 0.5], [1.0, 0.5]]);
    let repeated = scope(&recipe).scalar("density", Some(1), "x", 0.0).unwrap();
    assert_eq!(repeated.place.to_string(), "5:49 models[1].parameters.density");
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_are_no_hindrance() {
    let recipe = Recipe::parse("\u{feff}merge_method: linear\r\nmodels:\r\n  - model: a b\r\n").unwrap();
    assert_eq!((recipe.merge_method.value.as_str(), texts(&recipe)), ("linear", vec!["a b"]));
}

const SLICES: &str = r"
merge_method: task_arithmetic
base_model: base
slices:
  - sources:
      - {model: base, layer_range: [0, 4]}
      - model: a
        layer_range: [2, 6]
        parameters: {weight: [{filter: mlp, value: 1}]}
    parameters: {weight: [{filter: mlp, value: 2}, {filter: attn, value: 2}]}
  - base_model: a
    sources: [{model: a, layer_range: ['0', 1]}, {model: b, layer_range: [7, 8]}]
parameters: {weight: 3}
";

#[test]
fn slices_have_ranges_a_base_and_parameters_of_their_own() {
    let recipe = Recipe::parse(SLICES).unwrap();
    let scopes: Vec<_> = recipe.scopes().collect();
    let ranges = |scope: usize| -> Vec<_> {
        let sources = &scopes[scope].slice.sources;
        sources.iter().map(|source| source.layers.as_ref().unwrap().value.clone()).collect()
    };
    assert_eq!((scopes.len(), ranges(0), ranges(1)), (2, vec![0..4, 2..6], vec![0..1, 7..8]));
    assert_eq!((scopes[0].slice.layers(), scopes[1].slice.layers()), (Some(4), Some(1)));
    let bases = [0, 1].map(|scope| scopes[scope].base_model().unwrap().value.text());
    assert_eq!(bases, ["base", "a"]);
    let weight = |scope: usize, tensor| scopes[scope].number("weight", Some(1), tensor, 0.0).unwrap();
    let of_first = ["mlp", "attn", "norm"].map(|tensor| weight(0, tensor));
    assert_eq!(of_first, [Some(1.0), Some(2.0), Some(3.0)]);
    assert_eq!(weight(1, "mlp"), Some(3.0));
    // A base that a slice does not list has no layers there that could be meant.
    let without = SLICES.replace("base_model: a\n", "base_model: c\n");
    let recipe = Recipe::parse(&without).unwrap();
    let scopes: Vec<_> = recipe.scopes().collect();
    assert_eq!(scopes[1].models_with_base().iter().filter(|input| input.is_base).count(), 0);
}

#[test]
fn modules_have_models_or_slices_and_parameters() {
    let text = "merge_method: linear\nbase_model: a\nmodules:\n  text_decoder:\n    models: [{model: a}, {model: b}]\n    \
                parameters: {weight: 1}\n  vision_tower:\n    slices: [{sources: [{model: b, layer_range: [0, 2]}]}]\n\
                parameters: {weight: 2}\n";
    let recipe = Recipe::parse(text).unwrap();
    let names: Vec<_> = recipe.parts.iter().map(|part| part.name.as_ref().unwrap().value.as_str()).collect();
    assert_eq!(names, ["text_decoder", "vision_tower"]);
    let weights: Vec<_> =
        recipe.scopes().map(|scope| scope.number("weight", Some(0), "x", 0.0).unwrap().unwrap()).collect();
    assert_eq!(weights, [1.0, 2.0]);
}

/// The texts of recipes' models, as one line.
fn shown(recipe: &Recipe) -> String {
    let name = recipe.name.as_ref().map_or("", |name| name.value.as_str());
    format!("{name}={}", texts(recipe).join("+"))
}

#[test]
fn documents_are_linked_by_name_in_the_order_of_their_needs() {
    let named =
        |name: &str, models: &str| format!("name: {name}\nmerge_method: linear\nmodels: {models}\n---\n");
    let text = named("second", "[{model: first}, {model: x}]")
        + "merge_method: linear\nmodels: [{model: second}, {model: first}]\n---\n"
        + &named("first", "[{model: y}]");
    let recipe = Recipe::parse(&text).unwrap();
    assert_eq!((shown(&recipe), &*recipe.text), ("=second+first".to_owned(), text.as_str()));
    assert_eq!(recipe.stages.iter().map(shown).collect::<Vec<_>>(), ["first=y", "second=first+x"]);
    // Where all have a name, the last one is the output; a single one may have a name of its own.
    let text = named("first", "[{model: y}]") + &named("last", "[{model: first}]");
    let recipe = Recipe::parse(&text).unwrap();
    assert_eq!((shown(&recipe), recipe.stages.len()), ("last=first".to_owned(), 1));
    assert_eq!(shown(&Recipe::parse(&named("only", "[{model: y}]")).unwrap()), "only=y");
}
