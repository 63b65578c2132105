//! Asks llama.cpp's server by `/completion` with `n_probs`: of the one token that would come next.
//!
//! In: a prompt as token ids. Out: a request, and of its answer the alternatives of the next token. Its `/v1/completions` has no
//! log-probabilities of a prompt's tokens, so a piece takes as many requests as it has rows; the server keeps what it computed of the
//! prompt before, of which each next one is longer by a token. An answer has `completion_probabilities[0].top_logprobs`, a list of
//! `{id, token, logprob}`: a softmax of the plain logits, whatever the sampling, for a temperature below 0.
//!
//! A token that is a part of a character is held back until the next completes it, and its probabilities with it, so that an answer of one
//! token has none. Therefore a token of plain text is made the next one, by a bias that the probabilities do not have.

use serde::Deserialize;
use serde_json::{Value, json};

use super::alternatives::Alternative;

/// After the address of the server.
pub(super) const PATH: &str = "/completion";

/// Where it says what it has room for.
pub(super) const PROPERTIES: &str = "/props";

/// More than any two logits are apart.
const BIAS: f32 = 1e4;

/// `plain` is a token of plain text, if there is one.
pub(super) fn request(prompt: &[u32], k: u32, plain: Option<u32>) -> Value {
    let bias: Vec<(u32, f32)> = plain.map(|token| (token, BIAS)).into_iter().collect();
    json!({
        "logit_bias": bias,
        "prompt": prompt,
        "n_predict": 1,
        "n_probs": k,
        "temperature": -1.0,
        "post_sampling_probs": false,
        "cache_prompt": true,
        "stream": false,
    })
}

/// Alternatives for the token after the prompt.
pub(super) fn answer(bytes: &[u8]) -> Result<Vec<Alternative>, String> {
    let answer: Answer = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if answer.truncated {
        return Err("it cut the prompt: its context is too short".to_owned());
    }
    let said = answer.completion_probabilities.into_iter().next();
    let said = said.ok_or("it has no `completion_probabilities`")?.top_logprobs;
    Ok(said
        .into_iter()
        .map(|Entry { id, logprob, token }| Alternative { id, log_p: logprob, text: token })
        .collect())
}

/// What the server has room for.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Properties {
    /// Requests that it works on at once, each with a prompt of its own that it keeps.
    #[serde(rename = "total_slots")]
    pub(super) slots: Option<usize>,
    #[serde(default, rename = "default_generation_settings")]
    settings: Settings,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Settings {
    #[serde(default)]
    n_ctx: Option<u64>,
}

impl Properties {
    pub(super) fn of(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }

    /// Tokens of a prompt and what is generated, of each request.
    pub(super) fn room(self) -> Option<u64> {
        self.settings.n_ctx
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    truncated: bool,
    #[serde(default)]
    completion_probabilities: Vec<Generated>,
}

#[derive(Deserialize)]
struct Generated {
    #[serde(default)]
    top_logprobs: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    id: u32,
    logprob: f64,
    #[serde(default)]
    token: Option<String>,
}
