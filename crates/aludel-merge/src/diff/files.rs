//! Compares what lies beside the weights of two models: the config key by key, JSON files by what they say, all others by their bytes.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::tokenizer::{self, TokenizerDifference};
use crate::plan::{Model, Opened};

/// A key with different values.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Changed {
    /// The key, with those that it lies under before it, as `rope_scaling.factor`.
    pub key: String,
    /// Its value in the first model; `None` where it has no such key.
    pub first: Option<Value>,
    /// Its value in the second.
    pub second: Option<Value>,
}

/// A file that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FileDifference {
    /// Its name.
    pub name: String,
    /// Whether the first model has it.
    pub in_first: bool,
    /// Whether the second has it.
    pub in_second: bool,
    /// What differs, in JSON files that both have.
    pub keys: Vec<Changed>,
}

/// What a tool leaves in a config that says nothing of the model.
const MARKS: [&str; 2] = ["_name_or_path", "transformers_version"];

const TYPES: [&str; 2] = ["dtype", "torch_dtype"];

/// What differs between the configs.
pub(super) fn config(opened: &Opened, ignore_types: bool) -> Vec<Changed> {
    let object = |model: &Model| {
        model.config.as_ref().map(|config| {
            let mut object = config.object().clone();
            object.retain(|key, _| {
                let key = key.as_str();
                !(MARKS.contains(&key) || ignore_types && TYPES.contains(&key))
            });
            Value::Object(object)
        })
    };
    let (first, second) = (object(opened.model(0)), object(opened.model(1)));
    let mut changed = Vec::new();
    changes("", first.as_ref(), second.as_ref(), &mut changed);
    changed
}

/// What differs between the tokenizers, and between all other files that travel with the weights.
pub(super) fn beside_weights(opened: &Opened) -> (Option<TokenizerDifference>, Vec<FileDifference>) {
    let (first, second) = (&opened.model(0).side_files, &opened.model(1).side_files);
    let names: BTreeSet<&Path> = first.all_names().chain(second.all_names()).collect();
    let (mut tokenizer, mut files) = (None, Vec::new());
    for name in names {
        let (a, b) = (first.read(name), second.read(name));
        if a == b {
            continue;
        }
        let (json_a, json_b) = (a.as_deref().and_then(parsed), b.as_deref().and_then(parsed));
        let are_alike = json_a.is_some() && json_a == json_b;
        match (&json_a, &json_b) {
            _ if are_alike => {}
            (Some(a), Some(b)) if name == Path::new("tokenizer.json") => {
                tokenizer = Some(tokenizer::compare(a, b));
            }
            _ => {
                let mut keys = Vec::new();
                if let (Some(a), Some(b)) = (&json_a, &json_b) {
                    changes("", Some(a), Some(b), &mut keys);
                }
                let name = name.display().to_string();
                files.push(FileDifference { name, in_first: a.is_some(), in_second: b.is_some(), keys });
            }
        }
    }
    (tokenizer, files)
}

fn parsed(bytes: &[u8]) -> Option<Value> {
    serde_json::from_slice(bytes).ok()
}

/// The keys below `path` at which two values differ.
fn changes(path: &str, first: Option<&Value>, second: Option<&Value>, found: &mut Vec<Changed>) {
    if first == second {
        return;
    }
    let (Some(Value::Object(a)), Some(Value::Object(b))) = (first, second) else {
        found.push(Changed { key: path.to_owned(), first: first.cloned(), second: second.cloned() });
        return;
    };
    let keys: Vec<&String> = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))).collect();
    for key in keys {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        changes(&path, a.get(key), b.get(key), found);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_that_differ_are_told_with_the_path_to_them() {
        let first = json!({"a": 1, "b": {"c": [1, 2], "d": null}, "e": 0});
        let second = json!({"a": 1, "b": {"c": [1, 3]}, "f": true, "e": 0});
        let mut found = Vec::new();
        changes("", Some(&first), Some(&second), &mut found);
        let told: Vec<String> = found
            .iter()
            .map(|c| format!("{} {:?} {:?}", c.key, c.first.is_some(), c.second.is_some()))
            .collect();
        assert_eq!(told, ["b.c true true", "b.d true false", "f false true"]);
    }
}
