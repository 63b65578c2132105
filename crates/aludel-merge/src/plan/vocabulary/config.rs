//! Makes a config true to the output's tokens.
//!
//! In: the config of the model that gives it. Out: the same with the number of rows, and with the ids of tokens with a role of
//! the model whose tokenizer is taken. Other keys are left alone.

use aludel_checkpoint::Config;
use serde_json::{Map, Value};

const SIZE: &str = "vocab_size";
const TEXT: &str = "text_config";

/// The config with so many rows. `donor` is the config of the model whose tokenizer it is, where that is another one.
///
/// The number goes where transformers has it: into the text part's config, whether it stood there or was left to the default of its kind, else to
/// the top. One at the top beside a text part is kept true as well.
pub(in crate::plan) fn with_vocabulary(config: &Config, rows: usize, donor: Option<&Config>) -> Config {
    let mut object = config.object().clone();
    let donor = donor.map(Config::object);
    match object.get_mut(TEXT).and_then(Value::as_object_mut) {
        Some(text) => {
            text.insert(SIZE.to_owned(), rows.into());
            if let Some(donor) = donor {
                take_ids(text, donor.get(TEXT).and_then(Value::as_object).unwrap_or(donor));
            }
            if let Some(size) = object.get_mut(SIZE) {
                *size = rows.into();
            }
        }
        None => {
            object.insert(SIZE.to_owned(), rows.into());
        }
    }
    if let Some(donor) = donor {
        take_ids(&mut object, donor);
    }
    Config::from_object(object)
}

fn take_ids(object: &mut Map<String, Value>, donor: &Map<String, Value>) {
    let is_id = |key: &str| key.ends_with("_token_id");
    object.retain(|key, _| !is_id(key) || donor.contains_key(key));
    for (key, id) in donor.iter().filter(|(key, _)| is_id(key)) {
        object.insert(key.clone(), id.clone());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(value: Value) -> Config {
        let Value::Object(object) = value else { panic!("no object") };
        Config::from_object(object)
    }

    #[test]
    fn the_number_of_rows_goes_where_the_config_has_it() {
        let with = |value: Value| Value::Object(with_vocabulary(&config(value), 7, None).object().clone());
        assert_eq!(
            with(json!({"vocab_size": 3, "eos_token_id": 2})),
            json!({"vocab_size": 7, "eos_token_id": 2})
        );
        assert_eq!(with(json!({"a": 1})), json!({"a": 1, "vocab_size": 7}));
        assert_eq!(
            with(json!({"text_config": {"vocab_size": 3}})),
            json!({"text_config": {"vocab_size": 7}})
        );
        assert_eq!(with(json!({"text_config": {"a": 1}})), json!({"text_config": {"a": 1, "vocab_size": 7}}));
        assert_eq!(
            with(json!({"vocab_size": 3, "text_config": {"vocab_size": 3}})),
            json!({"vocab_size": 7, "text_config": {"vocab_size": 7}})
        );
    }

    /// What transformers writes of a model whose embedding has been resized.
    #[test]
    fn the_number_of_rows_is_where_transformers_writes_it() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/golden/vocabulary/configs.json");
        let pairs: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for pair in pairs.as_array().unwrap() {
            let resized = with_vocabulary(&config(pair["config"].clone()), 96, None);
            let expected = &pair["resized"];
            let is_nested = pair["config"].get(TEXT).is_some();
            assert_eq!(
                resized.object().get(TEXT).map(|text| &text[SIZE]),
                is_nested.then_some(&expected[TEXT])
            );
            // One that stood at the top is kept true.
            if !is_nested {
                assert_eq!(resized.value(SIZE), Some(&expected[SIZE]));
            }
        }
        assert_eq!(pairs.as_array().unwrap().len(), 6);
    }

    #[test]
    fn ids_of_roles_are_those_of_the_tokenizers_model() {
        let own = config(json!({"vocab_size": 3, "bos_token_id": 0, "eos_token_id": 1, "b": 2}));
        let donor = config(json!({"vocab_size": 9, "eos_token_id": [4, 5], "pad_token_id": 6}));
        assert_eq!(
            *with_vocabulary(&own, 9, Some(&donor)).object(),
            *config(json!({"vocab_size": 9, "eos_token_id": [4, 5], "b": 2, "pad_token_id": 6})).object()
        );
    }
}
