//! Reads which tokens a model has, and which of its rows each of them is.
//!
//! In: the texts of `tokenizer.json` and `tokenizer_config.json`. Out: [`Known`]: the tokens that transformers would have, with
//! their ids, those that are added to the vocabulary proper with how they are matched. How text is cut into tokens does not
//! matter here.

use std::collections::HashSet;
use std::fmt;

use indexmap::IndexMap;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// The tokens of a model.
#[derive(Clone, Debug)]
pub(in crate::plan) struct Known {
    /// Every token with its id, in the order of ids.
    pub ids: IndexMap<String, u32>,
    /// How many tokens the vocabulary proper has.
    pub proper: usize,
    /// The tokens that are added to it, or are matched before it cuts text, in the order of ids.
    pub added: Vec<AddedToken>,
    /// Whether `tokenizer.json` itself has them all: transformers adds those that only `tokenizer_config.json` names.
    pub is_complete: bool,
}

/// A token that is found in text before the vocabulary proper cuts it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::plan) struct AddedToken {
    #[serde(default)]
    pub id: u32,
    pub content: String,
    #[serde(default)]
    pub single_word: bool,
    #[serde(default)]
    pub lstrip: bool,
    #[serde(default)]
    pub rstrip: bool,
    #[serde(default)]
    pub normalized: bool,
    #[serde(default)]
    pub special: bool,
}

impl AddedToken {
    /// A token without any particular meaning.
    pub(super) fn plain(content: &str) -> Self {
        let content = content.to_owned();
        Self {
            id: 0,
            content,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: true,
            special: false,
        }
    }

    /// A token with a role.
    fn special(content: &str) -> Self {
        Self { normalized: false, special: true, ..Self::plain(content) }
    }
}

impl Known {
    /// Reads the tokens of a tokenizer.
    ///
    /// # Errors
    /// What is wrong with the text of `tokenizer.json`.
    pub(in crate::plan) fn read(tokenizer: &str, config: Option<&Value>) -> Result<Self, serde_json::Error> {
        let File { model, mut added_tokens } = serde_json::from_str(tokenizer)?;
        let Vocab { ids, count } = model.vocab;
        added_tokens.sort_by_key(|token| token.id);
        let mut known = Self { ids, proper: count, added: added_tokens, is_complete: true };
        for token in &known.added {
            known.ids.insert(token.content.clone(), token.id);
        }
        for token in config.map(named).unwrap_or_default() {
            known.is_complete &= known.ids.contains_key(&token.content);
            known.add(token);
        }
        known.ids.sort_by(|a, a_id, b, b_id| (a_id, a).cmp(&(b_id, b)));
        Ok(known)
    }

    /// Adds a token unless it is there, with the id that the tokenizers library would give it.
    pub(super) fn add(&mut self, token: AddedToken) {
        if !self.ids.contains_key(&token.content) {
            let id = self.next_id();
            self.ids.insert(token.content.clone(), id);
            self.added.push(AddedToken { id, ..token });
        }
    }

    /// Has a token that is none of those yet matched before the vocabulary proper cuts text, under the id that it has there or
    /// a new one.
    pub(super) fn match_first(&mut self, token: AddedToken) {
        match self.ids.get(&token.content) {
            None => self.add(token),
            Some(&id) => {
                let place = self.added.partition_point(|added| added.id < id);
                self.added.insert(place, AddedToken { id, ..token });
            }
        }
    }

    /// What is matched before the vocabulary proper cuts text.
    pub(super) fn matched_first(&self) -> HashSet<&str> {
        self.added.iter().map(|token| token.content.as_str()).collect()
    }

    /// The id that a further token gets: after the vocabulary proper and after all that are added.
    fn next_id(&self) -> u32 {
        let last = self.added.last().map_or(0, |token| token.id.saturating_add(1));
        last.max(u32::try_from(self.proper).unwrap_or(u32::MAX))
    }

    /// One more than the highest id.
    pub(in crate::plan) fn rows(&self) -> usize {
        self.ids.values().max().map_or(0, |&id| id as usize + 1)
    }

    /// Whether a further token would get an id that another has: there are ids without a token below the highest one.
    pub(super) fn has_gap(&self) -> bool {
        (self.next_id() as usize) < self.rows()
    }
}

/// The tokens that `tokenizer_config.json` names, in the order in which transformers adds them.
fn named(config: &Value) -> Vec<AddedToken> {
    let mut listed: Vec<(u64, AddedToken)> = Vec::new();
    for (id, token) in config.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten() {
        if let (Ok(id), Ok(token)) = (id.parse(), AddedToken::deserialize(token)) {
            listed.push((id, token));
        }
    }
    listed.sort_by_key(|(id, _)| *id);
    let mut named: Vec<AddedToken> = listed.into_iter().map(|(_, token)| token).collect();
    let mut with_role: Vec<&Value> = ROLES.iter().filter_map(|role| config.get(*role)).collect();
    with_role.extend(config.get("additional_special_tokens").and_then(Value::as_array).into_iter().flatten());
    named.extend(with_role.into_iter().filter_map(content).map(AddedToken::special));
    named
}

/// The text of a token that is written as such or with how it is matched.
pub(in crate::plan) fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// The keys of `tokenizer_config.json` that give tokens a role.
pub(in crate::plan) const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What is read of a `tokenizer.json`.
#[derive(Deserialize)]
struct File {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct Model {
    vocab: Vocab,
}

/// Tokens with ids: a mapping, or a list of tokens with their scores, whose ids are their positions.
struct Vocab {
    ids: IndexMap<String, u32>,
    /// How many are written, of which some may be the same.
    count: usize,
}

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(VocabVisitor)
    }
}

struct VocabVisitor;

impl<'de> Visitor<'de> for VocabVisitor {
    type Value = Vocab;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("tokens with ids, or a list of tokens with scores")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
        let mut ids = IndexMap::new();
        while let Some((token, id)) = map.next_entry()? {
            ids.insert(token, id);
        }
        Ok(Vocab { count: ids.len(), ids })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vocab, A::Error> {
        let mut ids = IndexMap::new();
        let mut position = 0;
        while let Some(token) = list.next_element_seed(Scored)? {
            // Of pieces that are written alike, the last one is meant, as in the tokenizers library.
            ids.insert(token, position);
            position = u32::try_from(u64::from(position) + 1).map_err(A::Error::custom)?;
        }
        Ok(Vocab { ids, count: position as usize })
    }
}

/// A token before its score.
struct Scored;

impl<'de> DeserializeSeed<'de> for Scored {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        <(String, IgnoredAny)>::deserialize(deserializer).map(|(token, _)| token)
    }
}
