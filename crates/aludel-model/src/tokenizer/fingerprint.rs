//! Tells whether two tokenizers are the same.
//!
//! In: tokenizers. Out: hashes over what ids depend on, and a comparison token by token. What surrounds a text, and how ids
//! become text again, is left out: neither changes what an id means.

use std::collections::HashMap;

use aludel_checkpoint::hexadecimal;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::error::Error;

/// What ids depend on, each as SHA-256 in hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Over every id and its token.
    pub vocabulary: String,
    /// Over how text is cut into tokens: normalizer, pre-tokenizer, kind of model, merges, added tokens.
    pub rules: String,
}

/// What two tokenizers have in common, where no id means one token here and another there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreement {
    /// Ids that both have.
    pub shared: usize,
    /// Ids that only the first has.
    pub only_first: usize,
    /// Ids that only the second has.
    pub only_second: usize,
    /// Special tokens that have the same id and another name, as reserved ones that were put to use.
    pub renamed: usize,
    /// Both cut text alike.
    pub same_rules: bool,
}

impl Fingerprint {
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer, json: &[u8]) -> Result<Self, serde_json::Error> {
        let mut vocabulary = Sha256::new();
        for (id, token) in by_id(tokenizer) {
            vocabulary.update(id.to_le_bytes());
            vocabulary.update((token.len() as u64).to_le_bytes());
            vocabulary.update(token.as_bytes());
        }
        let rules = serde_json::to_vec(&rules(serde_json::from_slice(json)?))?;
        Ok(Self {
            vocabulary: hexadecimal(&vocabulary.finalize()),
            rules: hexadecimal(&Sha256::digest(rules)),
        })
    }
}

/// Every token with its id, by id and then by text.
fn by_id(tokenizer: &tokenizers::Tokenizer) -> Vec<(u32, String)> {
    let mut tokens: Vec<(u32, String)> =
        tokenizer.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
    tokens.sort_unstable();
    tokens
}

/// The parts of `tokenizer.json` that say how text is cut, in one spelling.
fn rules(json: Value) -> Value {
    let Value::Object(mut json) = json else { return Value::Null };
    let mut take = |key: &str| json.shift_remove(key).unwrap_or_default();
    let mut model = take("model");
    if let Value::Object(model) = &mut model {
        // The vocabulary has a hash of its own; a list of it holds scores, which decide how a unigram model cuts.
        if model.get("vocab").is_some_and(Value::is_object) {
            model.shift_remove("vocab");
        }
        if let Some(Value::Array(merges)) = model.get_mut("merges") {
            merges.iter_mut().for_each(join_merge);
        }
    }
    let rules = [
        ("added_tokens", take("added_tokens")),
        ("model", model),
        ("normalizer", take("normalizer")),
        ("pre_tokenizer", take("pre_tokenizer")),
    ];
    in_one_spelling(Value::Object(rules.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()))
}

/// A merge is written as a list of two, or as text with a space.
fn join_merge(merge: &mut Value) {
    if let Value::Array(pair) = merge
        && let [Value::String(left), Value::String(right)] = pair.as_slice()
    {
        *merge = Value::String(format!("{left} {right}"));
    }
}

/// Keys sorted, and those left out that say nothing: a file may write a default or leave it out.
fn in_one_spelling(value: Value) -> Value {
    let says_nothing = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    match value {
        Value::Object(entries) => {
            let mut entries: Vec<(String, Value)> = entries
                .into_iter()
                .filter(|(_, value)| !says_nothing(value))
                .map(|(key, value)| (key, in_one_spelling(value)))
                .collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(in_one_spelling).collect()),
        other => other,
    }
}

pub(super) fn compare(
    first: &tokenizers::Tokenizer,
    second: &tokenizers::Tokenizer,
    first_print: &Fingerprint,
    second_print: &Fingerprint,
) -> Result<Agreement, Error> {
    let same_rules = first_print.rules == second_print.rules;
    let first_tokens: HashMap<u32, String> = by_id(first).into_iter().collect();
    let second_tokens = by_id(second);
    let added = [first.get_added_tokens_decoder(), second.get_added_tokens_decoder()];
    let is_special = |id: u32| added.iter().all(|added| added.get(&id).is_some_and(|token| token.special));
    let mut shared = 0;
    let mut renamed = 0;
    let mut different = Vec::new();
    for (id, token) in &second_tokens {
        match first_tokens.get(id) {
            None => {}
            Some(other) if other == token => shared += 1,
            Some(_) if is_special(*id) => renamed += 1,
            Some(other) => different.push((*id, other, token)),
        }
    }
    if let Some((id, one, other)) = different.first() {
        let detail = format!(
            "token {id} is {one:?} for one and {other:?} for the other, and {} ids in all differ (teacher and student \
             need the same vocabulary: take models of one family)",
            different.len()
        );
        return Err(Error::Tokenizers { detail });
    }
    if shared == 0 {
        return Err(Error::Tokenizers { detail: "they have no token in common".to_owned() });
    }
    let met = shared + renamed;
    Ok(Agreement {
        shared,
        only_first: first_tokens.len() - met,
        only_second: second_tokens.len() - met,
        renamed,
        same_rules,
    })
}
