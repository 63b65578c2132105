//! Keeps the record of a search: a line of JSON for what is searched, and one for each candidate.
//!
//! In: evaluations as they come. Out: a file that a search goes on from after a kill: a line that was not finished is dropped. Scores
//! have nine decimals, so that reading one gives the same number as having computed it.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A candidate that was scored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// From 1; the first is of the recipe as it is.
    pub evaluation: usize,
    /// What the numbers that vary were, as they stand in the recipe.
    pub values: Vec<String>,
    /// What it came to, the less the better; `None` for what is not finite.
    pub score: Option<f64>,
    /// How long that took.
    pub seconds: f64,
}

impl Evaluation {
    /// A score of nine decimals.
    pub(crate) fn settled(score: f64) -> Option<f64> {
        format!("{score:.9}").parse().ok().filter(|score: &f64| score.is_finite())
    }
}

/// The record of a search.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    evaluations: Vec<Evaluation>,
}

/// What can go wrong with a record.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// It cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is of another search.
    #[error("{} is the record of another search: {what}", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: String,
    },
}

impl Log {
    /// Begins a record of what is searched.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn create(path: &Path, subject: &Value) -> Result<Self, LogError> {
        let failed = |source| LogError::Io { path: path.to_path_buf(), source };
        let mut file = File::create(path).map_err(failed)?;
        file.write_all(format!("{subject}\n").as_bytes()).map_err(failed)?;
        Ok(Self { path: path.to_path_buf(), file, evaluations: Vec::new() })
    }

    /// Goes on with a record of the same; begins where there is none. It ends before the first line that is no evaluation.
    ///
    /// # Errors
    /// [`LogError::Io`]; [`LogError::Other`] where something else was searched.
    pub fn resume(path: &Path, subject: &Value) -> Result<Self, LogError> {
        let failed = |source| LogError::Io { path: path.to_path_buf(), source };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Self::create(path, subject),
            Err(error) => return Err(failed(error)),
        };
        let mut length = 0;
        let mut evaluations = Vec::new();
        for (number, line) in text.split_inclusive('\n').enumerate() {
            let whole = line.strip_suffix('\n').and_then(|line| serde_json::from_str::<Value>(line).ok());
            let Some(value) = whole else { break };
            if number == 0 {
                if let Some(what) = difference(&value, subject) {
                    return Err(LogError::Other { path: path.to_path_buf(), what });
                }
            } else {
                let Ok(evaluation) = serde_json::from_value::<Evaluation>(value) else { break };
                if evaluation.values.iter().any(|value| value.parse::<f64>().is_err()) {
                    break;
                }
                let score = evaluation.score.and_then(Evaluation::settled);
                evaluations.push(Evaluation { score, ..evaluation });
            }
            length += line.len();
        }
        if length == 0 {
            return Self::create(path, subject);
        }
        let mut file = File::options().write(true).open(path).map_err(failed)?;
        file.set_len(length as u64).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(Self { path: path.to_path_buf(), file, evaluations })
    }

    /// What has been scored.
    pub fn evaluations(&self) -> &[Evaluation] {
        &self.evaluations
    }

    pub(crate) fn add(&mut self, evaluation: Evaluation) -> Result<(), LogError> {
        let line = serde_json::to_string(&evaluation).map_err(std::io::Error::from);
        let written = line.and_then(|line| self.file.write_all(format!("{line}\n").as_bytes()));
        written.map_err(|source| LogError::Io { path: self.path.clone(), source })?;
        self.evaluations.push(evaluation);
        Ok(())
    }

    /// Refuses a record whose candidates are not those of this search.
    pub(crate) fn other(&self, evaluation: usize) -> LogError {
        let what = format!("its evaluation {evaluation} has other numbers than this search would try");
        LogError::Other { path: self.path.clone(), what }
    }
}

/// The first part in which two subjects differ.
fn difference(recorded: &Value, subject: &Value) -> Option<String> {
    if recorded == subject {
        return None;
    }
    let fields = subject.as_object().into_iter().flatten();
    let differing = fields.filter(|(name, value)| recorded.get(name) != Some(*value)).map(|(name, _)| name);
    Some(match differing.map(String::as_str).next() {
        Some(name) => format!("its {name} differs"),
        None => "what it says of itself differs".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn evaluation(number: usize, score: f64) -> Evaluation {
        Evaluation {
            evaluation: number,
            values: vec!["0.5".into()],
            score: Evaluation::settled(score),
            seconds: 0.25,
        }
    }

    #[test]
    fn a_line_that_was_not_finished_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let subject = json!({"recipe": "a", "seed": 1});
        let mut log = Log::resume(&path, &subject).unwrap();
        let all = [evaluation(1, 1.0 / 3.0), evaluation(2, f64::NAN)];
        all.iter().for_each(|evaluation| log.add(evaluation.clone()).unwrap());
        let whole = std::fs::read_to_string(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut log = Log::resume(&path, &subject).unwrap();
            let kept = log.evaluations().len();
            assert_eq!(log.evaluations(), &all[..kept]);
            all[kept..].iter().for_each(|evaluation| log.add(evaluation.clone()).unwrap());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), whole, "cut at {cut}");
        }
    }

    /// A fuzzer found that the numbers of a candidate were taken for fewer than there are where one is none.
    #[test]
    fn a_record_ends_before_what_is_no_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let line = |value: &str| {
            format!("{{\"evaluation\":1,\"values\":[\"{value}\"],\"score\":1.0,\"seconds\":0.5}}\n")
        };
        std::fs::write(&path, format!("{{}}\n{}{}{}", line("0.5"), line("0.5x"), line("0.25"))).unwrap();
        let log = Log::resume(&path, &json!({})).unwrap();
        assert_eq!(log.evaluations().len(), 1);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{{}}\n{}", line("0.5")));
    }

    #[test]
    fn the_record_of_another_search_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        Log::create(&path, &json!({"recipe": "a", "seed": 1})).unwrap();
        let error = Log::resume(&path, &json!({"recipe": "a", "seed": 2})).unwrap_err();
        assert!(error.to_string().ends_with("is the record of another search: its seed differs"), "{error}");
    }
}
