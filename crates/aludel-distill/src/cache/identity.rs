//! Says which settings decide what rows a run's data become: a cache fits a run when these are equal.
//!
//! In: a run, the tokenizer that its teacher reads by, the fingerprint of its files. Out: names and values for the cache's header. How rows are shuffled and packed
//! is left out: neither changes a row of the teacher.

use aludel_cache::TokenizerPrint;
use aludel_checkpoint::hexadecimal;
use aludel_model::Tokenizer;
use indexmap::IndexMap;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::run::{Run, Validation};

/// The settings under `data:` that decide which rows there are.
const SETTINGS: [&str; 6] = ["columns", "sequence_length", "loss_on", "long_documents", "bad_rows", "date"];

/// What decides which rows there are, by name.
///
/// # Errors
/// [`Error::Io`] for a chat template that cannot be read.
pub fn of_data(
    run: &Run,
    tokenizer: &Tokenizer,
    fingerprint: &str,
) -> Result<IndexMap<String, Value>, Error> {
    let of_teacher = run.teachers_data();
    let settings = serde_json::to_value(&of_teacher).map_err(|error| Error::internal(error.to_string()))?;
    let mut data = IndexMap::from([("files".to_owned(), Value::from(fingerprint))]);
    for name in SETTINGS {
        data.insert(name.to_owned(), settings[name].clone());
    }
    let validation = match &run.data.validation {
        Some(Validation::Share(share)) => Value::from(*share),
        Some(Validation::Files(files)) => Value::from(files.len()),
        None => Value::Null,
    };
    data.insert("validation".to_owned(), validation);
    let template = match &of_teacher.chat_template {
        Some(path) => Some(std::fs::read_to_string(path).map_err(Error::io("read the chat template", path))?),
        None => tokenizer.chat_template_source().map(str::to_owned),
    };
    let template = template.map_or(Value::Null, |text| Value::from(sha256(text.as_bytes())));
    data.insert("chat_template".to_owned(), template);
    Ok(data)
}

/// What ids mean.
pub fn of_tokenizer(tokenizer: &Tokenizer) -> TokenizerPrint {
    let print = tokenizer.fingerprint();
    TokenizerPrint { vocabulary: print.vocabulary.clone(), rules: print.rules.clone() }
}

/// In hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}
