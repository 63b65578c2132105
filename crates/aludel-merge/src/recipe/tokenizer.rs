//! Reads what a recipe asks of the output's tokenizer: `tokenizer_source`, or `tokenizer` with more to say.
//!
//! In: the nodes of the two keys, which exclude each other. Out: a [`Tokenizer`]. Which tokens models have is not known here.

use aludel_document::{Cursor, Located, Scalar, quoted};

use super::keys::{TOKEN, TOKEN_ROW, TOKENIZER};
use super::read::{located, optional, read_truth};
use super::reference::ModelReference;
use crate::problem::{Problem, Problems};

/// The output's tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    /// Where it comes from.
    pub source: Located<TokenizerSource>,
    /// Tokens that it has in any case, with the rows that embeddings have for them.
    pub tokens: Vec<Token>,
    /// The number of rows is made a multiple of this.
    pub pad_to_multiple_of: Option<u32>,
}

/// Where the output's tokenizer comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizerSource {
    /// The base model.
    Base,
    /// All models: every token that any of them has.
    Union,
    /// This model.
    Model(ModelReference),
}

/// A token that the recipe names.
#[derive(Debug, Clone)]
pub struct Token {
    /// Its text, as vocabularies have it.
    pub text: Located<String>,
    /// The row that models have for it.
    pub row: Located<TokenRow>,
    /// Whether also those models take that row that have one of their own.
    pub force: bool,
}

/// A row of an embedding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenRow {
    /// Zeros.
    Zero,
    /// The row that a model has for a token: the same one, where none is named.
    Of {
        /// The model.
        model: ModelReference,
        /// Its token.
        token: Option<TokenName>,
    },
}

/// How a recipe names a token of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenName {
    /// By its text.
    Text(String),
    /// By its number.
    Id(u32),
}

impl Tokenizer {
    /// Reads the keys of a recipe; `None` where it has neither, or, with problems, what cannot be read.
    pub(super) fn read(root: &Cursor<'_>, problems: &mut Problems) -> Option<Self> {
        let source = optional(root, "tokenizer_source", problems, located(TokenizerSource::read));
        let Some(whole) = root.field("tokenizer") else {
            return source.map(|source| Self { source, tokens: Vec::new(), pad_to_multiple_of: None });
        };
        if source.is_some() {
            let problem = whole.problem("`tokenizer` and `tokenizer_source` exclude each other");
            problems.push(problem.with_hint("move the source into `tokenizer:` as its `source`"));
        }
        if !whole.node.is_mapping() {
            let hint = "write a source alone as `tokenizer_source`";
            problems.push(whole.mismatch("a mapping with `source`, `tokens` or both").with_hint(hint));
            return None;
        }
        whole.check_keys(TOKENIZER, "", problems);
        let source = optional(&whole, "source", problems, located(TokenizerSource::read));
        let tokens = whole.field("tokens").and_then(|tokens| problems.take(tokens.entries()));
        let tokens = tokens.unwrap_or_default().into_iter();
        Some(Self {
            source: source.unwrap_or_else(|| whole.locate(TokenizerSource::Union)),
            tokens: tokens.filter_map(|(text, _, token)| Token::read(text, &token, problems)).collect(),
            pad_to_multiple_of: optional(&whole, "pad_to_multiple_of", problems, read_multiple),
        })
    }
}

impl TokenizerSource {
    fn read(cursor: &Cursor<'_>) -> Result<Self, Problem> {
        match ModelReference::read(cursor)? {
            reference if reference.text() == "base" => Ok(Self::Base),
            reference if reference.text() == "union" => Ok(Self::Union),
            reference => Ok(Self::Model(reference)),
        }
    }
}

impl Token {
    fn read(text: &str, cursor: &Cursor<'_>, problems: &mut Problems) -> Option<Self> {
        if text.is_empty() {
            problems.push(cursor.problem("a token has no text"));
        }
        if !cursor.node.is_mapping() {
            let hint = "as in `{source: path/of/a/model}`";
            problems.push(cursor.mismatch("a mapping with `source`").with_hint(hint));
            return None;
        }
        cursor.check_keys(TOKEN, "", problems);
        let force = optional(cursor, "force", problems, read_truth).unwrap_or(false);
        let Some(source) = cursor.field("source") else {
            let hint = "give one of the models, `{kind: model_token, model: ..., token: ...}` or `zero`";
            problems.push(cursor.problem(format!("token {} has no `source`", quoted(text))).with_hint(hint));
            return None;
        };
        let row = TokenRow::read(&source, problems)?;
        Some(Self { text: cursor.locate(text.to_owned()), row: source.locate(row), force })
    }
}

impl TokenRow {
    fn read(cursor: &Cursor<'_>, problems: &mut Problems) -> Option<Self> {
        let is_row = ["kind", "token", "token_id"].iter().any(|key| cursor.field(key).is_some());
        if !is_row {
            let model = problems.take(ModelReference::read(cursor))?;
            let is_zero = model.text() == "zero";
            return Some(if is_zero { Self::Zero } else { Self::Of { model, token: None } });
        }
        cursor.check_keys(TOKEN_ROW, "", problems);
        let kind = cursor.field("kind");
        let hint = "the kinds are `model_token` and `zero`";
        match kind.as_ref().map(|kind| kind.text("a kind")) {
            Some(Ok("zero")) => Some(Self::Zero),
            Some(Ok("model_token")) => Self::read_token(cursor, problems),
            Some(Ok(other)) => {
                let message = format!("{} is no kind of row", quoted(other));
                problems.push(kind.as_ref().unwrap_or(cursor).problem(message).with_hint(hint));
                None
            }
            Some(Err(problem)) => {
                problems.push(problem.with_hint(hint));
                None
            }
            None => {
                problems.push(cursor.problem("`kind` is missing").with_hint(hint));
                None
            }
        }
    }

    fn read_token(cursor: &Cursor<'_>, problems: &mut Problems) -> Option<Self> {
        let model = optional(cursor, "model", problems, ModelReference::read);
        if cursor.field("model").is_none() {
            problems.push(cursor.problem("`model` is missing").with_hint("name one of the merge's models"));
        }
        let text = optional(cursor, "token", problems, |token| token.text("a token").map(str::to_owned));
        let id = optional(cursor, "token_id", problems, read_id);
        let token = match (text, id) {
            (Some(_), Some(_)) => {
                problems.push(cursor.problem("`token` and `token_id` exclude each other"));
                return None;
            }
            (Some(text), None) => TokenName::Text(text),
            (None, Some(id)) => TokenName::Id(id),
            (None, None) => {
                if cursor.field("token").is_none() && cursor.field("token_id").is_none() {
                    problems.push(
                        cursor
                            .problem("`token` is missing")
                            .with_hint("name a token of the model, by `token` or by `token_id`"),
                    );
                }
                return None;
            }
        };
        Some(Self::Of { model: model?, token: Some(token) })
    }
}

fn read_id(cursor: &Cursor<'_>) -> Result<u32, Problem> {
    read_whole(cursor, 0, u32::MAX, "the number of a token")
}

fn read_multiple(cursor: &Cursor<'_>) -> Result<u32, Problem> {
    read_whole(cursor, 1, LARGEST_MULTIPLE, &format!("a whole number from 1 to {LARGEST_MULTIPLE}"))
}

/// A whole number of these bounds.
pub(super) fn read_whole(cursor: &Cursor<'_>, least: u32, most: u32, expected: &str) -> Result<u32, Problem> {
    match cursor.scalar()? {
        Scalar::Number(number)
            if number.fract() == 0.0 && (f64::from(least)..=f64::from(most)).contains(&number) =>
        {
            Ok(number as u32)
        }
        _ => Err(cursor.mismatch(expected)),
    }
}

/// Far more than any hardware wants; it bounds the rows that are added.
const LARGEST_MULTIPLE: u32 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;

    fn read(keys: &str) -> Result<Option<Tokenizer>, String> {
        let text = format!("merge_method: linear\nmodels: [{{model: a}}]\n{keys}");
        Recipe::parse(&text).map(|recipe| recipe.tokenizer).map_err(|problems| problems.to_string())
    }

    fn model(text: &str) -> ModelReference {
        match read(&format!("tokenizer_source: {text}")).unwrap().unwrap().source.value {
            TokenizerSource::Model(model) => model,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_source_is_two_words_or_a_model() {
        let source = |keys: &str| read(keys).unwrap().map(|tokenizer| tokenizer.source.value);
        assert_eq!(source(""), None);
        assert_eq!(source("tokenizer:\n"), None);
        for (word, expected) in [
            ("base", TokenizerSource::Base),
            ("union", TokenizerSource::Union),
            ("a/b", TokenizerSource::Model(model("a/b"))),
        ] {
            assert_eq!(source(&format!("tokenizer_source: {word}")), Some(expected.clone()));
            assert_eq!(source(&format!("tokenizer: {{source: {word}}}")), Some(expected));
        }
        assert_eq!(source("tokenizer: {}"), Some(TokenizerSource::Union));
        assert_eq!(source("tokenizer: {pad_to_multiple_of: 64}"), Some(TokenizerSource::Union));
    }

    #[test]
    fn tokens_have_rows_of_every_kind() {
        let tokenizer = read(
            "tokenizer:\n  source: union\n  pad_to_multiple_of: 8\n  tokens:\n    <a>: {source: m/a}\n    '<b>': {source: {kind: zero}, force: true}\n    \
             <c>: {source: {kind: model_token, model: m/b, token: '</s>'}}\n    12: {source: {kind: model_token, model: m/b, token_id: 7}}\n    d: {source: zero}\n    e: {source: {model: {path: m/a}}}\n",
        )
        .unwrap()
        .unwrap();
        assert_eq!(tokenizer.pad_to_multiple_of, Some(8));
        let of = |name: &str, token| TokenRow::Of { model: model(name), token };
        let tokens: Vec<_> = tokenizer
            .tokens
            .into_iter()
            .map(|token| (token.text.value, token.row.value, token.force))
            .collect();
        assert_eq!(
            tokens,
            [
                ("<a>".to_owned(), of("m/a", None), false),
                ("<b>".to_owned(), TokenRow::Zero, true),
                ("<c>".to_owned(), of("m/b", Some(TokenName::Text("</s>".into()))), false),
                ("12".to_owned(), of("m/b", Some(TokenName::Id(7))), false),
                ("d".to_owned(), TokenRow::Zero, false),
                ("e".to_owned(), of("m/a", None), false),
            ]
        );
    }

    #[test]
    fn what_cannot_be_meant_is_refused_in_its_place() {
        for (keys, problem) in [
            (
                "tokenizer_source: base\ntokenizer: {source: union}",
                "4:12 tokenizer: `tokenizer` and `tokenizer_source` exclude each other (move the source into `tokenizer:` as its `source`)",
            ),
            (
                "tokenizer: union",
                "3:12 tokenizer: expected a mapping with `source`, `tokens` or both, found `union` (write a source alone as `tokenizer_source`)",
            ),
            (
                "tokenizer: {sauce: union}",
                "3:13 tokenizer.sauce: unknown key `sauce` (did you mean `source`?)",
            ),
            (
                "tokenizer: {pad_to_multiple_of: 0}",
                "3:33 tokenizer.pad_to_multiple_of: expected a whole number from 1 to 1048576, found `0`",
            ),
            (
                "tokenizer: {pad_to_multiple_of: 1e12}",
                "3:33 tokenizer.pad_to_multiple_of: expected a whole number from 1 to 1048576, found `1e12`",
            ),
            ("tokenizer: {tokens: [a]}", "3:21 tokenizer.tokens: expected a mapping, found a list"),
            (
                "tokenizer: {tokens: {x: a}}",
                "3:25 tokenizer.tokens.x: expected a mapping with `source`, found `a` (as in `{source: path/of/a/model}`)",
            ),
            (
                "tokenizer: {tokens: {x: {force: true}}}",
                "3:25 tokenizer.tokens.x: token `x` has no `source` (give one of the models, `{kind: model_token, model: ..., token: ...}` or `zero`)",
            ),
            (
                "tokenizer: {tokens: {x: {source: a, force: maybe}}}",
                "3:44 tokenizer.tokens.x.force: expected `true` or `false`, found `maybe`",
            ),
            (
                "tokenizer: {tokens: {x: {source: {kind: mean}}}}",
                "3:41 tokenizer.tokens.x.source.kind: `mean` is no kind of row (the kinds are `model_token` and `zero`)",
            ),
            (
                "tokenizer: {tokens: {x: {source: {model: a, token: y}}}}",
                "3:34 tokenizer.tokens.x.source: `kind` is missing (the kinds are `model_token` and `zero`)",
            ),
            (
                "tokenizer: {tokens: {x: {source: {kind: model_token, token: y}}}}",
                "3:34 tokenizer.tokens.x.source: `model` is missing (name one of the merge's models)",
            ),
            (
                "tokenizer: {tokens: {x: {source: {kind: model_token, model: a}}}}",
                "3:34 tokenizer.tokens.x.source: `token` is missing (name a token of the model, by `token` or by `token_id`)",
            ),
            (
                "tokenizer: {tokens: {x: {source: {kind: model_token, model: a, token: y, token_id: 1}}}}",
                "3:34 tokenizer.tokens.x.source: `token` and `token_id` exclude each other",
            ),
            (
                "tokenizer: {tokens: {x: {source: {kind: model_token, model: a, token_id: -1}}}}",
                "3:74 tokenizer.tokens.x.source.token_id: expected the number of a token, found `-1`",
            ),
        ] {
            assert_eq!(read(keys).unwrap_err(), problem, "{keys}");
        }
    }
}
