//! Scores a model on files: how well it predicts them, and how near it is to another model.
//!
//! In: a model, files as a run would train on, and the size of a window. Out: an [`Evaluation`]. Documents that are longer
//! than a window are scored in windows that overlap (see [`aludel_model::windows`]), so that every token is predicted once;
//! shorter ones share a pass without seeing each other. Which tokens count is what a run would learn: completions and
//! assistant turns of conversations, all of a text.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use aludel_document::Problem;
use aludel_kernels::loss::{HeadReport, IGNORED, LabelTerm, LossDevice, Objective, Target};
use aludel_model::evaluate::score;
use aludel_model::windows::{Window, windows};
use aludel_model::{Batch, Decoder, Tokenizer, Use};
use serde::Serialize;

use crate::data::{Corpus, Encoder, MicroBatch, Stream, StreamSettings};
use crate::error::Error;
use crate::prepare::check_tokenizers;
use crate::run::Run;

/// What is evaluated, and how.
pub struct Settings<'a> {
    /// A model folder or GGUF file.
    pub model: &'a Path,
    /// A model to be compared with.
    pub against: Option<&'a Path>,
    /// JSON lines, Parquet or text.
    pub data: &'a [PathBuf],
    /// Tokens of a window; what the model was made for, and 1024 at the most, where it is not given.
    pub window: Option<usize>,
    /// Tokens from the beginning of a window to that of the next; half a window where it is not given.
    pub stride: Option<usize>,
    /// Set from outside to stop.
    pub cancel: &'a AtomicBool,
    /// Told how many tokens are scored.
    pub on_progress: &'a dyn Fn(u64),
}

/// What an evaluation measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// The model.
    pub model: PathBuf,
    /// Tokens that were predicted.
    pub tokens: u64,
    /// Documents they are of.
    pub documents: u64,
    /// Tokens of a window.
    pub window: usize,
    /// Tokens from the beginning of a window to that of the next.
    pub stride: usize,
    /// Nats a token.
    pub cross_entropy: f64,
    /// Its exponential.
    pub perplexity: f64,
    /// Share of tokens that were the model's first choice.
    pub accuracy: f64,
    /// Beside another model, where one was given.
    pub against: Option<Comparison>,
}

/// How near a model is to another one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The other model.
    pub model: PathBuf,
    /// `KL(other, model)`, nats a token.
    pub kl: f64,
    /// `KL(model, other)`, nats a token.
    pub reverse_kl: f64,
    /// Share of tokens of which both have the same first choice.
    pub top1: f64,
}

/// Windows are at most this long unless they are asked to be longer.
const USUAL_WINDOW: usize = 1024;

/// Scores a model.
///
/// # Errors
/// [`Error::Problems`] for models and data that cannot be read or do not fit each other; [`Error::Interrupted`]; what
/// computing fails by.
pub fn evaluate<D: LossDevice>(device: &Arc<D>, settings: &Settings<'_>) -> Result<Evaluation, Error> {
    let open = |path: &Path| Decoder::open(path, Arc::clone(device), Use::Frozen);
    let model = open(settings.model).map_err(|error| Error::from(error).into_problem())?;
    let other = settings.against.map(open).transpose().map_err(|error| Error::from(error).into_problem())?;
    let mut stream = stream(settings).map_err(Error::into_problem)?;
    let window = settings.window.unwrap_or_else(|| model.config().positions.min(USUAL_WINDOW)).max(2);
    let stride = settings.stride.unwrap_or(window / 2).clamp(1, window - 1);
    let mut scorer = Scorer {
        model: &model,
        other: other.as_ref(),
        objective: Objective::new(vec![], Some(LabelTerm { weight: 1.0 }), Target::Teacher)?,
        window,
        waiting: Vec::new(),
        sum: HeadReport::default(),
        settings,
    };
    let mut documents = 0;
    while let Some(step) = stream.next_step()? {
        for MicroBatch { batch, labels, .. } in &step.micro_batches {
            documents += 1;
            // The last label is of a token that is in no row.
            for window in windows(labels.len() + 1, window, stride) {
                scorer.add(Part::of(&batch.ids, labels, &window))?;
            }
        }
    }
    scorer.flush()?;
    Ok(evaluation(settings, &scorer.sum, documents, (window, stride)))
}

fn evaluation(
    settings: &Settings<'_>,
    sum: &HeadReport,
    documents: u64,
    (window, stride): (usize, usize),
) -> Evaluation {
    let tokens = sum.rows as f64;
    let cross_entropy = sum.cross_entropy / tokens;
    Evaluation {
        model: settings.model.to_path_buf(),
        tokens: sum.rows,
        documents,
        window,
        stride,
        cross_entropy,
        perplexity: cross_entropy.exp(),
        accuracy: sum.correct as f64 / tokens,
        against: settings.against.map(|other| Comparison {
            model: other.to_path_buf(),
            kl: sum.forward_kl / tokens,
            reverse_kl: sum.reverse_kl / tokens,
            top1: sum.agreement as f64 / tokens,
        }),
    }
}

/// Whole documents, one at a time.
fn stream(settings: &Settings<'_>) -> Result<Stream, Error> {
    let tokenizer = Tokenizer::open(settings.model)?;
    if let Some(other) = settings.against {
        let hint = "measure each by itself, or take models of one family";
        check_tokenizers(&Tokenizer::open(other)?, &tokenizer, hint)?;
    }
    // The longest document that a run takes is one sequence.
    let run = run_over(settings.data, 1 << 24)?;
    let Corpus { train, .. } = Corpus::open(&run.data)?;
    let encoder = Encoder::new(Arc::new(tokenizer), &run.data)?;
    let stream = StreamSettings { epochs: Some(1), ..StreamSettings::training(&run.data, &run.train) };
    Ok(Stream::new(Arc::new(train), Arc::new(encoder), stream))
}

/// The settings of a run that reads these files as they are, in sequences of at most so many tokens.
pub(crate) fn run_over(files: &[PathBuf], sequence_length: usize) -> Result<Run, Error> {
    let names: Option<Vec<&str>> = files.iter().map(|file| file.to_str()).collect();
    let Some(names) = names else {
        return Err(Problem::general("a data file's name is not UTF-8").with_hint("rename it").into());
    };
    // A list in JSON is one in YAML.
    let text = format!(
        "student: model\ndata: {{train: {}, sequence_length: {sequence_length}, packing: false, long_documents: split, shuffle: false}}\n\
         train: {{batch_size: 1, micro_batch: 1}}\noutput: output\n",
        serde_json::Value::from(names),
    );
    Run::parse(&text).map_err(|problems| {
        // Places in a text that nobody wrote would mislead.
        let messages: Vec<String> = problems.iter().map(|problem| problem.message.clone()).collect();
        Problem::general(messages.join("; "))
            .with_hint("data files end in `.jsonl`, `.ndjson`, `.parquet` or `.txt`")
            .into()
    })
}

/// The inputs and labels of one window.
struct Part {
    ids: Vec<u32>,
    labels: Vec<u32>,
}

impl Part {
    /// Of a document of which `labels` has the token after each of `ids`. The last token of a window only ends it.
    fn of(ids: &[u32], labels: &[u32], window: &Window) -> Self {
        let rows = window.tokens.start..window.tokens.end - 1;
        let label = |row: usize| if window.counted.contains(&(row + 1)) { labels[row] } else { IGNORED };
        Self { ids: ids[rows.clone()].to_vec(), labels: rows.map(label).collect() }
    }
}

struct Scorer<'a, D: LossDevice> {
    model: &'a Decoder<D>,
    other: Option<&'a Decoder<D>>,
    objective: Objective,
    window: usize,
    /// Together no longer than a window.
    waiting: Vec<Part>,
    sum: HeadReport,
    settings: &'a Settings<'a>,
}

impl<D: LossDevice> Scorer<'_, D> {
    fn add(&mut self, part: Part) -> Result<(), Error> {
        let waiting: usize = self.waiting.iter().map(|part| part.ids.len()).sum();
        if waiting + part.ids.len() > self.window {
            self.flush()?;
        }
        self.waiting.push(part);
        Ok(())
    }

    /// Scores what waits.
    fn flush(&mut self) -> Result<(), Error> {
        if self.settings.cancel.load(Relaxed) {
            return Err(Error::Interrupted);
        }
        let parts = std::mem::take(&mut self.waiting);
        let labels = parts.iter().flat_map(|part| part.labels.iter().copied()).collect::<Vec<_>>();
        if labels.iter().any(|&label| label != IGNORED) {
            let batch = Batch::pack(parts.iter().map(|part| part.ids.as_slice()));
            self.sum.add(&score(self.model, self.other, &self.objective, &batch, &labels)?);
            (self.settings.on_progress)(self.sum.rows);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_document_have_every_label_once() {
        let ids: Vec<u32> = (0..9).collect();
        let labels: Vec<u32> = (1..10).collect();
        let mut seen = Vec::new();
        for window in windows(labels.len() + 1, 4, 2) {
            let part = Part::of(&ids, &labels, &window);
            assert!(part.ids.len() == part.labels.len() && part.ids.len() < 4);
            let pairs = part.ids.iter().zip(&part.labels).filter(|(_, label)| **label != IGNORED);
            seen.extend(pairs.map(|(&id, &label)| (id, label)));
        }
        assert_eq!(seen, (0..9).map(|id| (id, id + 1)).collect::<Vec<_>>());
    }
}
