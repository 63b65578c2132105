//! Reads `config.json` as an ordered JSON object and answers the few questions that a merge asks of it.
//!
//! Every key is kept, known or not, in its order. It does not check that the values make sense for any architecture.

use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value};

use crate::dtype::torch_name;
use crate::error::Error;
use crate::regular::read_text;

/// A model's `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    object: Map<String, Value>,
}

impl Config {
    /// Reads a `config.json`.
    ///
    /// Errors: [`Error::Io`] when the file cannot be read, [`Error::Damaged`] when it is larger than 64 MiB or holds no
    /// JSON object.
    pub fn read(path: &Path) -> Result<Self, Error> {
        Self::parse(&read_text(path, MAX_CONFIG_BYTES)?, path)
    }

    /// Parses the text of a `config.json`; `path` is only used to name the file in errors.
    ///
    /// Errors: [`Error::Damaged`] when the text holds no JSON object.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let object = serde_json::from_str(text)
            .map_err(|error| Error::damaged(path, format!("it holds no JSON object: {error}")))?;
        Ok(Self { object })
    }

    /// A config of these keys and values.
    pub fn from_object(object: Map<String, Value>) -> Self {
        Self { object }
    }

    /// Every key and value, in the file's order.
    pub fn object(&self) -> &Map<String, Value> {
        &self.object
    }

    /// The number of transformer layers: `num_hidden_layers`, else `n_layer`, `num_layers` or `n_layers`; at the top,
    /// else under `text_config`.
    pub fn hidden_layers(&self) -> Option<usize> {
        ["num_hidden_layers", "n_layer", "num_layers", "n_layers"].into_iter().find_map(|key| self.count(key))
    }

    /// The number of tokens that the embedding has rows for: `vocab_size`, at the top or under `text_config`.
    pub fn vocabulary(&self) -> Option<usize> {
        self.count("vocab_size")
    }

    /// Whether input and output embedding are one tensor: `tie_word_embeddings`; `None` when the file leaves it to the
    /// architecture's default.
    pub fn ties_embeddings(&self) -> Option<bool> {
        self.find("tie_word_embeddings")?.as_bool()
    }

    /// The first name under `architectures`, such as "LlamaForCausalLM".
    pub fn architecture(&self) -> Option<&str> {
        self.object.get("architectures")?.get(0)?.as_str()
    }

    /// The value of a key at the top of the file.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.object.get(key)
    }

    /// Every key at the top of the file with its value, in the file's order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.object.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The same config, with a key at the top of the file set; a new key comes last.
    #[must_use]
    pub fn with(&self, key: &str, value: Value) -> Self {
        let mut object = self.object.clone();
        object.insert(key.to_owned(), value);
        Self { object }
    }

    /// The same config without a key at the top of the file.
    #[must_use]
    pub fn without(&self, key: &str) -> Self {
        let mut object = self.object.clone();
        object.shift_remove(key);
        Self { object }
    }

    /// The same config, with the weights' type declared as `dtype`.
    ///
    /// Whichever of `torch_dtype` and `dtype` the file has is set, `torch_dtype` when it has neither. Nested parts
    /// (`text_config`, `vision_config`, ...) are set where they already declare a type; `quantization_config` is left
    /// alone. A type that torch has no weight type for (an integer, say) changes nothing.
    #[must_use]
    pub fn with_dtype(&self, dtype: Dtype) -> Self {
        let mut object = self.object.clone();
        let Some(name) = torch_name(dtype) else { return Self { object } };
        for part in
            object.iter_mut().filter(|(key, _)| is_part(key)).filter_map(|(_, part)| part.as_object_mut())
        {
            declare(part, name);
        }
        if !declare(&mut object, name) {
            object.insert("torch_dtype".into(), name.into());
        }
        Self { object }
    }

    /// The file's text: two-space indentation and a final newline, as transformers writes it.
    pub fn to_json(&self) -> String {
        format!("{:#}\n", Value::Object(self.object.clone()))
    }

    fn count(&self, key: &str) -> Option<usize> {
        usize::try_from(self.find(key)?.as_u64()?).ok()
    }

    fn find(&self, key: &str) -> Option<&Value> {
        let declared = |value: &&Value| !value.is_null();
        let nested = || self.object.get("text_config")?.get(key);
        self.object.get(key).filter(declared).or_else(|| nested().filter(declared))
    }
}

/// Whether a key holds the config of a part of the model.
fn is_part(key: &str) -> bool {
    key.ends_with("_config") && key != "quantization_config"
}

/// Sets the type wherever the object declares one; says whether it did.
fn declare(object: &mut Map<String, Value>, name: &str) -> bool {
    let mut declared = false;
    for key in ["torch_dtype", "dtype"] {
        if let Some(value) = object.get_mut(key) {
            *value = name.into();
            declared = true;
        }
    }
    declared
}

/// Real files have a few kilobytes.
const MAX_CONFIG_BYTES: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text, Path::new("config.json")).unwrap()
    }

    #[test]
    fn facts_are_found_at_the_top_and_under_text_config() {
        let top = config(
            r#"{"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 30, "vocab_size": 49152, "tie_word_embeddings": true}"#,
        );
        assert_eq!(top.hidden_layers(), Some(30));
        assert_eq!(top.vocabulary(), Some(49152));
        assert_eq!(top.ties_embeddings(), Some(true));
        assert_eq!(top.architecture(), Some("LlamaForCausalLM"));
        let nested =
            config(r#"{"vocab_size": null, "text_config": {"num_hidden_layers": 4, "vocab_size": 7}}"#);
        assert_eq!(
            (nested.hidden_layers(), nested.vocabulary(), nested.ties_embeddings()),
            (Some(4), Some(7), None)
        );
        assert_eq!(config(r#"{"n_layer": 12}"#).hidden_layers(), Some(12));
    }

    #[test]
    fn values_of_the_wrong_kind_are_no_facts() {
        let odd = config(
            r#"{"num_hidden_layers": -1, "vocab_size": 1.5, "tie_word_embeddings": "yes", "architectures": []}"#,
        );
        assert_eq!(
            (odd.hidden_layers(), odd.vocabulary(), odd.ties_embeddings(), odd.architecture()),
            (None, None, None, None)
        );
    }

    #[test]
    fn the_declared_type_goes_where_the_file_has_it() {
        assert_eq!(
            config(r#"{"z": 1, "torch_dtype": "float32", "a": [2]}"#).with_dtype(Dtype::BF16),
            config(r#"{"z": 1, "torch_dtype": "bfloat16", "a": [2]}"#)
        );
        assert_eq!(config(r#"{"dtype": null}"#).with_dtype(Dtype::F16), config(r#"{"dtype": "float16"}"#));
        assert_eq!(
            config(r#"{"a": 1}"#).with_dtype(Dtype::F32),
            config(r#"{"a": 1, "torch_dtype": "float32"}"#)
        );
        assert_eq!(config(r#"{"a": 1}"#).with_dtype(Dtype::I8), config(r#"{"a": 1}"#));
    }

    #[test]
    fn nested_parts_follow_and_quantisation_does_not() {
        let text = |name: &str| {
            format!(
                r#"{{"dtype": "{name}", "text_config": {{"dtype": "{name}"}}, "audio_config": {{"k": 1}}, "quantization_config": {{"dtype": "int4"}}}}"#
            )
        };
        assert_eq!(config(&text("float32")).with_dtype(Dtype::BF16), config(&text("bfloat16")));
    }

    #[test]
    fn unknown_keys_keep_their_order_and_their_values() {
        let text = "{\n  \"zeta\": 0.00001,\n  \"theta\": 500000.0,\n  \"exact\": 0.10583005244258363,\n  \"alpha\": {\n    \"y\": [],\n    \"b\": \"é\"\n  },\n  \"m\": null\n}\n";
        assert_eq!(config(text).to_json(), text);
    }

    #[test]
    fn text_that_is_no_object_is_damaged() {
        for text in ["", "[]", "3", "{", "{\"a\": NaN}", &"[".repeat(100_000)] {
            let error = Config::parse(text, Path::new("m/config.json")).unwrap_err();
            assert!(
                matches!(&error, Error::Damaged { file, .. } if file == Path::new("m/config.json")),
                "{error}"
            );
        }
    }
}
