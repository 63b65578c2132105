//! Tells which text each token of a tokenizer stands for, so that tokens of different tokenizers can be told to be the same.
//!
//! In: the tokens of a model and its `tokenizer.json`. Out: bytes. Byte-level vocabularies write a character for each byte, others a mark for a
//! blank, `<0x0A>` for a byte that has no piece of its own, or `##` where a piece goes on.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use super::super::vocabulary::{AddedToken, Known, ROLES, Texts, content};

/// What a token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A piece of text.
    Text(Vec<u8>),
    /// A byte that no other piece has: a piece of what cuts text into bytes where it must.
    Byte(u8),
    /// A token that is found in text before it is cut.
    Added { content: String, special: bool },
}

/// The tokens of a model by what they stand for.
#[derive(Debug)]
pub(super) struct Meanings {
    /// In the order of ids.
    pub tokens: Vec<(u32, Meaning)>,
    /// The token of a piece of text; that of a byte is one where no other is.
    pub texts: HashMap<Vec<u8>, u32>,
    pub bytes: HashMap<u8, u32>,
    pub added: HashMap<String, u32>,
    /// The tokens that have a role, by its key in `tokenizer_config.json`.
    pub roles: Vec<(&'static str, u32)>,
}

impl Meanings {
    /// Of the tokens whose id is below `size`.
    pub(super) fn of(known: &Known, texts: &Texts, size: usize) -> Result<Self, serde_json::Error> {
        let writing = Writing::of(&texts.tokenizer)?;
        let added: HashMap<&str, &AddedToken> =
            known.added.iter().map(|token| (token.content.as_str(), token)).collect();
        let mut meanings = Self {
            tokens: Vec::new(),
            texts: HashMap::new(),
            bytes: HashMap::new(),
            added: HashMap::new(),
            roles: Vec::new(),
        };
        for (token, &id) in known.ids.iter().filter(|(_, id)| (**id as usize) < size) {
            let meaning = match added.get(token.as_str()) {
                Some(AddedToken { content, special, .. }) => {
                    Meaning::Added { content: content.clone(), special: *special }
                }
                None => writing.meaning(token),
            };
            meanings.add(id, meaning);
        }
        // Where another piece has the text, that is the one which text is cut into.
        for (&byte, &id) in &meanings.bytes {
            meanings.texts.entry(vec![byte]).or_insert(id);
        }
        for config in [&texts.config, &texts.special].into_iter().flatten() {
            for role in ROLES {
                let id = config.get(role).and_then(content).and_then(|token| known.ids.get(token));
                let is_known = meanings.roles.iter().any(|(known, _)| *known == role);
                meanings
                    .roles
                    .extend(id.filter(|id| !is_known && (**id as usize) < size).map(|&id| (role, id)));
            }
        }
        Ok(meanings)
    }

    fn add(&mut self, id: u32, meaning: Meaning) {
        match &meaning {
            Meaning::Text(text) => {
                self.texts.insert(text.clone(), id);
            }
            Meaning::Byte(byte) => {
                self.bytes.insert(*byte, id);
            }
            Meaning::Added { content, special } => {
                self.added.insert(content.clone(), id);
                if !special {
                    self.texts.entry(content.clone().into_bytes()).or_insert(id);
                }
            }
        }
        self.tokens.push((id, meaning));
    }
}

/// How a vocabulary writes text.
#[derive(Debug, PartialEq, Eq)]
enum Writing {
    /// A character for each byte.
    Bytes(HashMap<char, u8>),
    /// As it is, with a mark for a blank, and bytes by number.
    Marked,
    /// Words as they are, which begin with a blank, and pieces that go on after this.
    Words(String),
}

#[derive(Deserialize)]
struct File {
    model: ModelOfFile,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
}

#[derive(Deserialize)]
struct ModelOfFile {
    #[serde(default)]
    r#type: String,
    continuing_subword_prefix: Option<String>,
}

/// What stands for a blank.
const MARK: char = '\u{2581}';

impl Writing {
    fn of(tokenizer: &str) -> Result<Self, serde_json::Error> {
        let File { model, pre_tokenizer, decoder } = serde_json::from_str(tokenizer)?;
        Ok(if names_bytes(&pre_tokenizer) || names_bytes(&decoder) {
            Self::Bytes(characters_of_bytes())
        } else if model.r#type == "WordPiece" {
            Self::Words(model.continuing_subword_prefix.unwrap_or_else(|| "##".to_owned()))
        } else {
            Self::Marked
        })
    }

    fn meaning(&self, token: &str) -> Meaning {
        let text = match self {
            Self::Bytes(characters) => {
                let bytes: Option<Vec<u8>> = token.chars().map(|c| characters.get(&c).copied()).collect();
                bytes.unwrap_or_else(|| token.as_bytes().to_vec())
            }
            Self::Words(prefix) => {
                match token.strip_prefix(prefix.as_str()).filter(|rest| !rest.is_empty()) {
                    Some(rest) => rest.as_bytes().to_vec(),
                    None => format!(" {token}").into_bytes(),
                }
            }
            Self::Marked => match byte(token) {
                Some(byte) => return Meaning::Byte(byte),
                None => token.replace(MARK, " ").into_bytes(),
            },
        };
        Meaning::Text(text)
    }
}

/// The byte that a token like `<0x0A>` stands for.
fn byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_byte = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_byte.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// Whether a step of a tokenizer, or one within it, is byte-level.
fn names_bytes(step: &Value) -> bool {
    match step {
        Value::Object(step) => {
            step.get("type").is_some_and(|name| name == "ByteLevel") || step.values().any(names_bytes)
        }
        Value::Array(steps) => steps.iter().any(names_bytes),
        _ => false,
    }
}

/// The characters of byte-level vocabularies: printable bytes of Latin-1 are themselves, and the others follow from 256 on.
fn characters_of_bytes() -> HashMap<char, u8> {
    let mut others = (256..).filter_map(char::from_u32);
    let is_printable = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let own = |byte: u8| is_printable(byte).then(|| char::from(byte));
    (0..=u8::MAX).filter_map(|byte| Some((own(byte).or_else(|| others.next())?, byte))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_different_writings_stand_for_the_same_text() {
        let bytes = Writing::Bytes(characters_of_bytes());
        let words = Writing::Words("##".to_owned());
        let text = |text: &str| Meaning::Text(text.as_bytes().to_vec());
        assert_eq!(bytes.meaning("Ġthe"), text(" the"));
        assert_eq!(bytes.meaning("ĊĊ"), text("\n\n"));
        assert_eq!(bytes.meaning("Ã©"), text("é"));
        assert_eq!(bytes.meaning("Ã"), Meaning::Text(vec![0xc3]));
        assert_eq!(bytes.meaning("▁"), text("▁"), "no character of a byte");
        assert_eq!(Writing::Marked.meaning("▁the"), text(" the"));
        assert_eq!(Writing::Marked.meaning("a▁b"), text("a b"));
        assert_eq!(Writing::Marked.meaning("<0x0A>"), Meaning::Byte(10));
        for token in ["<0xA>", "<0xGG>", "<0x0A", "<0x+1>", "0x0A"] {
            assert_eq!(Writing::Marked.meaning(token), text(token), "{token}");
        }
        assert_eq!(words.meaning("the"), text(" the"));
        assert_eq!(words.meaning("##ing"), text("ing"));
        assert_eq!(words.meaning("##"), text(" ##"));
    }

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        let characters = characters_of_bytes();
        assert_eq!(characters.len(), 256);
        assert_eq!(characters[&'Ġ'], b' ');
        assert_eq!(characters[&'Ń'], 0xad);
        assert_eq!(characters[&'ÿ'], 0xff);
    }

    #[test]
    fn the_writing_is_told_by_the_steps_of_a_tokenizer() {
        let of =
            |rest: &str| Writing::of(&format!("{{\"model\": {{\"vocab\": {{\"a\": 0}}, {rest}")).unwrap();
        assert!(matches!(of(r#""type": "BPE"}, "decoder": {"type": "ByteLevel"}}"#), Writing::Bytes(_)));
        let nested = r#""type": "BPE"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split"}, {"type": "ByteLevel"}]}}"#;
        assert!(matches!(of(nested), Writing::Bytes(_)));
        assert_eq!(
            of(r#""type": "WordPiece", "continuing_subword_prefix": "@@"}}"#),
            Writing::Words("@@".into())
        );
        assert_eq!(of(r#""type": "Unigram"}, "decoder": null}"#), Writing::Marked);
    }
}
