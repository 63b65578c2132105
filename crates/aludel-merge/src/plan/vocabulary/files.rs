//! Writes the files of a tokenizer whose tokens are not those of any model as it is.
//!
//! In: the texts of a model's files. Out: the same without tokens that the model has no rows for, and with tokens that were
//! added. How text is cut stays as it was: nothing of the vocabulary proper is changed beyond what is cut off.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::super::SideFiles;
use super::super::chat_template::TOKENIZER_CONFIG;
use super::known::{AddedToken, Known, ROLES, content};

pub(super) const TOKENIZER: &str = "tokenizer.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const ADDED_TOKENS: &str = "added_tokens.json";

/// What other programs than the tokenizers library read a vocabulary from.
const OTHER_FORMS: [&str; 6] =
    ["vocab.json", "merges.txt", "vocab.txt", "tekken.json", "sentencepiece.bpe.model", "spiece.model"];

/// The texts of a tokenizer.
#[derive(Clone, Debug)]
pub(in crate::plan) struct Texts {
    pub tokenizer: String,
    pub config: Option<Value>,
    pub special: Option<Value>,
}

impl Texts {
    /// The texts of a model that has a `tokenizer.json`.
    pub(super) fn of(files: &SideFiles) -> Option<Self> {
        let json = |name: &str| serde_json::from_str(&files.read_text(name)?).ok();
        let tokenizer = files.read_text(TOKENIZER)?;
        Some(Self { tokenizer, config: json(TOKENIZER_CONFIG), special: json(SPECIAL_TOKENS) })
    }

    /// The same without the tokens whose id is `size` or more.
    ///
    /// # Errors
    /// What keeps them from being cut off.
    pub(super) fn cut(self, known: &Known, size: usize) -> Result<Self, String> {
        let is_lost = |id: &u32| *id as usize >= size;
        let lost: HashSet<&str> =
            known.ids.iter().filter(|(_, id)| is_lost(id)).map(|(token, _)| token.as_str()).collect();
        let mut whole: Value = serde_json::from_str(&self.tokenizer).map_err(|error| error.to_string())?;
        if let Some(added) = whole.get_mut("added_tokens").and_then(Value::as_array_mut) {
            added.retain(|token| {
                !token.get("content").and_then(Value::as_str).is_some_and(|token| lost.contains(token))
            });
        }
        if let Some(model) = whole.get_mut("model").and_then(Value::as_object_mut) {
            cut_model(model, size)?;
        }
        let without = |config: Option<Value>| {
            config.map(|mut config| {
                config.as_object_mut().into_iter().for_each(|config| forget(config, &lost));
                config
            })
        };
        Ok(Self {
            tokenizer: whole.to_string(),
            config: without(self.config),
            special: without(self.special),
        })
    }

    /// Puts the tokenizer among a model's side files, with these tokens matched before the vocabulary proper.
    pub(super) fn put(
        &self,
        known: &Known,
        is_cut: bool,
        files: &mut SideFiles,
    ) -> Result<(), serde_json::Error> {
        let mut whole: Map<String, Value> = serde_json::from_str(&self.tokenizer)?;
        whole.insert("added_tokens".to_owned(), serde_json::to_value(&known.added)?);
        files.write(TOKENIZER, format!("{:#}\n", Value::Object(whole)));
        if let Some(Value::Object(config)) = &self.config {
            let mut config = config.clone();
            let decoder = known.added.iter().map(|token| (token.id.to_string(), described(token)));
            config.insert("added_tokens_decoder".to_owned(), Value::Object(decoder.collect()));
            files.write(TOKENIZER_CONFIG, format!("{:#}\n", Value::Object(config)));
        }
        if let Some(special) = self.special.as_ref().filter(|_| is_cut) {
            files.write(SPECIAL_TOKENS, format!("{special:#}\n"));
        }
        files.remove(|name| name == Path::new(ADDED_TOKENS) || (is_cut && is_other_form(name)));
        Ok(())
    }
}

/// The files of a tokenizer that is kept in another form than `tokenizer.json`.
pub(super) fn other_forms(files: &SideFiles) -> Vec<&PathBuf> {
    files.names.iter().filter(|name| is_other_form(name)).collect()
}

fn is_other_form(name: &Path) -> bool {
    let name = name.to_string_lossy();
    OTHER_FORMS.contains(&&*name) || name.starts_with("tokenizer.model") || name.ends_with(".tiktoken")
}

fn cut_model(model: &mut Map<String, Value>, size: usize) -> Result<(), String> {
    let is_kept = |id: Option<u64>| id.is_none_or(|id| id < size as u64);
    if !is_kept(model.get("unk_id").and_then(Value::as_u64)) {
        return Err("it has no row for its unknown token".to_owned());
    }
    let prefix = model.get("continuing_subword_prefix").and_then(Value::as_str).unwrap_or("").to_owned();
    let kept: HashSet<String> = match model.get_mut("vocab") {
        Some(Value::Object(vocab)) => {
            vocab.retain(|_, id| is_kept(id.as_u64()));
            vocab.keys().cloned().collect()
        }
        Some(Value::Array(vocab)) => {
            vocab.truncate(size);
            return Ok(());
        }
        _ => return Ok(()),
    };
    if let Some(merges) = model.get_mut("merges").and_then(Value::as_array_mut) {
        merges.retain(|merge| {
            let pair = match merge {
                Value::String(pair) => pair.split_once(' '),
                Value::Array(pair) => match pair.as_slice() {
                    [first, second] => first.as_str().zip(second.as_str()),
                    _ => None,
                },
                _ => None,
            };
            pair.is_none_or(|(first, second)| {
                let joined = format!("{first}{}", second.strip_prefix(&prefix).unwrap_or(second));
                [first, second, &joined].iter().all(|&token| kept.contains(token))
            })
        });
    }
    Ok(())
}

/// Takes tokens out of what gives tokens a role.
fn forget(config: &mut Map<String, Value>, lost: &HashSet<&str>) {
    let is_lost = |token: &Value| content(token).is_some_and(|token| lost.contains(token));
    for role in ROLES {
        if config.get(role).is_some_and(is_lost) {
            config.shift_remove(role);
        }
    }
    if let Some(others) = config.get_mut("additional_special_tokens").and_then(Value::as_array_mut) {
        others.retain(|token| !is_lost(token));
    }
    if let Some(others) = config.get_mut("added_tokens_decoder").and_then(Value::as_object_mut) {
        others.retain(|_, token| !is_lost(token));
    }
}

/// How `tokenizer_config.json` writes an added token.
fn described(token: &AddedToken) -> Value {
    json!({
        "content": token.content,
        "lstrip": token.lstrip,
        "normalized": token.normalized,
        "rstrip": token.rstrip,
        "single_word": token.single_word,
        "special": token.special,
    })
}
