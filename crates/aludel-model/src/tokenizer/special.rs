//! Finds the tokens with a role, and what a tokenizer adds around a text.
//!
//! In: the tokenizer and the files beside it. Out: ids. Where files disagree, `tokenizer_config.json` goes before
//! `special_tokens_map.json`, and `generation_config.json` adds to the tokens that end a generation.

use serde_json::Value;

use super::files::Files;

/// Tokens with a role. A role without a token, or whose token is not in the vocabulary, has no id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Fills rows.
    pub pad: Option<u32>,
    /// Stands for what is not in the vocabulary.
    pub unknown: Option<u32>,
    /// End a generation: `eos` and those of `generation_config.json`; ascending.
    pub stops: Vec<u32>,
    texts: Vec<(&'static str, String)>,
}

const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl SpecialTokens {
    pub(super) fn read(files: &Files, tokenizer: &tokenizers::Tokenizer) -> Self {
        let texts: Vec<(&'static str, String)> = ROLES
            .into_iter()
            .filter_map(|role| {
                Some((role, text(&files.config[role]).or_else(|| text(&files.special[role]))?))
            })
            .collect();
        let id = |role: &str| {
            let (_, text) = texts.iter().find(|(known, _)| *known == role)?;
            tokenizer.token_to_id(text)
        };
        let (bos, eos, pad, unknown) = (id("bos_token"), id("eos_token"), id("pad_token"), id("unk_token"));
        let mut stops = listed(&files.generation["eos_token_id"]);
        stops.extend(eos);
        stops.sort_unstable();
        stops.dedup();
        Self { bos, eos, pad, unknown, stops, texts }
    }

    /// The texts of the tokens by role, such as `bos_token`, of those that have one.
    pub fn texts(&self) -> &[(&'static str, String)] {
        &self.texts
    }
}

/// A token is written as its text, or as an object that holds it.
fn text(token: &Value) -> Option<String> {
    token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
}

/// One id or a list of them.
fn listed(ids: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match ids {
        Value::Array(ids) => ids.iter().filter_map(id).collect(),
        one => id(one).into_iter().collect(),
    }
}

/// The ids that a tokenizer puts before and after a text: those of the post-processor of `tokenizer.json`. As in
/// transformers, `add_bos_token` and `add_eos_token` of the config are without effect beside it.
pub(super) fn added_around(
    tokenizer: &tokenizers::Tokenizer,
) -> Result<(Vec<u32>, Vec<u32>), tokenizers::Error> {
    let text = "a";
    let plain = tokenizer.encode(text, false)?.get_ids().to_vec();
    let added = tokenizer.encode(text, true)?.get_ids().to_vec();
    let at = (0..=added.len().saturating_sub(plain.len())).find(|&at| added[at..].starts_with(&plain));
    Ok(match at {
        Some(at) if !plain.is_empty() => (added[..at].to_vec(), added[at + plain.len()..].to_vec()),
        _ => (Vec::new(), Vec::new()),
    })
}
