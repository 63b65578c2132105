//! Knows a server: how it is asked, what it has to answer, and whether it is the one that the run means.
//!
//! In: what a run says of its served teacher. Out: rows of pieces. Before anything is written the server is probed with the beginning of
//! the data: whether it is there, lets us in, serves the model, has room for the sequences, says k tokens of a prompt, and means the
//! same tokens by the same ids. Each refusal has its remedy.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use aludel_cache::SparseRows;
use aludel_document::Problem;
use aludel_kernels::loss::IGNORED;
use aludel_model::Tokenizer;
use serde::Deserialize;

use super::alternatives::{Alternative, Shape};
use super::client::{Client, Fault};
use super::{llama_cpp, sglang, vllm};
use crate::data::Document;
use crate::error::Error;
use crate::run::{Protocol, Run, ServedTeacher};

/// A served teacher.
pub(crate) struct Endpoint {
    teacher: ServedTeacher,
    client: Client,
    shape: Shape,
    /// A token of plain text.
    plain: Option<u32>,
    /// The most requests at once that it is known to work on.
    slots: usize,
}

/// What is said of each token of a prompt.
type Said = [Option<Vec<Alternative>>];

impl Endpoint {
    /// A teacher that is asked for so many tokens of so many. Nothing is sent.
    pub(crate) fn open(
        teacher: &ServedTeacher,
        k: u32,
        vocabulary: u32,
        tokenizer: &Tokenizer,
    ) -> Result<Self, Error> {
        let key = teacher.api_key_env.as_deref().map(key).transpose()?;
        let client = Client::new(key, teacher.retries, Duration::from_secs(teacher.timeout));
        let plain = tokenizer.id("a");
        Ok(Self {
            teacher: teacher.clone(),
            client,
            shape: Shape { k, vocabulary },
            plain,
            slots: teacher.concurrency,
        })
    }

    /// Requests that it is to be sent at once.
    pub(super) fn at_once(&self) -> usize {
        self.slots
    }

    /// The rows of a piece that are learned.
    pub(super) fn rows(&self, document: &Document, stop: &AtomicBool) -> Result<SparseRows, Fault> {
        let prompt = prompt(document);
        let mut rows = SparseRows::default();
        if self.teacher.api == Protocol::LlamaCpp {
            for (at, next) in targets(document) {
                let row = self.one(&self.client, &prompt[..=at], stop, |said| {
                    let mut row = SparseRows::default();
                    self.shape.append(&mut row, said, next).map(|()| row)
                })?;
                rows.append(&row);
            }
            return Ok(rows);
        }
        self.all(&self.client, &prompt, stop, |said| {
            let mut rows = SparseRows::default();
            for (at, next) in targets(document) {
                // What is said of a token is what the model expects after the one before it.
                let said = said.get(at + 1).and_then(Option::as_ref);
                let said =
                    said.ok_or_else(|| format!("it says nothing of token {} of the prompt", at + 1))?;
                self.shape.append(&mut rows, said, next)?;
            }
            Ok(rows)
        })
    }

    /// The same, with its failure as an error.
    pub(crate) fn ask(&self, document: &Document, stop: &AtomicBool) -> Result<SparseRows, Error> {
        self.rows(document, stop).map_err(|fault| self.error(fault))
    }

    /// What `read` makes of what is said of every token of a prompt.
    fn all<T>(
        &self,
        client: &Client,
        prompt: &[u32],
        stop: &AtomicBool,
        read: impl Fn(&Said) -> Result<T, String>,
    ) -> Result<T, Fault> {
        let (url, k) = (self.teacher.url.as_str(), self.shape.k);
        let most = self.longest(prompt.len());
        if self.teacher.api == Protocol::Sglang {
            let body = sglang::request(prompt, k);
            let url = format!("{}{}", root(url), sglang::PATH);
            return client
                .ask(&url, Some(&body), most, stop, |bytes| read(&sglang::answer(bytes, prompt.len())?));
        }
        let body = vllm::request(&self.teacher.model, prompt, k);
        let url = format!("{url}{}", vllm::PATH);
        client.ask(&url, Some(&body), most, stop, |bytes| read(&vllm::answer(bytes, prompt.len())?))
    }

    /// What `read` makes of what is said of the token after a prompt.
    fn one<T>(
        &self,
        client: &Client,
        prompt: &[u32],
        stop: &AtomicBool,
        read: impl Fn(&[Alternative]) -> Result<T, String>,
    ) -> Result<T, Fault> {
        let body = llama_cpp::request(prompt, self.shape.k, self.plain);
        let url = format!("{}{}", root(&self.teacher.url), llama_cpp::PATH);
        client.ask(&url, Some(&body), self.longest(1), stop, |bytes| read(&llama_cpp::answer(bytes)?))
    }

    /// Bytes that no answer about so many tokens is longer than.
    fn longest(&self, tokens: usize) -> u64 {
        (1 << 20) + (tokens as u64 + 1) * (u64::from(self.shape.k) + 1) * LONGEST_ALTERNATIVE
    }

    /// Whether the server can be relied on for pieces such as this.
    pub(crate) fn probe(
        &mut self,
        document: &Document,
        run: &Run,
        tokenizer: &Tokenizer,
        stop: &AtomicBool,
    ) -> Result<(), Error> {
        let client = self.client.impatient();
        let refused = |fault| match fault {
            Fault::Stopped => Error::Interrupted,
            fault => self.problem(&fault).into(),
        };
        match client.ask(&self.models(), None, 16 << 20, stop, |bytes| {
            serde_json::from_slice::<Models>(bytes).map_err(|error| error.to_string())
        }) {
            Ok(models) => self.check_models(&models, run)?,
            // Not every server lists what it has.
            Err(Fault::Refused { status: 404 | 405 | 501, .. } | Fault::Wrong { .. }) => {}
            Err(fault) => return Err(refused(fault)),
        }
        let is_slow = self.teacher.api == Protocol::LlamaCpp;
        let slots = if is_slow { self.llama_cpp(&client, run, stop)? } else { self.slots };
        let length = document.ids.len().min(if is_slow { 4 } else { PROBED_TOKENS });
        let beginning = Document {
            ids: document.ids[..length].to_vec(),
            labels: prompt(document).into_iter().skip(1).chain([0]).take(length).collect(),
            ..Document::default()
        };
        let said = self.beginning(&client, &beginning, stop).map_err(refused)?;
        let (mut compared, mut rows) = (Compared::default(), SparseRows::default());
        for (said, (_, next)) in said.iter().zip(targets(&beginning)) {
            compared.add(said, tokenizer);
            let row = self.shape.append(&mut rows, said, next);
            row.map_err(|detail| refused(Fault::Wrong { detail }))?;
        }
        compared.check(&self.teacher)?;
        self.slots = slots;
        Ok(())
    }

    /// What is said of all tokens of a short piece but the first.
    fn beginning(
        &self,
        client: &Client,
        document: &Document,
        stop: &AtomicBool,
    ) -> Result<Vec<Vec<Alternative>>, Fault> {
        let prompt = prompt(document);
        if self.teacher.api == Protocol::LlamaCpp {
            let one = |(at, _)| self.one(client, &prompt[..=at], stop, |said| Ok(said.to_vec()));
            return targets(document).map(one).collect();
        }
        self.all(client, &prompt, stop, |said| {
            let said: Option<Vec<Vec<Alternative>>> = said.iter().skip(1).cloned().collect();
            said.ok_or_else(|| "it says nothing of a token of the prompt".to_owned())
        })
    }

    fn models(&self) -> String {
        match self.teacher.api {
            Protocol::Vllm => format!("{}/models", self.teacher.url),
            Protocol::Sglang | Protocol::LlamaCpp => format!("{}/v1/models", root(&self.teacher.url)),
        }
    }

    fn check_models(&self, models: &Models, run: &Run) -> Result<(), Error> {
        let ServedTeacher { url, model, .. } = &self.teacher;
        let Some(found) = models.data.iter().find(|found| found.id == *model) else {
            let names: Vec<&str> = models.data.iter().take(20).map(|found| found.id.as_str()).collect();
            let hint = if names.is_empty() {
                "it lists none; load the model first".to_owned()
            } else {
                format!("it serves {}", aludel_document::listed(names.into_iter()))
            };
            return Err(Problem::general(format!("{url} does not serve `{model}`")).with_hint(hint).into());
        };
        // llama.cpp's server says it elsewhere.
        let room = found.max_model_len.filter(|_| self.teacher.api != Protocol::LlamaCpp);
        self.check_room(room, run, |needed| format!("--max-model-len {needed}"))
    }

    /// What llama.cpp's server says of its room; how many requests it is to have at once.
    fn llama_cpp(&self, client: &Client, run: &Run, stop: &AtomicBool) -> Result<usize, Error> {
        let most = self.teacher.concurrency;
        let url = format!("{}{}", root(&self.teacher.url), llama_cpp::PROPERTIES);
        let found = match client.ask(&url, None, 16 << 20, stop, llama_cpp::Properties::of) {
            Ok(found) => found,
            Err(Fault::Stopped) => return Err(Error::Interrupted),
            // Others speak as it does, and not all of them say this.
            Err(_) => return Ok(most),
        };
        let slots = found.slots.unwrap_or(most).max(1);
        self.check_room(found.room(), run, |needed| format!("--ctx-size {}", needed * slots as u64))?;
        // More would take each other's prompts away, of which each next one is a continuation.
        Ok(most.min(slots))
    }

    /// `option` is what the server has to be started with for so many tokens.
    fn check_room(&self, room: Option<u64>, run: &Run, option: impl Fn(u64) -> String) -> Result<(), Error> {
        let (url, length) = (&self.teacher.url, run.data.sequence_length);
        // The last token's successor is part of the prompt, and one token is generated.
        let needed = length as u64 + 2;
        let Some(most) = room.filter(|most| *most < needed) else { return Ok(()) };
        let message = format!(
            "{url} has room for {most} tokens, and sequences of {length} with what follows them take {needed}"
        );
        let hint = format!(
            "start the server with `{}`, or write `sequence_length: {}` under `data:`",
            option(needed),
            most.saturating_sub(2).max(2)
        );
        Err(Problem::general(message).with_hint(hint).into())
    }

    /// A failure while pieces are asked for.
    pub(super) fn error(&self, fault: Fault) -> Error {
        if matches!(fault, Fault::Stopped) {
            return Error::Interrupted;
        }
        Error::Served { url: self.teacher.url.clone(), detail: self.words(&fault).0 }
    }

    /// A failure of the probe.
    fn problem(&self, fault: &Fault) -> Problem {
        let (message, hint) = self.words(fault);
        let problem = Problem::general(format!("{}: {message}", self.teacher.url));
        if hint.is_empty() { problem } else { problem.with_hint(hint) }
    }

    /// What is wrong, and what to do.
    fn words(&self, fault: &Fault) -> (String, String) {
        let k = self.shape.k;
        match fault {
            Fault::Refused { status: status @ (401 | 403), said } => {
                let hint = match &self.teacher.api_key_env {
                    Some(name) => format!("it does not take the key in {name}"),
                    None => "put its key into a variable and name that: `api_key_env: TEACHER_KEY`".to_owned(),
                };
                (format!("status {status}: {said}"), hint)
            }
            Fault::Refused { status, said } => {
                let lower = said.to_lowercase();
                let hint = if lower.contains("logprobs") && (lower.contains("max") || lower.contains("greater")) {
                    format!("start the server with `--max-logprobs {k}` or more, or capture with a smaller `--k`")
                } else if lower.contains("context") || lower.contains("max_model_len") || lower.contains("maximum") {
                    "start the server with a longer context, or lower `sequence_length`".to_owned()
                } else if *status == 404 {
                    "vLLM's `url` ends in `/v1`; name another kind of server by `api`".to_owned()
                } else {
                    String::new()
                };
                (format!("status {status}: {said}"), hint)
            }
            Fault::Unanswered { detail, times } => (
                format!("no answer after {times} attempts: {detail}"),
                "start the server, or put `url` right".to_owned(),
            ),
            Fault::Wrong { detail } if detail == vllm::ABSENT => (
                format!("its answer cannot be used: {detail}"),
                "of servers with this API vLLM alone says what it expects at each token of a prompt; for others write `api: sglang` or \
                 `api: llama_cpp`"
                    .to_owned(),
            ),
            Fault::Wrong { detail } => (format!("its answer cannot be used: {detail}"), String::new()),
            Fault::Stopped => ("it was asked to stop".to_owned(), String::new()),
        }
    }
}

/// The tokens of a piece, and the one after the last: what is expected there is learned too.
fn prompt(document: &Document) -> Vec<u32> {
    let after = document.labels.last().copied().filter(|label| *label != IGNORED);
    document.ids.iter().copied().chain(after).collect()
}

/// The places that are learned, each with the token that follows.
fn targets(document: &Document) -> impl Iterator<Item = (usize, u32)> + '_ {
    let labels = document.labels.iter().copied().enumerate();
    labels.filter(|(_, label)| *label != IGNORED)
}

/// The address of a server without that of its API.
fn root(url: &str) -> &str {
    url.strip_suffix("/v1").unwrap_or(url)
}

/// The key in a variable.
fn key(name: &str) -> Result<String, Error> {
    let problem = |what: &str| {
        Problem::general(format!("the variable {name}, which `api_key_env` names, {what}"))
            .with_hint(format!("put the server's key into {name}, or remove `api_key_env`"))
    };
    let Ok(key) = std::env::var(name) else { return Err(problem("is not set").into()) };
    let key = key.trim();
    if key.is_empty() {
        return Err(problem("is empty").into());
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(problem("holds characters that no key has").into());
    }
    Ok(key.to_owned())
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
    #[serde(default)]
    max_model_len: Option<u64>,
}

/// Tokens in a server's words beside those of the tokenizer.
#[derive(Default)]
struct Compared {
    alike: usize,
    different: usize,
    example: Option<(u32, String, String)>,
}

impl Compared {
    fn add(&mut self, said: &[Alternative], tokenizer: &Tokenizer) {
        for Alternative { id, text, .. } in said {
            let (Some(text), Ok(own)) = (text, tokenizer.decode(&[*id], true)) else { continue };
            // Pieces of characters are shown as this one, and spaces are dropped by some.
            if text.contains('\u{fffd}') || own.contains('\u{fffd}') || tokenizer.token(*id).is_none() {
                continue;
            }
            let bare = |text: &str| text.replace(['\u{2581}', '\u{120}'], " ").trim().to_owned();
            let (text, own) = (bare(text), bare(&own));
            if text == own || text.is_empty() || own.is_empty() {
                self.alike += 1;
            } else {
                self.different += 1;
                self.example.get_or_insert((*id, text, own));
            }
        }
    }

    /// Tokenizers of one family may differ in a few added tokens; others differ nearly everywhere.
    fn check(self, teacher: &ServedTeacher) -> Result<(), Error> {
        let Some((id, theirs, ours)) = self.example.filter(|_| self.different > self.alike / 4) else {
            return Ok(());
        };
        let message = format!(
            "{} means other tokens by the same ids: {id} is {theirs:?} there and {ours:?} here",
            teacher.url
        );
        Err(Problem::general(message)
            .with_hint(
                "compare sorted probabilities (`loss: uld`, with the teacher's `tokenizer:`), or take models of one family",
            )
            .into())
    }
}

/// Tokens of the beginning of the data that a server is probed with.
const PROBED_TOKENS: usize = 32;

/// Bytes that an alternative takes in an answer, at the most: the longest tokens are some hundred characters.
const LONGEST_ALTERNATIVE: u64 = 512;
