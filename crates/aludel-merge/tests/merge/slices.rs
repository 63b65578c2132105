//! Plans and runs slices and modules on small models of several namings: which tensors the output has and where they come
//! from, what its config says of layers, what is dropped with which reason, and what is refused where.

use std::path::Path;

use crate::made::{config_of, merged, model};
use aludel_merge::plan::{Plan, PlanOptions};
use aludel_merge::recipe::Recipe;
use serde_json::{Value, json};

/// Tensors of a model, each filled with one number: its position in hundredths, so that the model's number can be added.
fn tensors(names: &[String], number: f32) -> Vec<(String, f32)> {
    names.iter().enumerate().map(|(i, name)| (name.clone(), number + i as f32 / 64.0)).collect()
}

/// The names of a model: those given, with `N` numbered for so many layers.
fn names(patterns: &[&str], layers: usize) -> Vec<String> {
    let expanded = |pattern: &&str| {
        let count = if pattern.contains('N') { layers } else { 1 };
        (0..count).map(|layer| pattern.replace('N', &layer.to_string())).collect::<Vec<_>>()
    };
    patterns.iter().flat_map(expanded).collect()
}

const LLAMA: &[&str] = &[
    "model.embed_tokens.weight",
    "model.layers.N.mlp.weight",
    "model.layers.N.self_attn.rotary_emb.inv_freq",
    "model.norm.weight",
    "lm_head.weight",
];

/// Writes `a` and `b` of one naming, of four layers each, and gives what a passthrough of `[0, 3]` of `a` and `[1, 4]` of `b`
/// writes: names with the values that they have.
fn stacked(folder: &Path, patterns: &[&str], config: &Value) -> Vec<(String, f32)> {
    let names = names(patterns, 4);
    model(&folder.join("a"), config, &tensors(&names, 1.0));
    model(&folder.join("b"), config, &tensors(&names, 2.0));
    let recipe = passthrough(folder, &[("a", 0, 3), ("b", 1, 4)]);
    merged(&recipe, &folder.join("out")).unwrap()
}

fn passthrough(folder: &Path, slices: &[(&str, usize, usize)]) -> String {
    let slice = |&(model, start, end): &(&str, usize, usize)| {
        format!("- sources: [{{model: {}, layer_range: [{start}, {end}]}}]\n", folder.join(model).display())
    };
    format!(
        "merge_method: passthrough\nslices:\n{}dtype: float32\n",
        slices.iter().map(slice).collect::<String>()
    )
}

fn problems(recipe: &str) -> Vec<String> {
    let plan = Recipe::parse(recipe).and_then(|recipe| Plan::new(&recipe, &PlanOptions::default()));
    plan.map_or_else(|problems| problems.iter().map(ToString::to_string).collect(), |_| Vec::new())
}

/// Where a tensor of the output comes from: the number of the model, and the position in it.
fn source_of(output: &[(String, f32)], name: &str) -> (f32, usize) {
    let value = output.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("no {name}")).1;
    (value.floor(), ((value - value.floor()) * 64.0) as usize)
}

#[test]
fn layers_of_every_naming_are_stacked_and_renumbered() {
    let folder = tempfile::tempdir().unwrap();
    for (index, (patterns, layer, before, after, count)) in [
        (
            LLAMA,
            "model.layers.N.mlp.weight",
            "model.embed_tokens.weight",
            "lm_head.weight",
            "num_hidden_layers",
        ),
        (
            &["transformer.wpe.weight", "transformer.h.N.attn.weight", "transformer.ln_f.bias"] as &[&str],
            "transformer.h.N.attn.weight",
            "transformer.wpe.weight",
            "transformer.ln_f.bias",
            "n_layer",
        ),
        (
            &[
                "bert.embeddings.word_embeddings.weight",
                "bert.encoder.layer.N.output.bias",
                "bert.pooler.dense.bias",
            ],
            "bert.encoder.layer.N.output.bias",
            "bert.embeddings.word_embeddings.weight",
            "bert.pooler.dense.bias",
            "num_hidden_layers",
        ),
        (
            &["gpt_neox.embed_in.weight", "gpt_neox.layers.N.mlp.bias", "embed_out.weight"],
            "gpt_neox.layers.N.mlp.bias",
            "gpt_neox.embed_in.weight",
            "embed_out.weight",
            "num_hidden_layers",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let folder = folder.path().join(index.to_string());
        let names = names(patterns, 4);
        let at = |name: &str| names.iter().position(|known| known == name).unwrap();
        let output = stacked(&folder, patterns, &json!({ count: 4, "model_type": "x" }));
        let numbered = |layer_number: usize| layer.replace('N', &layer_number.to_string());
        for (layer, (model, of)) in
            [(1.0, 0), (1.0, 1), (1.0, 2), (2.0, 1), (2.0, 2), (2.0, 3)].into_iter().enumerate()
        {
            assert_eq!(
                source_of(&output, &numbered(layer)),
                (model, at(&numbered(of))),
                "{layer} of {layer:?}"
            );
        }
        assert_eq!(source_of(&output, before), (1.0, at(before)));
        assert_eq!(source_of(&output, after), (2.0, at(after)));
        // Nothing else is written, and what the model's code computes is not.
        let outside = patterns.iter().filter(|pattern| !pattern.contains('N')).count();
        assert_eq!(output.len(), 6 + outside);
        assert_eq!(config_of(&folder.join("out"))[count], 6);
    }
}

#[test]
fn what_the_config_lists_by_layer_is_rebuilt() {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "architectures": ["A", "B", "C", "D"],
        "num_hidden_layers": 4,
        "layer_types": ["full", "full", "sliding", "sliding"],
        "no_rope_layers": [1, 1, 1, 0],
        "mlp_only_layers": [0, 3],
        "max_window_layers": 2,
        "use_sliding_window": true,
        "eos_token_id": [1, 2, 3, 4],
        "unrelated": [1, 2, 3],
    });
    stacked(folder.path(), LLAMA, &config);
    let rebuilt = config_of(&folder.path().join("out"));
    assert_eq!(rebuilt["num_hidden_layers"], 6);
    assert_eq!(rebuilt["layer_types"], json!(["full", "full", "sliding", "full", "sliding", "sliding"]));
    assert_eq!(rebuilt["no_rope_layers"], json!([1, 1, 1, 1, 1, 0]));
    assert_eq!(rebuilt["mlp_only_layers"], json!([0, 5]));
    // The layers' kinds are listed, so that the number of first layers decides nothing.
    assert_eq!(rebuilt["max_window_layers"], 3);
    for kept in ["architectures", "eos_token_id", "unrelated", "use_sliding_window"] {
        assert_eq!(rebuilt[kept], config[kept], "{kept}");
    }
}

#[test]
fn the_count_of_a_text_part_is_the_one_that_changes() {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "num_hidden_layers": 9,
        "text_config": {"num_hidden_layers": 4, "layer_types": [0, 1, 2, 3], "vocab_size": 7},
        "vision_config": {"num_hidden_layers": 4},
    });
    stacked(folder.path(), LLAMA, &config);
    let rebuilt = config_of(&folder.path().join("out"));
    let text = json!({"num_hidden_layers": 6, "layer_types": [0, 1, 2, 1, 2, 3], "vocab_size": 7});
    assert_eq!(rebuilt["text_config"], text);
    assert_eq!(
        (&rebuilt["num_hidden_layers"], &rebuilt["vision_config"]),
        (&json!(9), &config["vision_config"])
    );
}

#[test]
fn a_config_that_cannot_be_made_true_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (index, (key, value, refused)) in [
        (
            "max_window_layers",
            json!(2),
            Some("by `max_window_layers` that the first layers are of another kind"),
        ),
        ("first_k_dense_replace", json!(1), None),
        ("first_k_dense_replace", json!(2), Some("would not come first")),
        ("attn_layer_period", json!(2), None),
        ("attn_layer_period", json!(3), Some("the slices do not keep that rhythm")),
    ]
    .into_iter()
    .enumerate()
    {
        let folder = folder.path().join(index.to_string());
        let config = json!({"num_hidden_layers": 4, key: value});
        let names = names(LLAMA, 4);
        model(&folder.join("a"), &config, &tensors(&names, 1.0));
        model(&folder.join("b"), &config, &tensors(&names, 2.0));
        // b's layers 1 and 2 come to stand at 3 and 4.
        let told = problems(&passthrough(&folder, &[("a", 0, 3), ("b", 1, 3)]));
        match refused {
            Some(part) => assert!(told.len() == 1 && told[0].contains(part), "{key}: {told:?}"),
            None => assert_eq!(told, [""; 0], "{key}"),
        }
    }
}

#[test]
fn what_a_stack_keeps_in_its_first_layer_stays_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut names =
        names(&["shared.weight", "encoder.block.N.q.weight", "encoder.final_layer_norm.weight"], 3);
    names.push("encoder.block.0.bias.weight".into());
    for (number, name) in [(1.0, "a"), (2.0, "b")] {
        model(&folder.path().join(name), &json!({"num_layers": 3}), &tensors(&names, number));
    }
    let recipe = passthrough(folder.path(), &[("a", 1, 3), ("b", 0, 2)]);
    let output = merged(&recipe, &folder.path().join("out")).unwrap();
    assert_eq!(source_of(&output, "encoder.block.0.bias.weight"), (1.0, 5));
    assert_eq!(output.iter().filter(|(name, _)| name.contains("bias")).count(), 1);
    assert_eq!(source_of(&output, "encoder.block.2.q.weight"), (2.0, 1));
}

/// Which of two models ties its head to its embedding, and which tensors the output then has, from which model.
#[test]
fn heads_are_kept_where_the_config_or_the_last_slice_has_one() {
    let folder = tempfile::tempdir().unwrap();
    let untied = names(LLAMA, 4);
    let tied: Vec<_> = untied.iter().filter(|name| *name != "lm_head.weight").cloned().collect();
    let config = |is_tied: bool| json!({"num_hidden_layers": 4, "tie_word_embeddings": is_tied});
    let at = |name: &str| untied.iter().position(|known| known == name).unwrap();
    let (head, embedding) = (at("lm_head.weight"), at("model.embed_tokens.weight"));
    for (ties, expected, is_tied) in [
        ([true, true], None, true),
        ([true, false], Some((2.0, head)), false),
        ([false, true], Some((2.0, embedding)), false),
        ([false, false], Some((2.0, head)), false),
    ] {
        for ((number, name), tie) in [(1.0, "a"), (2.0, "b")].into_iter().zip(ties) {
            let names = if tie { &tied } else { &untied };
            model(&folder.path().join(name), &config(tie), &tensors(names, number));
        }
        let recipe = passthrough(folder.path(), &[("a", 0, 2), ("b", 2, 4)]);
        let output = merged(&recipe, &folder.path().join("out")).unwrap();
        let has_head = output.iter().any(|(name, _)| name == "lm_head.weight");
        assert_eq!(has_head.then(|| source_of(&output, "lm_head.weight")), expected, "{ties:?}");
        assert_eq!(config_of(&folder.path().join("out"))["tie_word_embeddings"], is_tied, "{ties:?}");
    }
}

#[test]
fn every_input_tensor_is_accounted_for() {
    let folder = tempfile::tempdir().unwrap();
    let names = names(LLAMA, 4);
    for (number, name) in [(1.0, "a"), (2.0, "b"), (3.0, "c")] {
        model(&folder.path().join(name), &json!({"num_hidden_layers": 4}), &tensors(&names, number));
    }
    let base = format!("base_model: {}\n", folder.path().join("c").display());
    let recipe = Recipe::parse(&(base + &passthrough(folder.path(), &[("a", 0, 3), ("b", 1, 3)]))).unwrap();
    let plan = Plan::new(&recipe, &PlanOptions::default()).unwrap();
    let used: usize = plan.steps.iter().map(|step| step.inputs.len()).sum();
    assert_eq!(used + plan.dropped.len(), 3 * names.len());
    let reason = |source: &str, tensor: &str| {
        let is_it = |dropped: &&aludel_merge::plan::Dropped| {
            plan.sources[dropped.source].model.ends_with(source) && dropped.tensor == tensor
        };
        plan.dropped.iter().find(is_it).map(|dropped| dropped.reason.as_str())
    };
    for (source, tensor, expected) in [
        ("/a", "model.layers.3.mlp.weight", "its layer is in no slice"),
        ("/a", "model.norm.weight", "what stands after the layers comes from the last slice"),
        ("/b", "model.embed_tokens.weight", "what stands before the layers comes from the first slice"),
        ("/b", "model.layers.1.self_attn.rotary_emb.inv_freq", "computed by the model's code, not learned"),
        (
            "/c",
            "model.norm.weight",
            "no slice takes anything of this model, which gives its config and side files",
        ),
    ] {
        assert_eq!(reason(source, tensor), Some(expected), "{source} {tensor}");
    }
    assert_eq!(reason("/b", "lm_head.weight"), None);
}

#[test]
fn ranges_bases_and_stacks_that_do_not_fit_are_told_with_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({"num_hidden_layers": 4});
    for (number, name) in [(1.0, "a"), (2.0, "b")] {
        model(&folder.path().join(name), &config, &tensors(&names(LLAMA, 4), number));
    }
    let flat = vec!["w".to_owned()];
    model(&folder.path().join("flat"), &config, &tensors(&flat, 1.0));
    let two = names(&["encoder.block.N.q", "decoder.block.N.q"], 2);
    model(&folder.path().join("two"), &config, &tensors(&two, 1.0));
    let path = |name: &str| folder.path().join(name).display().to_string();
    let of = |slices: &[(&str, usize, usize)]| problems(&passthrough(folder.path(), slices));

    let told = of(&[("a", 0, 2), ("b", 3, 5)]);
    assert!(told.len() == 1 && told[0].starts_with("4:"), "{told:?}");
    let b = path("b");
    let expected = format!(
        "slices[1].sources[0].layer_range: the layer range [3, 5] goes beyond `{b}`, which has 4 layers (its layers are [0, 4])"
    );
    assert!(told[0].ends_with(&expected), "{told:?}");

    let told = of(&[("flat", 0, 1)]);
    let expected = "has no layers to slice: no names of its tensors are numbered from layer to layer (merge it whole, under `models`)";
    assert!(
        told.len() == 1 && told[0].starts_with("3:3 slices[0]: ") && told[0].ends_with(expected),
        "{told:?}"
    );

    let told = of(&[("two", 0, 1)]);
    let expected = "has layers in several places: encoder.block.N (2), decoder.block.N (2) (say which are meant under `modules`)";
    assert!(told.len() == 1 && told[0].ends_with(expected), "{told:?}");

    let told = of(&[("a", 0, 1), ("two", 0, 1)]);
    assert!(told.len() == 1 && told[0].contains("has no layers named `model.layers.N`"), "{told:?}");

    let (a, b) = (path("a"), path("b"));
    let text = format!(
        "merge_method: slerp\nbase_model: {a}\nslices:\n- sources: [{{model: {b}, layer_range: [0, 1]}}, {{model: {b}, layer_range: [1, 2]}}]\nparameters: {{t: 0.5}}\n"
    );
    let expected = format!("4:3 slices[0]: this slice has no layers of its base model, `{a}` (");
    let told = problems(&text);
    assert!(told.len() == 1 && told[0].starts_with(&expected), "{told:?}");

    let text = format!(
        "merge_method: passthrough\nslices:\n- sources: [{{model: {a}, layer_range: [0, 1]}}, {{model: {b}, layer_range: [1, 2]}}]\n"
    );
    let expected = "3:3 slices[0]: `passthrough` merges at most 1 model(s), but 2 are listed";
    assert_eq!(problems(&text), [expected]);
}

/// Parts of an encoder-decoder: one sliced, one merged whole, and the rest taken over.
#[test]
fn modules_are_merged_and_the_rest_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut all = names(&["shared.weight", "encoder.block.N.q.weight", "encoder.final_layer_norm.weight"], 3);
    all.extend(names(&["decoder.block.N.q.weight", "decoder.final_layer_norm.weight", "lm_head.weight"], 2));
    let config = json!({"num_layers": 3, "num_decoder_layers": 2, "is_encoder_decoder": true});
    for (number, name) in [(1.0, "a"), (2.0, "b")] {
        model(&folder.path().join(name), &config, &tensors(&all, number));
    }
    let (a, b) =
        (folder.path().join("a").display().to_string(), folder.path().join("b").display().to_string());
    let recipe = format!(
        "merge_method: linear\nbase_model: {a}\nmodules:\n  encoder:\n    slices:\n    - sources: [{{model: {b}, layer_range: [0, 2]}}]\n    \
         - sources: [{{model: {b}, layer_range: [1, 3]}}]\n  decoder:\n    models: [{{model: {a}}}, {{model: {b}}}]\n    \
         parameters: {{weight: 0.25, normalize: false}}\nparameters: {{weight: 1}}\ndtype: float32\n"
    );
    let output = merged(&recipe, &folder.path().join("out")).unwrap();
    let at = |name: &str| all.iter().position(|known| known == name).unwrap() as f32 / 64.0;
    let value = |name: &str| output.iter().find(|(known, _)| known == name).unwrap().1;
    assert_eq!(output.len(), all.len() + 1);
    assert_eq!(value("shared.weight"), 1.0);
    assert_eq!(value("lm_head.weight"), 1.0 + at("lm_head.weight"));
    assert_eq!(value("encoder.block.3.q.weight"), 2.0 + at("encoder.block.2.q.weight"));
    assert_eq!(value("encoder.final_layer_norm.weight"), 2.0 + at("encoder.final_layer_norm.weight"));
    assert_eq!(value("decoder.block.1.q.weight"), 0.75 + at("decoder.block.1.q.weight") / 2.0);
    let config = config_of(&folder.path().join("out"));
    assert_eq!((&config["num_layers"], &config["num_decoder_layers"]), (&json!(4), &json!(2)));

    let plan = Plan::new(&Recipe::parse(&recipe).unwrap(), &PlanOptions::default()).unwrap();
    let used: usize = plan.steps.iter().map(|step| step.inputs.len()).sum();
    // One layer of b's encoder is read twice.
    assert_eq!(used - 1 + plan.dropped.len(), 2 * all.len());
    let told = problems(&recipe.replace("  encoder:", "  encodr:"));
    assert!(
        told.len() == 1
            && told[0].contains("4:3 modules.encodr: `")
            && told[0].contains("has no module `encodr`"),
        "{told:?}"
    );
}
