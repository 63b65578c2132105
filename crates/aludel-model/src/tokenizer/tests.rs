//! Holds ids to those of transformers and llama.cpp, and tokenizers to each other.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::*;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The tokenizer of `examples/models/base` with some keys of its files replaced.
fn changed(folder: &Path, tokenizer: &Value, config: &Value) {
    for (name, changes) in [("tokenizer.json", tokenizer), ("tokenizer_config.json", config)] {
        let mut content = json(&workspace().join("examples/models/base").join(name));
        let changes = changes.as_object().cloned().unwrap_or_default();
        content.as_object_mut().unwrap().extend(changes);
        fs::write(folder.join(name), content.to_string()).unwrap();
    }
}

fn open_changed(tokenizer: &Value, config: &Value) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    changed(folder.path(), tokenizer, config);
    Tokenizer::open(folder.path()).unwrap()
}

fn base() -> Tokenizer {
    Tokenizer::open(&workspace().join("examples/models/base")).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

#[test]
fn texts_have_the_ids_that_transformers_gives_them() {
    let cases = json(&workspace().join("tests/golden/tokenizer/cases.json"));
    for case in cases.as_array().unwrap() {
        let tokenizer = open_changed(&case["tokenizer"], &case["config"]);
        for result in case["results"].as_array().unwrap() {
            let text = result["text"].as_str().unwrap();
            let plain = tokenizer.encode_plain(text).unwrap();
            let starts: Vec<u32> = plain.starts.iter().map(|&start| start as u32).collect();
            assert_eq!(plain.ids, ids(&result["plain"]), "{} {text:?}", case["name"]);
            assert_eq!(starts, ids(&result["starts"]), "{} {text:?}", case["name"]);
            assert_eq!(tokenizer.encode(text).unwrap(), ids(&result["ids"]), "{} {text:?}", case["name"]);
            assert_eq!(tokenizer.decode(&plain.ids, false).unwrap(), result["decoded"].as_str().unwrap());
        }
    }
}

#[test]
fn a_gguf_file_has_a_tokenizer() {
    let fixtures = workspace().join("crates/aludel-checkpoint/tests/fixtures/gguf");
    let expected = json(&fixtures.join("tokens.json"));
    for name in ["byte_level", "sentence_piece"] {
        let tokenizer = Tokenizer::open(&fixtures.join(name).with_extension("gguf")).unwrap();
        let cases = expected[name].as_array().unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text).unwrap(), ids(&case["ids"]), "{name} {text:?}");
        }
    }
}

#[test]
fn roles_come_from_every_file() {
    let folder = tempfile::tempdir().unwrap();
    changed(
        folder.path(),
        &json!({}),
        &json!({"bos_token": {"content": "a"}, "eos_token": null, "pad_token": "nowhere"}),
    );
    fs::write(
        folder.path().join("special_tokens_map.json"),
        r#"{"bos_token": "b", "eos_token": "<|endoftext|>"}"#,
    )
    .unwrap();
    fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [7, 0, 7]}"#).unwrap();
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    let special = tokenizer.special();
    assert_eq!((special.bos, special.eos, special.pad), (tokenizer.id("a"), Some(0), None));
    assert_eq!(special.stops, [0, 7]);
    let texts = [("bos_token", "a"), ("eos_token", "<|endoftext|>"), ("pad_token", "nowhere")];
    assert_eq!(special.texts(), texts.map(|(role, text)| (role, text.to_owned())));
    assert_eq!(tokenizer.vocabulary(), 512);
    assert_eq!((tokenizer.token(0).as_deref(), tokenizer.token(512)), (Some("<|endoftext|>"), None));
}

#[test]
fn templates_come_from_a_file_or_the_config() {
    let source = |config: Value, file: Option<&str>| {
        let folder = tempfile::tempdir().unwrap();
        changed(folder.path(), &json!({}), &config);
        if let Some(file) = file {
            fs::write(folder.path().join("chat_template.jinja"), file).unwrap();
        }
        Tokenizer::open(folder.path()).map(|tokenizer| tokenizer.chat_template_source().map(str::to_owned))
    };
    assert_eq!(source(json!({}), None).unwrap(), None);
    assert_eq!(source(json!({"chat_template": "x"}), None).unwrap().as_deref(), Some("x"));
    assert_eq!(source(json!({"chat_template": "x"}), Some("y")).unwrap().as_deref(), Some("y"));
    let named = json!({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]});
    assert_eq!(source(named, None).unwrap().as_deref(), Some("d"));
    for wrong in
        [json!(3), json!([]), json!([{"name": "a", "template": "b"}, {"name": "c", "template": "d"}])]
    {
        assert!(source(json!({"chat_template": wrong}), None).is_err());
    }
}

/// Changes of the model's vocabulary.
fn with_vocabulary(change: impl FnOnce(&mut Map<String, Value>)) -> Value {
    let mut content = json(&workspace().join("examples/models/base/tokenizer.json"));
    change(content["model"]["vocab"].as_object_mut().unwrap());
    json!({"model": content["model"]})
}

#[test]
fn the_same_tokenizer_is_the_same_however_it_is_written() {
    let base = base();
    let mut content = json(&workspace().join("examples/models/base/tokenizer.json"));
    let merges = content["model"]["merges"].as_array_mut().unwrap();
    for merge in merges.iter_mut() {
        let pair: Vec<&str> = match &*merge {
            Value::String(text) => text.split(' ').collect(),
            list => list.as_array().unwrap().iter().map(|part| part.as_str().unwrap()).collect(),
        };
        *merge = if merge.is_string() { json!(pair) } else { json!(pair.join(" ")) };
    }
    let model = content["model"].as_object_mut().unwrap();
    model.shift_remove("ignore_merges");
    model.sort_keys();
    let other =
        open_changed(&json!({"model": content["model"], "decoder": null, "truncation": null}), &json!({}));
    assert_eq!(base.fingerprint(), other.fingerprint());
    assert_eq!(
        base.compare(&other).unwrap(),
        Agreement { shared: 512, only_first: 0, only_second: 0, renamed: 0, same_rules: true }
    );
}

#[test]
fn more_tokens_at_the_end_do_not_make_another_tokenizer() {
    let base = base();
    let end = json!({"id": 0, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let mut more = end.clone();
    more["id"] = json!(512);
    more["content"] = json!("<|more|>");
    let other = open_changed(&json!({"added_tokens": [end, more]}), &json!({}));
    assert_eq!(other.vocabulary(), 513);
    assert_ne!(base.fingerprint().vocabulary, other.fingerprint().vocabulary);
    let agreement = base.compare(&other).unwrap();
    assert_eq!((agreement.shared, agreement.only_first, agreement.only_second), (512, 0, 1));
}

#[test]
fn another_meaning_of_an_id_is_refused() {
    let base = base();
    let swapped = with_vocabulary(|vocabulary| {
        vocabulary.insert("a".to_owned(), json!(66));
        vocabulary.insert("b".to_owned(), json!(65));
    });
    let error = base.compare(&open_changed(&swapped, &json!({}))).unwrap_err().to_string();
    assert_eq!(
        error,
        "the tokenizers differ: token 65 is \"a\" for one and \"b\" for the other, and 2 ids in all differ (teacher and \
         student need the same vocabulary: take models of one family)"
    );
    let rules = open_changed(&json!({"normalizer": {"type": "NFC"}}), &json!({}));
    assert!(!base.compare(&rules).unwrap().same_rules);
}

#[test]
fn damaged_files_are_refused_by_name() {
    for (name, content, words) in [
        ("tokenizer.json", "{", "tokenizer.json: "),
        ("tokenizer.json", "{}", "tokenizer.json: "),
        ("tokenizer.json", "[1]", "tokenizer.json: "),
        ("tokenizer_config.json", "[]", "tokenizer_config.json: it is no JSON object"),
        ("generation_config.json", "nothing", "generation_config.json: expected ident"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        changed(folder.path(), &json!({}), &json!({}));
        fs::write(folder.path().join(name), content).unwrap();
        let error = Tokenizer::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("cannot be used"), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let error = Tokenizer::open(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("it has no tokenizer.json (make one with transformers: `AutoTokenizer"),
        "{error}"
    );
}
