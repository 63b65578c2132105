//! Says what a cache is of: `cache.json`, which every shard names by its SHA-256.
//!
//! In: what a writer is about to store, or the text of a header. Out: a [`Header`], checked, and its differences from what a
//! reader needs, in words. Files are opened elsewhere.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The first line of defence: a reader that knows another number refuses.
pub const VERSION: u32 = 1;

/// Columns of a vocabulary that are accepted.
pub(crate) const MOST_COLUMNS: u32 = 1 << 26;

/// What a cache is of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// [`VERSION`].
    pub version: u32,
    /// What a row holds.
    pub contents: Contents,
    /// Columns of the teacher's logits that are tokens: every id of a row is below.
    pub vocabulary: u32,
    /// Temperatures that the tails of rows are stored at. The first is that of the probabilities.
    pub temperatures: Vec<f32>,
    /// Whether the log-sum-exp of the logits themselves is stored, which turns probabilities back into logits.
    pub logits: bool,
    /// How text becomes ids.
    pub tokenizer: TokenizerPrint,
    /// What decides which rows there are, each under the name of its setting.
    pub data: IndexMap<String, Value>,
    /// Who spoke.
    pub teacher: Teacher,
    /// Row t of a record is what the teacher says after its input t: of the token at `t + shift`.
    pub shift: u32,
    /// `restart`: positions are counted from 0 in every record, which sees nothing of others.
    pub positions: String,
    /// Into how many parts the rows of the data were divided among writers.
    pub parts: u32,
    /// What wrote it.
    pub tool: String,
}

/// What a row holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Contents {
    /// The likeliest tokens with their probabilities.
    TopK {
        /// Tokens of a row, at most.
        k: u32,
        /// Levels that the square root of a probability is divided into.
        resolution: u32,
    },
    /// Tokens that were drawn, with how often.
    Sampled {
        /// Draws of a row.
        draws: u32,
        /// Of the random numbers.
        seed: u64,
    },
    /// Logits of all columns in 8 bits.
    Int8 {},
    /// Logits of all columns in 4 bits.
    Int4 {},
    /// Hidden states after the last norm; the head lies beside them in `head.safetensors`.
    Hidden {
        /// Elements of a row.
        width: u32,
        /// Factor of the product with the head.
        scale: f32,
        /// Bound of the logits.
        soft_cap: Option<f32>,
        /// SHA-256 of the head's file.
        head: String,
    },
}

impl Contents {
    /// Its name.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::TopK { .. } => "top_k",
            Self::Sampled { .. } => "sampled",
            Self::Int8 {} => "int8",
            Self::Int4 {} => "int4",
            Self::Hidden { .. } => "hidden",
        }
    }

    /// Whether rows hold some columns only.
    pub const fn is_sparse(&self) -> bool {
        matches!(self, Self::TopK { .. } | Self::Sampled { .. })
    }
}

/// What ids mean, as hashes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerPrint {
    /// Over every id and its token.
    pub vocabulary: String,
    /// Over how text is cut.
    pub rules: String,
}

/// Who spoke.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Teacher {
    /// As it was named.
    pub name: String,
    /// Files of its weights; none of a served one.
    pub weights: Vec<TeacherFile>,
    /// Where a served one answered when the cache was begun; its parts may have been captured elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// A file of weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherFile {
    /// Its name without folders.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// In hexadecimal digits.
    pub sha256: String,
}

impl Header {
    /// Parses and checks a header.
    ///
    /// # Errors
    /// What is wrong with it, as a clause.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if version != VERSION {
            return Err(format!("it has version {version}, and this program reads version {VERSION}"));
        }
        let header: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        header.check()?;
        Ok(header)
    }

    /// The bytes of `cache.json`.
    ///
    /// # Errors
    /// Values that JSON has no words for.
    pub fn bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Checks what types cannot say.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !(1..=MOST_COLUMNS).contains(&self.vocabulary) {
            return Err(format!("a vocabulary of {} is not from 1 to {MOST_COLUMNS}", self.vocabulary));
        }
        if self.temperatures.is_empty() || self.temperatures.len() > 16 {
            return Err("it has no temperature, or more than 16".to_owned());
        }
        if !self.temperatures.iter().all(|t| t.is_finite() && *t > 0.0) {
            return Err("a temperature is not above 0".to_owned());
        }
        match &self.contents {
            Contents::TopK { k, resolution } => {
                if self.temperatures[0] != 1.0 {
                    return Err("the first temperature is not 1".to_owned());
                }
                if *k == 0 || *k > self.vocabulary || !(16..=65536).contains(resolution) {
                    return Err(format!("k {k} or resolution {resolution} is out of range"));
                }
            }
            Contents::Sampled { draws, .. } if *draws == 0 || *draws > 1 << 20 => {
                return Err(format!("{draws} draws are out of range"));
            }
            Contents::Sampled { .. } if self.temperatures.len() != 1 => {
                return Err("draws are of one temperature".to_owned());
            }
            Contents::Hidden { width: 0, .. } => return Err("hidden states have no width".to_owned()),
            _ => {}
        }
        if self.parts == 0 || self.parts > 1 << 20 {
            return Err(format!("{} parts are out of range", self.parts));
        }
        Ok(())
    }

    /// Whether a writer of `wanted` may go on with this cache: all is equal, but for where a served teacher answers.
    pub(crate) fn continues(&self, wanted: &Self) -> bool {
        let both_served = self.teacher.url.is_some() && wanted.teacher.url.is_some();
        let mut other = wanted.clone();
        if both_served {
            other.teacher.url.clone_from(&self.teacher.url);
        }
        *self == other
    }

    /// Where this header differs from one that a run needs: tokenizer, data, position rule. Empty where it fits.
    pub fn misfits(&self, tokenizer: &TokenizerPrint, data: &IndexMap<String, Value>) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.tokenizer.vocabulary != tokenizer.vocabulary {
            reasons.push("the tokenizer is another: ids mean other tokens".to_owned());
        } else if self.tokenizer.rules != tokenizer.rules {
            reasons.push("the tokenizer is another: it cuts text differently".to_owned());
        }
        let names = self.data.keys().chain(data.keys().filter(|name| !self.data.contains_key(*name)));
        for name in names {
            let (own, other) = (self.data.get(name), data.get(name));
            if own != other {
                let shown = |value: Option<&Value>| value.map_or("absent".to_owned(), Value::to_string);
                reasons.push(format!(
                    "`{name}` is {} in the cache and {} in the run",
                    shown(own),
                    shown(other)
                ));
            }
        }
        if self.shift != 1 {
            reasons.push(format!("its rows speak of the token {} places on, not of the next", self.shift));
        }
        if self.positions != "restart" {
            reasons.push(format!("its positions follow another rule, {:?}", self.positions));
        }
        reasons
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            version: VERSION,
            contents: Contents::Int8 {},
            vocabulary: 500,
            temperatures: vec![1.0],
            logits: false,
            tokenizer: TokenizerPrint { vocabulary: "ab".into(), rules: "cd".into() },
            data: IndexMap::from([
                ("sequence_length".to_owned(), 64.into()),
                ("chat_template".to_owned(), "ef".into()),
            ]),
            teacher: Teacher { name: "teacher".into(), weights: Vec::new(), url: None },
            shift: 1,
            positions: "restart".into(),
            parts: 1,
            tool: "aludel".into(),
        }
    }

    /// A change, and what is said of it.
    type Case = (fn(&mut Header), &'static str);

    #[test]
    fn whatever_decides_which_rows_there_are_is_a_reason() {
        let run = header();
        assert_eq!(run.misfits(&run.tokenizer, &run.data), [""; 0]);
        let cases: [Case; 7] = [
            (
                |cache| cache.tokenizer.vocabulary = "00".into(),
                "the tokenizer is another: ids mean other tokens",
            ),
            (
                |cache| cache.tokenizer.rules = "00".into(),
                "the tokenizer is another: it cuts text differently",
            ),
            (
                |cache| cache.data["sequence_length"] = 128.into(),
                "`sequence_length` is 128 in the cache and 64 in the run",
            ),
            (
                |cache| cache.data["chat_template"] = Value::Null,
                "`chat_template` is null in the cache and \"ef\" in the run",
            ),
            (
                |cache| drop(cache.data.insert("date".into(), "2030".into())),
                "`date` is \"2030\" in the cache and absent in the run",
            ),
            (|cache| cache.shift = 0, "its rows speak of the token 0 places on, not of the next"),
            (|cache| cache.positions = "continue".into(), "its positions follow another rule, \"continue\""),
        ];
        for (change, reason) in cases {
            let mut cache = header();
            change(&mut cache);
            assert_eq!(cache.misfits(&run.tokenizer, &run.data), [reason]);
        }
    }
}
