//! Turns text into token ids and back, as transformers does with the same files.
//!
//! In: a model folder (`tokenizer.json` and the small files beside it) or a GGUF file. Out: ids, the places in the text that
//! they came from, and what marks the beginning and the end of a text. Models are not known here.
//!
//! Reading order: this file, `files` (what is read), `special` (tokens with a role), `fingerprint` (whether two tokenizers
//! are the same).

mod files;
mod fingerprint;
mod special;

use std::ops::Range;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub use fingerprint::{Agreement, Fingerprint};
pub use special::SpecialTokens;

use serde::de::IgnoredAny;

use crate::chat::{ChatContext, ChatTemplate, Moment};
use crate::error::Error;
use files::Files;

/// The tokenizer of a model.
#[derive(Debug)]
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    /// The same without what works on the finished tokens; made when it is first asked for.
    bare: OnceLock<tokenizers::Tokenizer>,
    special: SpecialTokens,
    before: Vec<u32>,
    after: Vec<u32>,
    vocabulary: usize,
    fingerprint: Fingerprint,
    template: Option<String>,
}

/// The library panics at some texts that are no tokenizer: that is the file's fault, not the program's.
fn parsed(text: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    serde_json::from_slice::<IgnoredAny>(text).map_err(|error| error.to_string())?;
    match catch_unwind(|| tokenizers::Tokenizer::from_bytes(text)) {
        Ok(parsed) => parsed.map_err(|error| error.to_string()),
        Err(_) => Err("it is not a tokenizer".to_owned()),
    }
}

/// Ids of a text, without anything added before or after it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tokens {
    /// The ids.
    pub ids: Vec<u32>,
    /// The byte of the text where each begins, in ascending order; several ids may share one character.
    pub starts: Vec<usize>,
}

impl Tokenizer {
    /// Opens the tokenizer of a model folder or of a GGUF file.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when a file is absent, damaged or of a kind that is not known; [`Error::Checkpoint`] for GGUF
    /// files that cannot be read.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let files = Files::read(path)?;
        let mut inner = parsed(&files.tokenizer)
            .map_err(|error| Error::tokenizer(path, format!("tokenizer.json: {error}")))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| Error::tokenizer(path, error.to_string()))?;
        let special = SpecialTokens::read(&files, &inner);
        let (before, after) =
            special::added_around(&inner).map_err(|error| Error::tokenizer(path, error.to_string()))?;
        let highest = inner.get_vocab(true).into_values().max();
        let fingerprint = Fingerprint::of(&inner, &files.tokenizer)
            .map_err(|error| Error::tokenizer(path, format!("tokenizer.json: {error}")))?;
        Ok(Self {
            path: path.to_owned(),
            inner,
            bare: OnceLock::new(),
            special,
            before,
            after,
            vocabulary: highest.map_or(0, |id| id as usize + 1),
            fingerprint,
            template: files.chat_template()?,
        })
    }

    /// One more than the highest id. A model may have more rows than this: those are padding.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Tokens with a role.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// What ids depend on, as hashes.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Compares with another tokenizer: whether the same id means the same token wherever both have one.
    ///
    /// # Errors
    /// [`Error::Tokenizers`], with the first difference.
    pub fn compare(&self, other: &Self) -> Result<Agreement, Error> {
        fingerprint::compare(&self.inner, &other.inner, &self.fingerprint, &other.fingerprint)
    }

    /// Ids of a text with what the tokenizer adds around it, as transformers' `tokenizer(text)` gives them.
    ///
    /// # Errors
    /// [`Error::Tokenizer`]: the text cannot be tokenized, such as unknown characters where there is no unknown token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| self.failed(&error))?;
        Ok([&self.before, encoding.get_ids(), &self.after].concat())
    }

    /// Ids of a text with nothing added, and where they begin.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_plain(&self, text: &str) -> Result<Tokens, Error> {
        let encoding = self.inner.encode(text, false).map_err(|error| self.failed(&error))?;
        let starts = encoding.get_offsets().iter().map(|&(start, _)| start).collect();
        Ok(Tokens { ids: encoding.get_ids().to_vec(), starts })
    }

    /// The bytes of the text that each id of [`Tokenizer::encode_plain`] covers. Unlike its `starts`, they have the white space that a
    /// token begins with, whatever the tokenizer's post-processor says of offsets: what one tokenizer covers can be compared with what
    /// another does. Ids that share one character cover it all.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn spans(&self, text: &str) -> Result<Vec<Range<usize>>, Error> {
        let bare = self.bare.get_or_init(|| {
            let mut bare = self.inner.clone();
            bare.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
            bare
        });
        let encoding = bare.encode(text, false).map_err(|error| self.failed(&error))?;
        Ok(encoding.get_offsets().iter().map(|&(start, end)| start..end).collect())
    }

    /// Ids that [`Tokenizer::encode`] puts before a text, such as the beginning of a sequence.
    pub fn before(&self) -> &[u32] {
        &self.before
    }

    /// Ids that [`Tokenizer::encode`] puts after a text.
    pub fn after(&self) -> &[u32] {
        &self.after
    }

    /// The text of ids, with or without special tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`]: the decoder fails. Ids of no token are left out.
    pub fn decode(&self, ids: &[u32], with_special: bool) -> Result<String, Error> {
        self.inner.decode(ids, !with_special).map_err(|error| self.failed(&error))
    }

    /// The text of one token as the vocabulary has it; `None` for an id of no token.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token as the vocabulary has it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Source of the model's chat template, when it has one.
    pub fn chat_template_source(&self) -> Option<&str> {
        self.template.as_deref()
    }

    /// The model's chat template, when it has one. `moment` is what it takes for now.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`]: it does not compile.
    pub fn chat_template(&self, moment: Moment) -> Result<Option<ChatTemplate>, Error> {
        self.template.as_deref().map(|source| ChatTemplate::parse(source, moment)).transpose()
    }

    /// What chat templates are told about this tokenizer.
    pub fn chat_context(&self) -> ChatContext {
        ChatContext { special_tokens: self.special.texts().to_vec(), ..ChatContext::default() }
    }

    fn failed(&self, error: &tokenizers::Error) -> Error {
        Error::tokenizer(&self.path, error.to_string())
    }
}

#[cfg(test)]
mod tests;
