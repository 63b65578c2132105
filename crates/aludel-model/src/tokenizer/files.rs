//! Reads the files that describe a tokenizer.
//!
//! In: a model folder or a GGUF file. Out: their content. Files other than `tokenizer.json` may be absent; one that is
//! there and cannot be read is an error.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use aludel_checkpoint::gguf::{Conversion, ConvertOptions};
use aludel_checkpoint::{LARGEST_SIDE_FILE, read_bounded};
use serde_json::Value;

use crate::error::Error;

/// Content of a tokenizer's files; those that are absent are null.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) path: PathBuf,
    /// `tokenizer.json`.
    pub(super) tokenizer: Vec<u8>,
    /// `tokenizer_config.json`.
    pub(super) config: Value,
    /// `special_tokens_map.json`.
    pub(super) special: Value,
    /// `generation_config.json`.
    pub(super) generation: Value,
    /// `chat_template.jinja`.
    template: Option<String>,
}

impl Files {
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
            return Self::from_gguf(path);
        }
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
        let read = |name: &str| read_file(&folder.join(name));
        let tokenizer = read("tokenizer.json")?.ok_or_else(|| {
            let detail = "it has no tokenizer.json (make one with transformers: \
                          `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`)";
            Error::tokenizer(path, detail)
        })?;
        let text = |bytes: Vec<u8>| {
            String::from_utf8(bytes).map_err(|_| Error::tokenizer(path, "chat_template.jinja is not UTF-8"))
        };
        Ok(Self {
            path: path.to_owned(),
            tokenizer,
            config: parse(path, "tokenizer_config.json", read("tokenizer_config.json")?)?,
            special: parse(path, "special_tokens_map.json", read("special_tokens_map.json")?)?,
            generation: parse(path, "generation_config.json", read("generation_config.json")?)?,
            template: read("chat_template.jinja")?.map(text).transpose()?,
        })
    }

    /// The files as the conversion of a GGUF file would write them.
    fn from_gguf(path: &Path) -> Result<Self, Error> {
        let conversion = Conversion::plan(path, &ConvertOptions { dtype: None, shard_bytes: u64::MAX })?;
        let read = |name: &str| conversion.side_file(name).map(<[u8]>::to_vec);
        let none = || Error::tokenizer(path, "it holds no vocabulary");
        Ok(Self {
            path: path.to_owned(),
            tokenizer: read("tokenizer.json").ok_or_else(none)?,
            config: parse(path, "tokenizer_config.json", read("tokenizer_config.json"))?,
            special: parse(path, "special_tokens_map.json", read("special_tokens_map.json"))?,
            generation: parse(path, "generation_config.json", read("generation_config.json"))?,
            template: None,
        })
    }

    /// The chat template: `chat_template.jinja`, else `chat_template` of the config. Of several with names, it is the one
    /// named `default`, else the only one.
    pub(super) fn chat_template(&self) -> Result<Option<String>, Error> {
        if let Some(template) = &self.template {
            return Ok(Some(template.clone()));
        }
        let wrong =
            |detail: &str| Err(Error::tokenizer(&self.path, format!("tokenizer_config.json: {detail}")));
        match &self.config["chat_template"] {
            Value::Null => Ok(None),
            Value::String(template) => Ok(Some(template.clone())),
            Value::Array(named) => {
                let default = named.iter().find(|entry| entry["name"] == "default");
                let only = || named.first().filter(|_| named.len() == 1);
                match default.or_else(only).map(|entry| &entry["template"]) {
                    Some(Value::String(template)) => Ok(Some(template.clone())),
                    _ => wrong("`chat_template` has several templates, and none is named `default`"),
                }
            }
            _ => wrong("`chat_template` is neither a text nor a list of named ones"),
        }
    }
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match read_bounded(path, LARGEST_SIDE_FILE) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(aludel_checkpoint::Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn parse(path: &Path, name: &str, bytes: Option<Vec<u8>>) -> Result<Value, Error> {
    let Some(bytes) = bytes else { return Ok(Value::Null) };
    let wrong = |detail: String| Error::tokenizer(path, format!("{name}: {detail}"));
    match serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))? {
        object @ Value::Object(_) => Ok(object),
        _ => Err(wrong("it is no JSON object".to_owned())),
    }
}
