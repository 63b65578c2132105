//! Reads `teacher:`: a model that is here, a cache of what one said, or one that is served elsewhere.
//!
//! In: the fields of a run. Out: at most one of the three. A served teacher is named by its address and never by a password: what a run
//! file holds goes into records, so the key is the value of a variable that the file names.

use std::path::PathBuf;

use aludel_document::{Cursor, Key, Problem};
use serde::Serialize;

use super::fields::Fields;

/// What a teacher said before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TeacherCache {
    /// The folder of the cache.
    pub path: PathBuf,
    /// What becomes of the probability that its columns leave.
    pub tail: TailRule,
    /// The teacher that it has to be of; not loaded.
    pub model: Option<PathBuf>,
    /// The folder of the tokenizer that its rows are in, where the student has another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
}

/// What becomes of the probability that a cache's columns leave.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TailRule {
    /// One more outcome, for teacher and student.
    #[default]
    Tail,
    /// It is shared among the columns.
    Renormalize,
    /// Nothing.
    Ignore,
}

/// A teacher that answers elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServedTeacher {
    /// Where, as in `http://host:8000/v1`; without a password and without a slash at its end.
    pub url: String,
    /// The name that the model is served by.
    pub model: String,
    /// How it is asked.
    pub api: Protocol,
    /// The variable of the environment that holds the key.
    pub api_key_env: Option<String>,
    /// Requests at once.
    pub concurrency: usize,
    /// How often a request that failed is made again.
    pub retries: u32,
    /// Seconds that a request may take.
    pub timeout: u64,
    /// A folder with the teacher's tokenizer, to hold the student's against, or to ask it by where the student has another.
    pub tokenizer: Option<PathBuf>,
}

/// How a served teacher is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// `/v1/completions` with `prompt_logprobs`.
    #[default]
    Vllm,
    /// `/generate` with `input_top_logprobs`.
    Sglang,
    /// `/completion` with `n_probs`, once for every token.
    LlamaCpp,
}

/// What `teacher:` names.
#[derive(Default)]
pub(super) struct Teacher {
    pub(super) live: Option<PathBuf>,
    pub(super) cache: Option<TeacherCache>,
    pub(super) served: Option<ServedTeacher>,
}

pub(super) const CACHE: &[Key] =
    &[Key::read("cache"), Key::read("tail"), Key::read("model"), Key::read("tokenizer")];
pub(super) const SERVED: &[Key] = &[
    Key::read("url"),
    Key::read("model"),
    Key::read("api"),
    Key::read("api_key_env"),
    Key::read("concurrency"),
    Key::read("retries"),
    Key::read("timeout"),
    Key::read("tokenizer"),
];

/// Requests at once, at the most.
const MOST_REQUESTS: u64 = 1024;

pub(super) fn read(fields: &mut Fields<'_, '_>) -> Teacher {
    let Some(cursor) = fields.cursor.field("teacher").filter(|cursor| cursor.node.is_mapping()) else {
        return Teacher { live: fields.path("teacher"), ..Teacher::default() };
    };
    let hint = "a teacher that is here is written as text: `teacher: path/of/the/model`";
    let is_served = cursor.field("url").is_some();
    let keys = if is_served { SERVED } else { CACHE };
    let Some(fields) = Fields::open(cursor, keys, hint, fields.problems) else { return Teacher::default() };
    if is_served {
        Teacher { served: Some(served(fields)), ..Teacher::default() }
    } else {
        Teacher { cache: Some(cache(fields)), ..Teacher::default() }
    }
}

fn cache(mut fields: Fields<'_, '_>) -> TeacherCache {
    let words =
        [("tail", TailRule::Tail), ("renormalize", TailRule::Renormalize), ("ignore", TailRule::Ignore)];
    let hint = "name the folder that `aludel cache capture` wrote, or the `url` of a served teacher";
    TeacherCache {
        tail: fields.choice("tail", &words, TailRule::Tail),
        path: fields.required_path("cache", hint),
        model: fields.path("model"),
        tokenizer: fields.path("tokenizer"),
    }
}

fn served(mut fields: Fields<'_, '_>) -> ServedTeacher {
    if !fields.has("model") {
        let hint = "give the name that the server has for it, as `URL/models` lists it";
        fields.report("model", "a served teacher has no `model`", hint);
    }
    let protocols =
        [("vllm", Protocol::Vllm), ("sglang", Protocol::Sglang), ("llama_cpp", Protocol::LlamaCpp)];
    let concurrency = fields.count("concurrency", 8, 1);
    if concurrency > MOST_REQUESTS {
        let hint = "a server computes some dozens together; the others wait";
        fields.report("concurrency", format!("more than {MOST_REQUESTS} requests at once"), hint);
    }
    ServedTeacher {
        url: fields.read("url", address).unwrap_or_default(),
        model: fields.read("model", name).unwrap_or_default(),
        api: fields.choice("api", &protocols, Protocol::Vllm),
        api_key_env: fields.read("api_key_env", variable),
        concurrency: concurrency.min(MOST_REQUESTS) as usize,
        retries: fields.count("retries", 8, 0).min(1000) as u32,
        timeout: fields.count("timeout", 600, 1).min(86_400),
        tokenizer: fields.path("tokenizer"),
    }
}

fn name(value: &Cursor<'_>) -> Result<String, Problem> {
    let text = value.text("the name of a model")?.trim();
    if text.is_empty() { Err(value.problem("the name is empty")) } else { Ok(text.to_owned()) }
}

/// An address that may be shown and recorded.
fn address(value: &Cursor<'_>) -> Result<String, Problem> {
    let expected = "an address such as `http://host:8000/v1`";
    let text = value.text(expected)?.trim();
    if text.contains('@') {
        let hint = "put the key into a variable and name that: `api_key_env: TEACHER_KEY`";
        return Err(value
            .problem("the address holds a name or a password, which records would show")
            .with_hint(hint));
    }
    if text.contains(['?', '#']) {
        return Err(value.problem("the address has a `?` or `#`").with_hint("leave out what follows it"));
    }
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")).unwrap_or_default();
    let is_odd = rest.contains(|c: char| c.is_whitespace() || c.is_control());
    if rest.is_empty() || rest.starts_with('/') || is_odd {
        return Err(value.mismatch(expected));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn variable(value: &Cursor<'_>) -> Result<String, Problem> {
    let expected = "the name of a variable, as in `api_key_env: TEACHER_KEY`";
    let text = value.text(expected)?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if text.is_empty() || !text.chars().all(is_plain) {
        // Whoever wrote the key itself here does not want to see it again.
        return Err(value.problem("this is no name of a variable").with_hint(
            "name the variable that holds the key, as in `api_key_env: TEACHER_KEY`; the key itself does not belong here",
        ));
    }
    Ok(text.to_owned())
}
