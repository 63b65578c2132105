//! Asks a server with SGLang's `/generate`: `input_top_logprobs`, for all tokens of a prompt at once.
//!
//! In: a prompt as token ids. Out: a request, and of its answer the alternatives of each of the prompt's tokens. An answer has
//! `meta_info.input_top_logprobs`: for each token `null` or a list of `[logprob, id, text]`; the first token's is `null`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::alternatives::Alternative;

/// After the address of the server.
pub(super) const PATH: &str = "/generate";

pub(super) fn request(prompt: &[u32], k: u32) -> Value {
    json!({
        "input_ids": prompt,
        "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
        "return_logprob": true,
        "logprob_start_len": 0,
        "top_logprobs_num": k,
        "return_text_in_logprobs": true,
        "stream": false,
    })
}

/// Alternatives for each token of a prompt of so many.
pub(super) fn answer(bytes: &[u8], tokens: usize) -> Result<Vec<Option<Vec<Alternative>>>, String> {
    let answer: Answer = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let said = answer.meta_info.input_top_logprobs.ok_or("it has no `input_top_logprobs`")?;
    if said.len() != tokens {
        return Err(format!("it speaks of {} tokens where the prompt has {tokens}", said.len()));
    }
    let alternative = |Entry(log_p, id, text)| Alternative { id, log_p, text };
    Ok(said.into_iter().map(|said| said.map(|said| said.into_iter().map(alternative).collect())).collect())
}

#[derive(Deserialize)]
struct Answer {
    meta_info: Meta,
}

#[derive(Deserialize)]
struct Meta {
    #[serde(default)]
    input_top_logprobs: Option<Vec<Option<Vec<Entry>>>>,
}

/// Log-probability, id, text.
#[derive(Deserialize)]
struct Entry(f64, u32, Option<String>);
