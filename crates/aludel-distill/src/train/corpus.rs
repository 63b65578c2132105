//! Gives the data of a run to its training, and remembers where the next step begins.

use std::sync::Arc;

use serde_json::Value;

use super::session::Source;
use crate::data::{self, Cursor, Encoder, Loader, MicroBatch, Rows, Stream, StreamSettings};
use crate::error::Error;
use crate::prepare::Tokenizers;
use crate::run::{Length, Run};

/// Steps that are prepared while one is taken.
const AHEAD: usize = 2;

/// The data of a run.
pub(crate) struct Corpus {
    train: Arc<Rows>,
    validation: Option<Arc<Rows>>,
    warnings: Vec<String>,
    fingerprint: String,
    run: StreamSettings,
    evaluation: StreamSettings,
    encoder: Arc<Encoder>,
    steps: u64,
    /// Where the next step begins.
    cursor: Cursor,
    /// Started with the first step.
    loader: Option<Loader>,
}

impl Corpus {
    /// Reads all rows once, and counts the steps where the run is measured in epochs.
    pub(crate) fn open(run: &Run, tokenizers: &Tokenizers) -> Result<Self, Error> {
        let opened = data::Corpus::open(&run.data)?;
        let warnings = warnings(&opened);
        let fingerprint = opened.fingerprint().to_owned();
        let data::Corpus { train, validation, .. } = opened;
        let (train, encoder) = (Arc::new(train), Arc::new(encoder(run, tokenizers)?));
        let settings = StreamSettings::training(&run.data, &run.train);
        let steps = match run.train.length {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => {
                Stream::new(Arc::clone(&train), Arc::clone(&encoder), settings).count_steps(epochs)?
            }
        };
        Ok(Self {
            train,
            validation: validation.map(Arc::new),
            warnings,
            fingerprint,
            run: settings,
            evaluation: StreamSettings::validation(&run.data, &run.train),
            encoder,
            steps,
            cursor: Cursor::default(),
            loader: None,
        })
    }

    /// Optimizer steps of the whole run.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    /// What the user should know of the data.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// SHA-256 over the content of all files.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Goes to where a checkpoint was written.
    pub(crate) fn seek(&mut self, position: &Value) -> Result<(), Error> {
        self.cursor = serde_json::from_value(position.clone()).map_err(|_| Error::Cursor)?;
        self.loader = None;
        Ok(())
    }

    /// The documents to evaluate on.
    pub(crate) fn validation(&self) -> Result<Vec<MicroBatch>, Error> {
        let Some(rows) = &self.validation else { return Ok(Vec::new()) };
        let mut stream = Stream::new(Arc::clone(rows), Arc::clone(&self.encoder), self.evaluation);
        let mut micro_batches = Vec::new();
        while let Some(step) = stream.next_step()? {
            micro_batches.extend(step.micro_batches);
        }
        Ok(micro_batches)
    }

    fn start(&self) -> Result<Loader, Error> {
        let (rows, encoder) = (Arc::clone(&self.train), Arc::clone(&self.encoder));
        Loader::start(Stream::resume(rows, encoder, self.run, &self.cursor)?, AHEAD)
    }
}

impl Source for Corpus {
    fn next_step(&mut self) -> Result<Vec<MicroBatch>, Error> {
        let loader = match &mut self.loader {
            Some(loader) => loader,
            None => {
                let loader = self.start()?;
                self.loader.insert(loader)
            }
        };
        // The number of steps was counted, or the data begins again and again.
        let step = loader.next().ok_or_else(|| Error::internal("the data ended before the run"))??;
        self.cursor = step.cursor;
        Ok(step.micro_batches)
    }

    fn position(&self) -> Result<Value, Error> {
        serde_json::to_value(&self.cursor).map_err(|error| Error::internal(error.to_string()))
    }
}

/// Reads rows for the student, and for a teacher with other tokens beside it.
fn encoder(run: &Run, tokenizers: &Tokenizers) -> Result<Encoder, Error> {
    let encoder = Encoder::new(Arc::clone(&tokenizers.student), &run.data)?;
    let Some(teacher) = &tokenizers.teacher else { return Ok(encoder) };
    let pieces = run.cache.as_ref().map(|_| run.data.sequence_length);
    encoder.with_teacher(Arc::clone(teacher), &run.teachers_data(), pieces)
}

/// Rows that were left out.
fn warnings(corpus: &data::Corpus) -> Vec<String> {
    let mut warnings: Vec<String> =
        corpus.skipped.iter().map(|problem| format!("left out {problem}")).collect();
    let more = corpus.skipped_count.saturating_sub(corpus.skipped.len() as u64);
    if more > 0 {
        warnings.push(format!("left out {more} more rows that cannot be used"));
    }
    warnings
}
