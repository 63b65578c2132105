//! Settles the tokens of the output: those of one model, or of all, and those that the recipe names.
//!
//! In: what the models know. Out: a [`Target`], whose ids depend on the recipe and the models' files alone. A model's tokens keep
//! its ids; those of other models come after them, model by model and in the order of their ids there, the tokens of
//! vocabularies proper before those that were added to them, as in mergekit.

use super::super::SideFiles;
use super::files::Texts;
use super::known::{AddedToken, Known};
use crate::recipe::Token;

/// The output's tokens.
#[derive(Debug)]
pub(in crate::plan) struct Target {
    pub known: Known,
    pub texts: Texts,
    /// Whether tokens of the model that it comes from were cut off, as that has no rows for them.
    is_cut: bool,
    /// Whether the files are another's than that model's.
    is_changed: bool,
}

/// The tokens of a model, and how many rows they may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listed<'a> {
    pub known: &'a Known,
    pub size: usize,
}

impl Target {
    /// The tokens of a model.
    ///
    /// # Errors
    /// What keeps tokens that have no row from being cut off.
    pub(super) fn of(texts: Texts, own: Listed<'_>) -> Result<Self, String> {
        if own.known.rows() <= own.size {
            let (known, is_changed) = (own.known.clone(), !own.known.is_complete);
            return Ok(Self { known, texts, is_cut: false, is_changed });
        }
        let texts = texts.cut(own.known, own.size)?;
        let known =
            Known::read(&texts.tokenizer, texts.config.as_ref()).map_err(|error| error.to_string())?;
        Ok(Self { known, texts, is_cut: true, is_changed: true })
    }

    /// Adds the tokens of other models.
    pub(super) fn unite(&mut self, others: &[Listed<'_>]) {
        let before = self.known.clone();
        let mut matched_first = before.matched_first();
        let mut matched: Vec<&AddedToken> = Vec::new();
        for Listed { known, size } in others {
            let with_row = known.added.iter().filter(|token| (token.id as usize) < *size);
            matched.extend(with_row.filter(|token| matched_first.insert(&token.content)));
        }
        for Listed { known, size } in others {
            let own = known.matched_first();
            for (token, _) in known.ids.iter().filter(|(_, id)| (**id as usize) < *size) {
                if !own.contains(token.as_str()) && !matched_first.contains(token.as_str()) {
                    self.add(token);
                }
            }
        }
        for token in matched {
            self.known.match_first(token.clone());
            self.is_changed = true;
        }
    }

    /// Adds the tokens that a recipe names.
    pub(super) fn add_named(&mut self, tokens: &[Token]) {
        tokens.iter().for_each(|token| self.add(&token.text.value));
    }

    /// Puts the tokenizer among the side files of the model that it comes from.
    ///
    /// # Errors
    /// What is wrong with that model's `tokenizer.json`.
    pub(in crate::plan) fn put(&self, files: &mut SideFiles) -> Result<(), serde_json::Error> {
        if self.is_changed { self.texts.put(&self.known, self.is_cut, files) } else { Ok(()) }
    }

    fn add(&mut self, token: &str) {
        if !self.known.ids.contains_key(token) {
            self.known.add(AddedToken::plain(token));
            self.is_changed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A tokenizer that the tokenizers library loads: words cut at blanks.
    fn texts(vocab: &Value, added: &Value, config: Option<Value>) -> Texts {
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
            "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "?"},
        });
        Texts { tokenizer: tokenizer.to_string(), config, special: None }
    }

    fn known(texts: &Texts) -> Known {
        Known::read(&texts.tokenizer, texts.config.as_ref()).unwrap()
    }

    fn added(id: u32, content: &str, special: bool) -> Value {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": !special, "special": special})
    }

    fn ids(target: &Target) -> Vec<(&str, u32)> {
        target.known.ids.iter().map(|(token, &id)| (token.as_str(), id)).collect()
    }

    fn target(texts: Texts, size: usize) -> Target {
        let known = known(&texts);
        Target::of(texts, Listed { known: &known, size }).unwrap()
    }

    #[test]
    fn united_tokens_come_after_those_of_the_first_in_the_order_of_their_models() {
        let first = texts(&json!({"?": 0, "b": 2, "a": 1}), &json!([added(0, "?", true)]), None);
        let second = texts(
            &json!({"?": 0, "z": 1, "a": 2, "y": 3}),
            &json!([added(0, "?", false), added(3, "y", false), added(4, "<e>", true)]),
            None,
        );
        let third = texts(&json!({"b": 0, "y": 1, "x": 2, "far": 9}), &json!([added(0, "b", false)]), None);
        let (second, third) = (known(&second), known(&third));
        let others = [Listed { known: &second, size: 5 }, Listed { known: &third, size: 3 }];
        let mut target = target(first, 3);
        target.unite(&others);
        assert_eq!(ids(&target), [("?", 0), ("a", 1), ("b", 2), ("z", 3), ("x", 4), ("y", 5), ("<e>", 6)]);
        let added: Vec<_> =
            target.known.added.iter().map(|token| (token.id, &*token.content, token.special)).collect();
        assert_eq!(
            added,
            [
                (0, "?", true),
                (2, "b", false),
                (3, "z", false),
                (4, "x", false),
                (5, "y", false),
                (6, "<e>", true)
            ]
        );
        assert!(target.is_changed && !target.is_cut);
    }

    #[test]
    fn what_only_the_config_names_is_a_token_too_and_what_has_no_row_is_none() {
        let config = json!({"bos_token": "a", "pad_token": {"content": "<pad>"}, "added_tokens_decoder": {"7": {"content": "<d>"}}, "additional_special_tokens": ["<s>"]});
        let whole = texts(&json!({"?": 0, "a": 1, "b": 2}), &json!([]), Some(config));
        let all = target(whole.clone(), 100);
        assert_eq!(ids(&all), [("?", 0), ("a", 1), ("b", 2), ("<d>", 3), ("<pad>", 4), ("<s>", 5)]);
        assert!(all.is_changed);
        let cut = target(whole.clone(), 4);
        assert_eq!(ids(&cut), [("?", 0), ("a", 1), ("b", 2), ("<d>", 3)]);
        assert_eq!(
            cut.texts.config.unwrap(),
            json!({"bos_token": "a", "added_tokens_decoder": {"7": {"content": "<d>"}}, "additional_special_tokens": []})
        );
        let cut = target(whole, 2);
        assert_eq!(ids(&cut), [("?", 0), ("a", 1)]);
    }

    #[test]
    fn merges_go_with_the_tokens_that_they_need() {
        let merges = json!(["a b", ["b", "c"], "ab c"]);
        let tokenizer = json!({"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5}, "merges": merges}});
        let texts = Texts { tokenizer: tokenizer.to_string(), config: None, special: None };
        let merges = |size: usize| {
            let whole: Value = serde_json::from_str(&target(texts.clone(), size).texts.tokenizer).unwrap();
            whole["model"]["merges"].clone()
        };
        assert_eq!(merges(6), merges_of(3));
        assert_eq!(merges(5), merges_of(2));
        assert_eq!(merges(4), merges_of(1));
        assert_eq!(merges(2), merges_of(0));
        fn merges_of(count: usize) -> Value {
            let all = [json!("a b"), json!(["b", "c"]), json!("ab c")];
            Value::Array(all[..count].to_vec())
        }
    }

    #[test]
    fn the_tokenizers_library_reads_what_is_written() {
        let first =
            texts(&json!({"?": 0, "b": 2, "a": 1}), &json!([added(0, "?", true)]), Some(json!({"k": 1})));
        let second = texts(&json!({"?": 0, "z": 1}), &json!([added(2, "<e>", true)]), None);
        let mut target = target(first, 3);
        target.unite(&[Listed { known: &known(&second), size: 3 }]);
        let ids: Vec<(String, u32)> =
            ids(&target).into_iter().map(|(token, id)| (token.to_owned(), id)).collect();
        let mut files = SideFiles::default();
        target.put(&mut files).unwrap();
        let text = &files.written.iter().find(|file| file.name.ends_with("tokenizer.json")).unwrap().text;
        let read = tokenizers::Tokenizer::from_bytes(text).unwrap();
        for (token, id) in &ids {
            assert_eq!(read.token_to_id(token), Some(*id), "{token}");
        }
        assert_eq!(read.get_vocab_size(true), ids.len());
        let encoded = read.encode("a<e> z c", false).unwrap();
        assert_eq!(encoded.get_tokens(), ["a", "<e>", "z", "?"]);
        let config =
            &files.written.iter().find(|file| file.name.ends_with("tokenizer_config.json")).unwrap().text;
        let config: Value = serde_json::from_str(config).unwrap();
        assert_eq!(
            (&config["k"], &config["added_tokens_decoder"]["4"]["content"]),
            (&json!(1), &json!("<e>"))
        );
    }
}
