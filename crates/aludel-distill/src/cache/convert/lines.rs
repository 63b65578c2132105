//! Reads rows of token ids with log-probabilities from JSON lines.
//!
//! In: a file. Out: one row after another: ids of the tokens, and for each position ids and values. A line that is longer than any such row
//! is refused before it is held. What the numbers mean is not known here.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::columns::problem;
use super::source::{IDS, TOKENS, VALUES, missing};
use crate::error::Error;

/// Bytes of a line, at most.
const LONGEST: u64 = 256 << 20;

/// An open file.
pub(super) struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    /// The line at hand, from 1.
    number: u64,
    line: Vec<u8>,
}

/// One row; `null` in `log_probs` is a probability of 0, for which JSON has no number.
#[derive(Debug, Deserialize)]
pub(super) struct Row {
    pub(super) input_ids: Vec<i64>,
    pub(super) token_ids: Vec<Vec<i64>>,
    #[serde(alias = "top_values", alias = "logprobs")]
    pub(super) log_probs: Vec<Vec<Option<f64>>>,
}

impl Lines {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::io("read", path))?;
        let reader = BufReader::with_capacity(1 << 18, file);
        Ok(Self { path: path.to_path_buf(), reader, number: 0, line: Vec::new() })
    }

    /// The next row; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Row>, Error> {
        loop {
            self.line.clear();
            let read = (&mut self.reader).take(LONGEST + 1).read_until(b'\n', &mut self.line);
            if read.map_err(Error::io("read", &self.path))? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if self.line.len() as u64 > LONGEST {
                return Err(self.problem(format!("the line has more than {} MiB", LONGEST >> 20), None));
            }
            if !self.line.trim_ascii().is_empty() {
                return self.parse().map(Some);
            }
        }
    }

    fn parse(&self) -> Result<Row, Error> {
        let error = match serde_json::from_slice(&self.line) {
            Ok(row) => return Ok(row),
            Err(error) => error,
        };
        match serde_json::from_slice::<Map<String, Value>>(&self.line) {
            Ok(row) => {
                let names: Vec<String> = row.keys().cloned().collect();
                let has = |name: &str| row.contains_key(name);
                if has(TOKENS) && has(IDS) && VALUES.iter().any(|name| has(name)) {
                    return Err(self.problem(format!("{error}"), None));
                }
                let (message, hint) = missing(&names);
                Err(self.problem(message, Some(hint)))
            }
            Err(_) => {
                let hint = "each line is one JSON object; write `null` for a probability of 0".to_owned();
                Err(self.problem(format!("not a row of JSON: {error}"), Some(hint)))
            }
        }
    }

    pub(super) fn problem(&self, message: impl Into<String>, hint: Option<String>) -> Error {
        problem(&self.path, self.number, message.into(), hint)
    }
}
