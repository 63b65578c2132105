//! Recipes as people write them for mergekit.

use std::path::PathBuf;

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
    recipe.models.iter().map(|model| model.reference.value.text()).collect()
}

#[test]
fn ties_with_the_base_listed() {
    let recipe = Recipe::parse(TIES).unwrap();
    assert_eq!(recipe.text, TIES);
    assert_eq!(recipe.merge_method.value, "ties");
    assert_eq!(recipe.merge_method.place.to_string(), "17:15 merge_method");
    assert_eq!(texts(&recipe), ["models/base", "models/orca", "models/math"]);
    assert_eq!(recipe.models[2].reference.place.to_string(), "10:12 models[2].model");
    assert_eq!(recipe.models[2].parameters.names().collect::<Vec<_>>(), ["density", "weight"]);
    assert_eq!(recipe.parameters.names().collect::<Vec<_>>(), ["normalize", "int8_mask"]);
    assert_eq!((recipe.dtype, recipe.out_dtype), (Some(FloatType::F16), None));
    assert!(recipe.tokenizer_source.is_none() && recipe.chat_template.is_none());

    let inputs = recipe.models_with_base();
    let facts: Vec<_> = inputs.iter().map(|input| (input.entry, input.is_base)).collect();
    assert_eq!(facts, [(Some(0), true), (Some(1), false), (Some(2), false)]);
}

#[test]
fn slerp_with_filtered_gradients() {
    let recipe = Recipe::parse(SLERP).unwrap();
    assert_eq!(texts(&recipe), ["a/one", "b/two@main"]);
    assert_eq!(recipe.models[1].reference.value.path(), PathBuf::from("b/two"));
    assert_eq!(recipe.models[1].reference.value.revision(), Some("main"));
    assert_eq!(recipe.parameters.find("t").unwrap().place.to_string(), "8:3 parameters.t");
    let ends =
        |tensor| [0.0, 1.0].map(|position| recipe.number("t", None, tensor, position).unwrap().unwrap());
    assert_eq!(ends("model.layers.3.self_attn.q_proj.weight"), [0.0, 1.0]);
    assert_eq!(ends("model.layers.3.mlp.up_proj.weight"), [1.0, 0.0]);
    assert_eq!(ends("model.norm.weight"), [0.5, 0.5]);
}

#[test]
fn dare_ties_in_flow_style_with_the_base_apart() {
    let recipe = Recipe::parse(DARE_TIES).unwrap();
    assert_eq!((recipe.dtype, recipe.out_dtype), (Some(FloatType::F32), Some(FloatType::BF16)));
    assert_eq!(recipe.tokenizer_source.as_ref().unwrap().value, TokenizerSource::Union);
    assert_eq!(recipe.chat_template.as_ref().unwrap().value, "chatml");
    let inputs = recipe.models_with_base();
    let facts: Vec<_> =
        inputs.iter().map(|input| (input.reference.value.text(), input.entry, input.is_base)).collect();
    assert_eq!(facts, [("./code", Some(0), false), ("./chat", Some(1), false), ("./base", None, true)]);
    for model in [0, 1] {
        assert_eq!(recipe.number("density", Some(model), "x", 0.0), Ok(Some(0.5)));
    }
    assert_eq!(recipe.boolean("int8_mask", None, "x", 0.0), Ok(Some(true)));
    assert_eq!(recipe.number("lambda", None, "x", 0.0), Ok(Some(1.0)));
}

#[test]
fn no_base_means_no_further_input() {
    let recipe = Recipe::parse("merge_method: linear\nmodels: [{model: a}, {model: a}]").unwrap();
    let facts: Vec<_> = recipe.models_with_base().iter().map(|input| (input.entry, input.is_base)).collect();
    assert_eq!(facts, [(Some(0), false), (Some(1), false)]);
}

#[test]
fn a_key_without_a_value_counts_as_absent() {
    let text = "merge_method: linear\nmodels:\n- model: a\n  parameters:\nbase_model: null\nparameters: ~\n\
                dtype:\nslices: null\ntokenizer:\n";
    let recipe = Recipe::parse(text).unwrap();
    assert!(recipe.base_model.is_none() && recipe.dtype.is_none());
    assert_eq!(recipe.models[0].parameters.names().count() + recipe.parameters.names().count(), 0);
}

#[test]
fn tokenizer_sources_are_two_words_or_a_model() {
    for (word, is_base, is_union) in [("base", true, false), ("union", false, true), ("a/b", false, false)] {
        let text = format!("merge_method: linear\nmodels: [{{model: a}}]\ntokenizer_source: {word}");
        match Recipe::parse(&text).unwrap().tokenizer_source.unwrap().value {
            TokenizerSource::Base => assert!(is_base),
            TokenizerSource::Union => assert!(is_union),
            TokenizerSource::Model(model) => assert_eq!((model.text(), is_base || is_union), ("a/b", false)),
        }
    }
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
            ["weight", "density"].map(|name| recipe.number(name, Some(model), "x", 0.0).unwrap().unwrap())
        })
        .collect();
    assert_eq!(pairs, [[0.25, 0.5], [0.25, 0.5], [0.75, 0.5], [1.0, 0.5]]);
    let repeated = recipe.scalar("density", Some(1), "x", 0.0).unwrap();
    assert_eq!(repeated.place.to_string(), "5:49 models[1].parameters.density");
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_are_no_hindrance() {
    let recipe = Recipe::parse("\u{feff}merge_method: linear\r\nmodels:\r\n  - model: a b\r\n").unwrap();
    assert_eq!((recipe.merge_method.value.as_str(), texts(&recipe)), ("linear", vec!["a b"]));
}
