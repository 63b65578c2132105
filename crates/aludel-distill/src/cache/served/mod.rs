//! Asks a teacher that is served elsewhere what it says of pieces, many at a time.
//!
//! In: pieces in order. Out: for each its rows of likeliest tokens, in the same order, however the answers come. What a server answers is
//! checked as what a file holds is: any bytes at all lead to rows or to a reason. Only temperature 1 can be captured: of other
//! temperatures a server's log-probabilities say what the k tokens have, and not what the others have.
//!
//! Reading order: `alternatives` (what is said of one token, and the row that it becomes), `vllm`, `sglang` and `llama_cpp` (requests and
//! answers), `client` (one request until it is answered), `endpoint` (a server, probed before it is relied on), `pool` (many requests).

mod alternatives;
mod client;
mod endpoint;
mod llama_cpp;
mod pool;
mod sglang;
mod vllm;

use aludel_cache::SparseRows;
use aludel_checkpoint::Config;
use aludel_document::Problem;
use aludel_model::Tokenizer;

use super::capture::Wanted;
use crate::error::Error;
use crate::prepare;
use crate::run::Run;

pub(super) use endpoint::Endpoint;
pub(super) use pool::ServedRows;

/// A served teacher's rows have one temperature.
pub(super) const TEMPERATURES: usize = 1;

/// How many tokens are asked for, where that is what is wanted of a served teacher.
pub(super) fn tokens_of(wanted: Wanted, temperatures: &[f32]) -> Result<u32, Error> {
    let Wanted::TopK { k } = wanted else {
        return Err(Problem::general("a served teacher says the likeliest tokens, and no others")
            .with_hint("capture with `--mode top_k`, or name a model folder as the teacher")
            .into());
    };
    if k == 0 {
        return Err(Problem::general("k is 0").with_hint("give a k from 1 to the vocabulary").into());
    }
    if temperatures != [1.0] {
        let listed: Vec<String> = temperatures.iter().map(ToString::to_string).collect();
        let message = format!(
            "rows are wanted at temperatures {}, and a served teacher's can be had at 1 alone: of another, its answers do not say what \
             the tokens beyond the k likeliest have together",
            listed.join(", ")
        );
        return Err(Problem::general(message)
            .with_hint("give every term `temperature: 1`, or name a model folder as the teacher")
            .into());
    }
    Ok(k)
}

/// How many columns the teacher is taken to have: the tokens of the tokenizer, or the columns of a model that one of the run's tokenizers
/// lies beside. What a larger sibling has beyond them is padding.
pub(super) fn vocabulary(run: &Run, tokenizer: &Tokenizer) -> Result<u32, Error> {
    let mut columns = tokenizer.vocabulary();
    for folder in prepare::teachers_paths(run) {
        let config = folder.join("config.json");
        if config.is_file() {
            columns = columns.max(
                Config::read(&config).map_err(|e| Error::from(e).into_problem())?.vocabulary().unwrap_or(0),
            );
        }
    }
    Ok(u32::try_from(columns).unwrap_or(u32::MAX))
}

/// The rows that bytes make as the answer of a server of any kind about so many tokens, for those who try readers without a server.
#[doc(hidden)]
pub fn read_answer(bytes: &[u8], tokens: usize, k: u32, vocabulary: u32) -> SparseRows {
    let shape = alternatives::Shape { k, vocabulary };
    let of_all = [vllm::answer(bytes, tokens), sglang::answer(bytes, tokens)];
    let of_one = llama_cpp::answer(bytes).map(|said| vec![Some(said)]);
    let mut rows = SparseRows::default();
    for said in of_all.into_iter().chain([of_one]).flatten().flatten().flatten() {
        // What is no row leaves the rows as they were.
        let _ = shape.append(&mut rows, &said, 1);
    }
    let _ = llama_cpp::Properties::of(bytes).map(llama_cpp::Properties::room);
    rows
}
