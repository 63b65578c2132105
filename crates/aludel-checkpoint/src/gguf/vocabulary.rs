//! Reads a GGUF file's vocabulary: token texts, kinds, scores and the special tokens.
//!
//! In: the metadata. Out: a [`Vocabulary`] whose arrays have one length, whose texts are all different and whose special
//! tokens exist. How text is split and merged is decided elsewhere.

use std::collections::HashMap;

use super::header::Header;
use super::metadata::Texts;
use crate::error::Error;

/// The tokens of one file.
#[derive(Debug)]
pub(super) struct Vocabulary<'a> {
    pub(super) header: &'a Header,
    /// Texts by id, rows that only pad the embedding left out.
    pub(super) texts: Vec<&'a str>,
    pub(super) kinds: Vec<Kind>,
    pub(super) scores: Option<Vec<f32>>,
    pub(super) ids: HashMap<&'a str, u32>,
    pub(super) special: Special,
}

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// Ids of the tokens with a role, where the file names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Special {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) unknown: Option<u32>,
    pub(super) padding: Option<u32>,
}

impl Special {
    /// Roles as the tokenizer's files name them, with their ids.
    pub(super) fn roles(self) -> impl Iterator<Item = (&'static str, u32)> {
        [
            ("bos_token", self.bos),
            ("eos_token", self.eos),
            ("unk_token", self.unknown),
            ("pad_token", self.padding),
        ]
        .into_iter()
        .filter_map(|(role, id)| Some((role, id?)))
    }
}

impl<'a> Vocabulary<'a> {
    /// Reads the vocabulary; `rows` is the embedding's number of rows. `None` when the file has no vocabulary.
    ///
    /// Errors: [`Error::Damaged`] for arrays of different lengths, more tokens than rows, equal texts and ids past the end.
    pub(super) fn read(header: &'a Header, rows: u64) -> Result<Option<Self>, Error> {
        let Some(all) = header.metadata.texts("tokenizer.ggml.tokens")? else { return Ok(None) };
        let count = all.len();
        let damaged = |detail: String| Error::damaged(header.path(), detail);
        if count as u64 > rows {
            return Err(damaged(format!("it has {count} tokens for an embedding of {rows} rows")));
        }
        let kinds = kinds(header, count)?;
        let scores = header.metadata.numbers("tokenizer.ggml.scores")?;
        if let Some(scores) = scores.as_ref().filter(|scores| scores.len() != count) {
            return Err(damaged(format!("it has {} scores for {count} tokens", scores.len())));
        }
        let texts = without_padding(&all, &kinds);
        let ids = ids(header, &texts)?;
        let special = special(header, texts.len())?;
        Ok(Some(Self { header, texts, kinds, scores, ids, special }))
    }

    /// The kind of a token.
    pub(super) fn kind(&self, id: usize) -> Kind {
        self.kinds.get(id).copied().unwrap_or(Kind::Normal)
    }

    /// Tokens that are found in text before it is split, with whether they are special: control tokens, those with a
    /// role, and those that users defined.
    pub(super) fn added(&self) -> impl Iterator<Item = (u32, &'a str, bool)> + '_ {
        self.texts.iter().enumerate().filter_map(|(id, text)| {
            let kind = self.kind(id);
            let has_role = self.special.roles().any(|(_, special)| special as usize == id);
            let special = kind == Kind::Control || kind == Kind::Unknown || has_role;
            let added = (special || kind == Kind::UserDefined) && !text.is_empty();
            added.then_some((id as u32, *text, special))
        })
    }
}

fn kinds(header: &Header, count: usize) -> Result<Vec<Kind>, Error> {
    let Some(numbers) = header.metadata.integers("tokenizer.ggml.token_type")? else { return Ok(Vec::new()) };
    if numbers.len() != count {
        let detail = format!("it has {} token types for {count} tokens", numbers.len());
        return Err(Error::damaged(header.path(), detail));
    }
    numbers.into_iter().map(|number| kind(header, number)).collect()
}

fn kind(header: &Header, number: i32) -> Result<Kind, Error> {
    match number {
        0 | 1 => Ok(Kind::Normal),
        2 => Ok(Kind::Unknown),
        3 => Ok(Kind::Control),
        4 => Ok(Kind::UserDefined),
        5 => Ok(Kind::Unused),
        6 => Ok(Kind::Byte),
        _ => Err(Error::damaged(header.path(), format!("token type {number} does not exist"))),
    }
}

/// The texts up to the last that the model was trained with: converters pad with unused tokens named `[PAD7]`.
fn without_padding<'a>(all: &Texts<'a>, kinds: &[Kind]) -> Vec<&'a str> {
    let mut texts: Vec<&str> = all.iter().collect();
    while let Some(text) = texts.last() {
        let id = texts.len() - 1;
        if kinds.get(id) != Some(&Kind::Unused) || *text != format!("[PAD{id}]") {
            break;
        }
        texts.pop();
    }
    texts
}

fn ids<'a>(header: &Header, texts: &[&'a str]) -> Result<HashMap<&'a str, u32>, Error> {
    let mut ids = HashMap::with_capacity(texts.len());
    for (id, text) in texts.iter().enumerate() {
        if let Some(other) = ids.insert(*text, id as u32) {
            let detail = format!("its tokens {other} and {id} are both {text:?}");
            return Err(Error::damaged(header.path(), detail));
        }
    }
    Ok(ids)
}

fn special(header: &Header, count: usize) -> Result<Special, Error> {
    let id = |role: &str| -> Result<Option<u32>, Error> {
        let key = format!("tokenizer.ggml.{role}_token_id");
        let Some(id) = header.metadata.count(&key)? else { return Ok(None) };
        // Some converters wrote the largest u32 for "none".
        if id == u64::from(u32::MAX) {
            return Ok(None);
        }
        match u32::try_from(id) {
            Ok(small) if id < count as u64 => Ok(Some(small)),
            _ => Err(Error::damaged(header.path(), format!("{key} is {id}, past its {count} tokens"))),
        }
    };
    Ok(Special { bos: id("bos")?, eos: id("eos")?, unknown: id("unknown")?, padding: id("padding")? })
}
