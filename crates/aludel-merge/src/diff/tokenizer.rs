//! Compares two `tokenizer.json`: which tokens only one has, which have another id, and which other parts differ.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

/// How two tokenizers differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenizerDifference {
    /// Tokens of the first.
    pub first_tokens: usize,
    /// Tokens of the second.
    pub second_tokens: usize,
    /// Tokens that only the first has, in the order of their ids.
    pub only_in_first: Vec<String>,
    /// Tokens that only the second has.
    pub only_in_second: Vec<String>,
    /// Tokens whose ids differ.
    pub moved: Vec<String>,
    /// Other parts that differ, as `normalizer` or `model.merges`.
    pub parts: Vec<String>,
}

/// What differs between two tokenizers.
pub(super) fn compare(first: &Value, second: &Value) -> TokenizerDifference {
    let (a, b) = (tokens(first), tokens(second));
    let only =
        |own: &BTreeMap<&str, u64>, other: &BTreeMap<&str, u64>, wanted: fn(u64, Option<u64>) -> bool| {
            let found = own.iter().filter(|(token, id)| wanted(**id, other.get(*token).copied()));
            let mut found: Vec<(u64, String)> = found.map(|(token, &id)| (id, (*token).to_owned())).collect();
            found.sort();
            found.into_iter().map(|(_, token)| token).collect::<Vec<String>>()
        };
    TokenizerDifference {
        first_tokens: a.len(),
        second_tokens: b.len(),
        only_in_first: only(&a, &b, |_, other| other.is_none()),
        only_in_second: only(&b, &a, |_, other| other.is_none()),
        moved: only(&a, &b, |id, other| other.is_some_and(|other| other != id)),
        parts: parts(first, second),
    }
}

/// Every token with its id: the vocabulary, as an object of ids or a list of tokens with scores, and the added tokens.
fn tokens(tokenizer: &Value) -> BTreeMap<&str, u64> {
    let mut tokens = BTreeMap::new();
    match tokenizer.pointer("/model/vocab") {
        Some(Value::Object(ids)) => {
            tokens.extend(ids.iter().filter_map(|(token, id)| Some((token.as_str(), id.as_u64()?))));
        }
        Some(Value::Array(list)) => {
            tokens.extend(list.iter().zip(0..).filter_map(|(entry, id)| Some((entry.get(0)?.as_str()?, id))));
        }
        _ => {}
    }
    let added = tokenizer.get("added_tokens").and_then(Value::as_array).into_iter().flatten();
    tokens.extend(
        added.filter_map(|token| Some((token.get("content")?.as_str()?, token.get("id")?.as_u64()?))),
    );
    tokens
}

/// The parts that differ, the vocabulary aside.
fn parts(first: &Value, second: &Value) -> Vec<String> {
    let keys = |value: &Value| -> Vec<String> {
        let names = |prefix: &str, value: Option<&Value>| -> Vec<String> {
            let keys = value.and_then(Value::as_object).into_iter().flat_map(|object| object.keys());
            keys.map(|key| format!("{prefix}/{key}")).collect()
        };
        [names("", Some(value)), names("/model", value.get("model"))].concat()
    };
    let mut paths = keys(first);
    paths.extend(keys(second));
    paths.sort();
    paths.dedup();
    paths.retain(|path| {
        path != "/model" && path != "/model/vocab" && first.pointer(path) != second.pointer(path)
    });
    paths.into_iter().map(|path| path[1..].replace('/', ".")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tokens_are_told_by_what_became_of_them() {
        let first = json!({
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2}, "merges": ["a b"]},
            "added_tokens": [{"id": 3, "content": "<s>"}],
            "normalizer": null,
        });
        let second = json!({
            "model": {"type": "BPE", "vocab": {"a": 0, "c": 1, "d": 2}, "merges": []},
            "added_tokens": [{"id": 3, "content": "<s>"}, {"id": 4, "content": "</s>"}],
            "normalizer": null,
        });
        let expected = TokenizerDifference {
            first_tokens: 4,
            second_tokens: 5,
            only_in_first: vec!["b".into()],
            only_in_second: vec!["d".into(), "</s>".into()],
            moved: vec!["c".into()],
            parts: vec!["added_tokens".into(), "model.merges".into()],
        };
        assert_eq!(compare(&first, &second), expected);
    }

    #[test]
    fn a_vocabulary_may_be_a_list_of_tokens_with_scores() {
        let unigram = |second: &str| json!({"model": {"vocab": [["<unk>", 0.0], [second, -1.5]]}});
        let difference = compare(&unigram("a"), &unigram("b"));
        assert_eq!(
            (difference.only_in_first, difference.only_in_second),
            (vec!["a".into()], vec!["b".into()])
        );
    }
}
