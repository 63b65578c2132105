//! Merges models whose tokenizers differ: weights, tokens and texts as mergekit has them, and what is refused. See
//! `tests/golden/vocabulary/generate.py`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::agreement::{HALVES, compare, is_whole};
use crate::made::{config_of, elements, merged};
use aludel_checkpoint::Dtype;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/vocabulary").canonicalize().unwrap()
}

/// A recipe whose models lie in the folder of the goldens.
fn in_place(recipe: &str) -> String {
    recipe.replace("models/", &format!("{}/models/", golden().display()))
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A folder with another one's files.
fn copied(from: &str, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(golden().join("models").join(from)).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
}

fn refusal(recipe: &str) -> String {
    let target = tempfile::tempdir().unwrap();
    let refused = merged(&in_place(recipe), &target.path().join("out")).unwrap_err().to_string();
    refused.replace(&format!("{}/", golden().display()), "")
}

/// A recipe that merges two models without a base.
fn of_two(models: [&str; 2], rest: &str) -> String {
    format!(
        "merge_method: linear\nmodels: [{{model: {}}}, {{model: {}}}]\nparameters: {{weight: 1}}\ndtype: float32\n{rest}\n",
        models[0], models[1]
    )
}

const A: &str = "models/a";
const B: &str = "models/b";

fn row(elements: &[(String, Vec<f32>)], tensor: &str, row: usize) -> Vec<f32> {
    elements.iter().find(|(name, _)| name == tensor).unwrap().1[row * 8..][..8].to_vec()
}

#[test]
fn outputs_agree_with_mergekit() {
    let output = tempfile::tempdir().unwrap();
    let mut cases: Vec<_> =
        fs::read_dir(golden().join("cases")).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    let mut failures = Vec::new();
    for case in &cases {
        let name = case.file_name().unwrap().to_string_lossy();
        let target = output.path().join(&*name);
        let mut replayed = |out_dtype| {
            if let Err(failure) = replay(case, &target, out_dtype) {
                failures.push(format!("{name}: {failure}"));
            }
        };
        replayed(None);
        if is_whole(&case.join("expected.safetensors")) {
            HALVES.iter().for_each(|half| replayed(Some(*half)));
        }
    }
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
    assert!(cases.len() >= 25, "only {} cases were found", cases.len());
}

fn replay(case: &Path, target: &Path, out_dtype: Option<(&str, Dtype)>) -> Result<(), String> {
    let expected = json_of(&case.join("expected.json"));
    let recipe = in_place(&fs::read_to_string(case.join("recipe.yml")).unwrap());
    let recipe = match out_dtype {
        None => recipe,
        Some((half, _)) => format!("{recipe}\nout_dtype: {half}\n"),
    };
    // Half precision is no type that `merged` reads back.
    let plan = aludel_merge::plan::Plan::new(
        &aludel_merge::recipe::Recipe::parse(&recipe).map_err(|problems| problems.to_string())?,
        &aludel_merge::plan::PlanOptions { threads: 2, ..Default::default() },
    )
    .map_err(|problems| problems.to_string())?;
    let options = aludel_merge::execute::ExecuteOptions {
        replace: true,
        sync: false,
        ..aludel_merge::execute::ExecuteOptions::default()
    };
    aludel_merge::execute::execute(&plan, target, &options).map_err(|error| error.to_string())?;
    compare(target, &case.join("expected.safetensors"), &expected, out_dtype.map(|(_, dtype)| dtype))?;
    if config_of(target)["vocab_size"] != expected["vocab_size"] {
        return Err(format!("vocab_size is {}", config_of(target)["vocab_size"]));
    }
    let tokenizer = Tokenizer::from_file(target.join("tokenizer.json")).map_err(|error| error.to_string())?;
    let tokens = expected["tokens"].as_array().unwrap();
    for (id, token) in tokens.iter().enumerate() {
        let found = tokenizer.token_to_id(token.as_str().unwrap());
        if found != Some(id as u32) {
            return Err(format!("token {token} is {found:?}, should be {id}"));
        }
    }
    if tokenizer.get_vocab_size(true) != tokens.len() {
        return Err(format!("{} tokens, should be {}", tokenizer.get_vocab_size(true), tokens.len()));
    }
    let texts = expected["texts"].as_array().unwrap().iter();
    for (text, ids) in texts.zip(expected["ids"].as_array().unwrap()) {
        let encoded = tokenizer.encode(text.as_str().unwrap(), false).map_err(|error| error.to_string())?;
        if json!(encoded.get_ids()) != *ids {
            return Err(format!("{text} is {:?}, should be {ids}", encoded.get_ids()));
        }
    }
    Ok(())
}

#[test]
fn added_and_special_tokens_stay_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("out");
    let tokens = "tokenizer: {source: union, tokens: {</s>: {source: zero}, he: {source: zero}, <new>: {source: zero}}}\nchat_template: chatml";
    merged(&in_place(&of_two([A, B], tokens)), &target).unwrap();
    let tokenizer = json_of(&target.join("tokenizer.json"));
    let find = |text: &str| {
        let added = tokenizer["added_tokens"].as_array().unwrap().iter();
        added.into_iter().find(|token| token["content"] == text).cloned()
    };
    let flags = |text: &str| {
        find(text).map(|token| ["special", "lstrip", "normalized"].map(|flag| token[flag] == true))
    };
    assert_eq!(flags("</s>"), Some([true, false, false]));
    assert_eq!(flags("<|im|>"), Some([true, true, false]));
    assert_eq!(flags("<pad>"), Some([true, false, false]));
    assert_eq!(flags("<new>"), Some([false, false, true]));
    // A token of the vocabulary proper is not made one that is cut out of any text.
    assert_eq!(flags("he"), None);
    let config = json_of(&target.join("tokenizer_config.json"));
    let listed = config["added_tokens_decoder"].as_object().unwrap();
    assert!(listed.values().any(|token| token["content"] == "<new>"));
    assert_eq!((&config["eos_token"], config.get("chat_template")), (&json!("</s>"), None));
    assert!(fs::read_to_string(target.join("chat_template.jinja")).unwrap().contains("<|im_start|>"));
}

#[test]
fn one_tokenizer_for_all_changes_no_file_and_no_row() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("out");
    for source in ["base", "union", B] {
        merged(&in_place(&of_two([B, B], &format!("tokenizer_source: {source}"))), &target).unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
            let original = fs::read(golden().join(B).join(file)).unwrap();
            assert_eq!(fs::read(target.join(file)).unwrap(), original, "{file}");
        }
        assert_eq!(config_of(&target)["vocab_size"], 38);
        let (ours, own) = (elements(&target), elements(&golden().join(B)));
        assert_eq!(row(&ours, "lm_head.weight", 37), row(&own, "lm_head.weight", 37));
    }
}

#[test]
fn a_stack_of_layers_takes_the_rows_that_its_first_and_last_models_lack_from_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("out");
    let slices = "merge_method: passthrough\nslices:\n- sources: [{model: models/a, layer_range: [0, 1]}]\n- sources: [{model: models/b, layer_range: [1, 2]}]\ntokenizer_source: union\ndtype: float32\n";
    merged(&in_place(slices), &target).unwrap();
    let (ours, a, b) = (elements(&target), elements(&golden().join(A)), elements(&golden().join(B)));
    let tokenizer = Tokenizer::from_file(target.join("tokenizer.json")).unwrap();
    let of_b = Tokenizer::from_file(golden().join(B).join("tokenizer.json")).unwrap();
    let id = |token: &str| tokenizer.token_to_id(token).unwrap() as usize;
    let id_in_b = |token: &str| of_b.token_to_id(token).unwrap() as usize;
    let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
    assert_eq!(row(&ours, embedding, id("the")), row(&a, embedding, id("the")));
    assert_eq!(row(&ours, head, id("the")), row(&b, head, id_in_b("the")));
    assert_eq!(row(&ours, embedding, id("<extra>")), row(&b, embedding, id_in_b("<extra>")));
    assert_eq!(row(&ours, head, id("tide")), row(&a, head, id("tide")));
}

#[test]
fn stages_have_the_tokens_that_their_own_recipes_ask_for() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("out");
    let stages = |first: &str, second: &str, last: &str| {
        format!(
            "name: one\n{}---\nname: two\n{}---\n{}",
            of_two([A, B], first),
            of_two([A, A], second),
            of_two(["one", "two"], last)
        )
    };
    let padded = "tokenizer: {source: models/a, tokens: {<pad>: {source: zero}}}";
    merged(&in_place(&stages(padded, padded, "tokenizer_source: one")), &target).unwrap();
    let (ours, a, b) = (elements(&target), elements(&golden().join(A)), elements(&golden().join(B)));
    let tokenizers =
        [A, B].map(|model| Tokenizer::from_file(golden().join(model).join("tokenizer.json")).unwrap());
    let the = tokenizers.map(|tokenizer| tokenizer.token_to_id("the").unwrap() as usize);
    let embedding = "model.embed_tokens.weight";
    // ((a + b) / 2 + a) / 2
    let pairs = row(&a, embedding, the[0]).into_iter().zip(row(&b, embedding, the[1]));
    for (ours, (a, b)) in row(&ours, embedding, the[0]).iter().zip(pairs) {
        assert!((ours - (0.75 * a + 0.25 * b)).abs() < 1e-6);
    }
    assert_eq!(config_of(&target)["vocab_size"], 41);
    let refused = refusal(&stages("tokenizer_source: models/b", "", "tokenizer_source: two"));
    assert!(
        refused.contains("rows of `one` would have to move to other places, but it is made in the same pass (write it to a folder of its own with --intermediate-dir, or give its recipe and all models here the same tokens)"),
        "{refused}"
    );
}

#[test]
fn parts_that_no_module_names_have_the_tokens_of_the_output_too() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("out");
    let modules = "merge_method: linear\nbase_model: models/b\nmodules: {layers: {models: [{model: models/a}, {model: models/b}]}}\nparameters: {weight: 1}\ntokenizer_source: models/a\ndtype: float32\n";
    merged(&in_place(modules), &target).unwrap();
    let (ours, b) = (elements(&target), elements(&golden().join(B)));
    let tokenizers =
        [A, B].map(|model| Tokenizer::from_file(golden().join(model).join("tokenizer.json")).unwrap());
    let the = tokenizers.map(|tokenizer| tokenizer.token_to_id("the").unwrap() as usize);
    for tensor in ["model.embed_tokens.weight", "lm_head.weight"] {
        assert_eq!(row(&ours, tensor, the[0]), row(&b, tensor, the[1]));
    }
    assert_eq!(config_of(&target)["vocab_size"], 40);
}

#[test]
fn tokens_with_a_role_follow_the_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other");
    copied("b", &other);
    let mut config = json_of(&other.join("config.json"));
    config["eos_token_id"] = json!([1, 37]);
    config["pad_token_id"] = json!(2);
    fs::write(other.join("config.json"), config.to_string()).unwrap();
    fs::write(other.join("generation_config.json"), "{\"eos_token_id\": [1, 37]}").unwrap();
    let other = other.display().to_string();
    let target = folder.path().join("out");
    merged(&in_place(&of_two([A, &other], &format!("tokenizer_source: {other}"))), &target).unwrap();
    let config = config_of(&target);
    assert_eq!((&config["eos_token_id"], &config["pad_token_id"]), (&json!([1, 37]), &json!(2)));
    assert_eq!(json_of(&target.join("generation_config.json")), json!({"eos_token_id": [1, 37]}));
    merged(&in_place(&of_two([A, &other], "tokenizer_source: union")), &target).unwrap();
    assert_eq!(config_of(&target)["eos_token_id"], 1);
}

#[test]
fn a_tokenizer_in_another_form_is_refused_unless_all_models_have_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let models = ["x", "y"].map(|name| folder.path().join(name));
    for model in &models {
        copied("a", model);
        fs::remove_file(model.join("tokenizer.json")).unwrap();
        fs::write(model.join("tokenizer.model"), "pieces").unwrap();
    }
    let names = models.clone().map(|model| model.display().to_string());
    let target = folder.path().join("out");
    merged(&of_two([&names[0], &names[1]], "tokenizer_source: base"), &target).unwrap();
    assert_eq!(fs::read(target.join("tokenizer.model")).unwrap(), b"pieces");
    let refused = refusal(&of_two([&names[0], A], "tokenizer_source: union"));
    assert!(
        refused.contains("has its tokenizer only as `tokenizer.model`, which is not read here (have transformers write a tokenizer.json beside it: `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`)"),
        "{refused}"
    );
    fs::remove_file(models[0].join("tokenizer.model")).unwrap();
    // A model without a tokenizer is taken to have the first one's, where it has as many rows.
    merged(&in_place(&of_two([A, &names[0]], "tokenizer_source: base")), &target).unwrap();
    let refused = refusal(&of_two([B, &names[0]], "tokenizer_source: base"));
    assert!(
        refused.contains("has no tokenizer.json, so that nothing tells which rows its tokens have"),
        "{refused}"
    );
    fs::write(models[0].join("tokenizer.json"), "{\"model\": {\"vocab\": 3}}").unwrap();
    let refused = refusal(&of_two([A, &names[0]], "tokenizer_source: union"));
    assert!(
        refused.contains("cannot be read: invalid type: integer `3`, expected tokens with ids"),
        "{refused}"
    );
}

#[test]
fn statistics_of_rows_that_move_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let statistics = folder.path().join("fisher.safetensors");
    fs::copy(golden().join(B).join("model.safetensors"), &statistics).unwrap();
    let statistics = statistics.display().to_string();
    let fisher = |names: [&str; 2]| {
        let model =
            |name: &str| format!("{{model: {name}, parameters: {{weight: 1, fisher: {statistics}}}}}");
        format!(
            "merge_method: fisher\nmodels: [{}, {}]\ndtype: float32\ntokenizer_source: models/b\n",
            model(names[0]),
            model(names[1])
        )
    };
    let refused = refusal(&fisher([A, B]));
    assert!(
        refused.contains("the rows of `model.embed_tokens.weight` are put into another order, in which"),
        "{refused}"
    );
    let problems = merged(&in_place(&fisher([B, B])), &folder.path().join("out")).err();
    assert_eq!(problems, None, "rows that stay where they are");
}

#[test]
fn what_does_not_fit_the_models_is_refused_in_its_place() {
    let tokens =
        |source: &str| of_two([A, B], &format!("tokenizer: {{tokens: {{x: {{source: {source}}}}}}}"));
    for (recipe, problem) in [
        (
            of_two([A, B], ""),
            "`model.embed_tokens.weight` is [40, 8] in `models/a` and [38, 8] in `models/b` (the vocabularies differ in size: say with `tokenizer_source` whose tokens the output has, `base`, `union` or one of the models)",
        ),
        (
            of_two([A, B], "tokenizer_source: models/bb"),
            "5:19 tokenizer_source: `models/bb` is none of the merge's models (did you mean `models/b`?)",
        ),
        (
            of_two([A, B], "tokenizer_source: elsewhere"),
            "5:19 tokenizer_source: `elsewhere` is none of the merge's models (name one of `models`, `base` or `union`)",
        ),
        (tokens("models/c"), "is none of the merge's models (did you mean `models/a`?)"),
        (
            tokens("models/a"),
            "`models/a` has no token `x` (tokens are written as in the `vocab` of its tokenizer.json; or give a `token_id`)",
        ),
        (
            tokens("{kind: model_token, model: models/b, token: <extro>}"),
            "`models/b` has no token `<extro>` (did you mean `<extra>`?)",
        ),
        (
            tokens("{kind: model_token, model: models/b, token_id: 38}"),
            "`models/b` has no row 38 (its rows are 0 to 37)",
        ),
        (
            of_two([A, B], "tokenizer_source: union\ntokenizer: {source: union}"),
            "`tokenizer` and `tokenizer_source` exclude each other",
        ),
    ] {
        let refused = refusal(&recipe);
        assert!(refused.contains(problem), "{refused}\nshould have: {problem}");
    }
}
