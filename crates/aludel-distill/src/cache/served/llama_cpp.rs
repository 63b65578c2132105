//! Asks llama.cpp's server by `/completion` with `n_probs`: of the one token that would come next.
//!
//! In: a prompt as token ids. Out: a request, and of its answer the alternatives of the next token. Its `/v1/completions` has no
//! log-probabilities of a prompt's tokens, so a piece takes as many requests as it has rows; the server keeps what it computed of the
//! prompt before, of which each next one is longer by a token. An answer has `completion_probabilities[0].top_logprobs`, a list of
//! `{id, token, logprob}`: a softmax of the plain logits, whatever the sampling, for a temperature below 0.

use serde::Deserialize;
use serde_json::{Value, json};

use super::alternatives::Alternative;

/// After the address of the server.
pub(super) const PATH: &str = "/completion";

pub(super) fn request(prompt: &[u32], k: u32) -> Value {
    json!({
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
