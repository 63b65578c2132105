//! Asks a server with vLLM's extension of `/v1/completions`: `prompt_logprobs`, for all tokens of a prompt at once.
//!
//! In: a prompt as token ids. Out: a request, and of its answer the alternatives of each of the prompt's tokens. An answer has
//! `choices[0].prompt_logprobs`: for each token `null` or an object from ids (as text) to `{logprob, rank, decoded_token}`, with the
//! token itself beside the k likeliest; the first token's is `null`.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Value, json};

use super::alternatives::Alternative;

/// After the address of the API.
pub(super) const PATH: &str = "/completions";

/// One token is generated, because older versions do not take 0, and thrown away.
pub(super) fn request(model: &str, prompt: &[u32], k: u32) -> Value {
    json!({
        "model": model,
        "prompt": prompt,
        "max_tokens": 1,
        "temperature": 1.0,
        "top_p": 1.0,
        "n": 1,
        "stream": false,
        "add_special_tokens": false,
        "prompt_logprobs": k,
    })
}

/// Alternatives for each token of a prompt of so many.
pub(super) fn answer(bytes: &[u8], tokens: usize) -> Result<Vec<Option<Vec<Alternative>>>, String> {
    let answer: Answer = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let [Choice { prompt_logprobs }] = answer.choices.as_slice() else {
        return Err(format!("it has {} choices, not one", answer.choices.len()));
    };
    if prompt_logprobs.is_none() {
        return Err(ABSENT.to_owned());
    }
    let said =
        answer.choices.into_iter().next().and_then(|choice| choice.prompt_logprobs).unwrap_or_default();
    if said.len() != tokens {
        return Err(format!("it speaks of {} tokens where the prompt has {tokens}", said.len()));
    }
    Ok(said.into_iter().map(|said| said.map(|Alternatives(said)| said)).collect())
}

/// Why an answer of another kind of server cannot be used.
pub(super) const ABSENT: &str = "it has no `prompt_logprobs`";

#[derive(Deserialize)]
struct Answer {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    prompt_logprobs: Option<Vec<Option<Alternatives>>>,
}

/// The alternatives of a token.
struct Alternatives(Vec<Alternative>);

#[derive(Deserialize)]
struct Entry {
    logprob: f64,
    #[serde(default)]
    decoded_token: Option<String>,
    #[serde(default, rename = "rank")]
    _rank: IgnoredAny,
}

impl<'de> Deserialize<'de> for Alternatives {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ById;

        impl<'de> Visitor<'de> for ById {
            type Value = Alternatives;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object from token ids to log-probabilities")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut said = Vec::new();
                while let Some((id, entry)) = map.next_entry::<String, Entry>()? {
                    let id = id.parse().map_err(|_| de::Error::custom("a token's id is no number"))?;
                    said.push(Alternative { id, log_p: entry.logprob, text: entry.decoded_token });
                }
                Ok(Alternatives(said))
            }
        }

        deserializer.deserialize_map(ById)
    }
}
