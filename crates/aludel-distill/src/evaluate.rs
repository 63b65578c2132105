//! Scores a model on files: how well it predicts them, and how near it is to another model.
//!
//! In: a model, files as a run would train on, and the size of a window. Out: an [`Evaluation`]. Documents that are longer
//! than a window are scored in windows that overlap (see [`aludel_model::windows`]), so that every token is predicted once;
//! shorter ones share a pass without seeing each other. Which tokens count is what a run would learn: completions and
//! assistant turns of conversations, all of a text.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use aludel_checkpoint::Config;
use aludel_document::Problem;
use aludel_kernels::loss::{HeadReport, IGNORED, LabelTerm, LossDevice, Objective, Target, TeacherRows};
use aludel_model::evaluate::{score, score_against};
use aludel_model::windows::{Window, windows};
use aludel_model::{Batch, Decoder, Keep, ModelConfig, Pass, Tokenizer, Use};
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
    let objective = measuring()?;
    let mut sum = HeadReport::default();
    let documents = pack(&mut stream, (window, stride), |batch, labels| {
        if settings.cancel.load(Relaxed) {
            return Err(Error::Interrupted);
        }
        sum.add(&score(&model, other.as_ref(), &objective, &batch, &labels)?);
        (settings.on_progress)(sum.rows);
        Ok(())
    })?;
    Ok(evaluation(settings, &sum, documents, (window, stride)))
}

/// What measures and trains nothing.
fn measuring() -> Result<Objective, Error> {
    Ok(Objective::new(vec![], Some(LabelTerm { weight: 1.0 }), Target::Teacher)?)
}

/// Hands on all documents of a stream in batches of at most a window, each with its labels; how many documents there are.
fn pack(
    stream: &mut Stream,
    (window, stride): (usize, usize),
    mut take: impl FnMut(Batch, Vec<u32>) -> Result<(), Error>,
) -> Result<u64, Error> {
    let mut packer = Packer { window, waiting: Vec::new() };
    let mut documents = 0;
    while let Some(step) = stream.next_step()? {
        for MicroBatch { batch, labels, .. } in &step.micro_batches {
            documents += 1;
            // The last label is of a token that is in no row.
            for window in windows(labels.len() + 1, window, stride) {
                if let Some((batch, labels)) = packer.add(Part::of(&batch.ids, labels, &window)) {
                    take(batch, labels)?;
                }
            }
        }
    }
    if let Some((batch, labels)) = packer.batch() {
        take(batch, labels)?;
    }
    Ok(documents)
}

/// Text that one model after the other is scored on: cut into batches once, with what another model makes of it.
pub struct HeldOut<D: LossDevice> {
    batches: Vec<(Batch, Vec<u32>)>,
    objective: Objective,
    against: Option<(Decoder<D>, Vec<Pass<D>>)>,
    /// Tokens that are predicted.
    pub tokens: u64,
}

impl<D: LossDevice> HeldOut<D> {
    /// Reads the data of `settings`, whose model needs no weights: its tokenizer is asked, and its config where no window is given. Runs
    /// the model that is compared with.
    ///
    /// # Errors
    /// As [`evaluate`].
    pub fn open(device: &Arc<D>, settings: &Settings<'_>) -> Result<Self, Error> {
        let mut stream = stream(settings).map_err(Error::into_problem)?;
        let positions = || Ok::<_, Error>(shape(settings.model)?.positions.min(USUAL_WINDOW));
        let window = settings.window.map_or_else(positions, Ok).map_err(Error::into_problem)?.max(2);
        let stride = settings.stride.unwrap_or(window / 2).clamp(1, window - 1);
        let mut batches = Vec::new();
        pack(&mut stream, (window, stride), |batch, labels| {
            batches.push((batch, labels));
            Ok(())
        })?;
        let tokens = batches.iter().flat_map(|(_, labels)| labels).filter(|&&label| label != IGNORED).count();
        if tokens == 0 {
            let problem = Problem::general("the data has no token to predict");
            return Err(problem.with_hint("give text of more than one token").into());
        }
        let against =
            settings.against.map(|path| Self::taught(device, path, &batches, settings)).transpose()?;
        Ok(Self { batches, objective: measuring()?, against, tokens: tokens as u64 })
    }

    /// A model and its hidden states for all batches.
    fn taught(
        device: &Arc<D>,
        path: &Path,
        batches: &[(Batch, Vec<u32>)],
        settings: &Settings<'_>,
    ) -> Result<(Decoder<D>, Vec<Pass<D>>), Error> {
        let model = Decoder::open(path, Arc::clone(device), Use::Frozen);
        let model = model.map_err(|error| Error::from(error).into_problem())?;
        let mut passes = Vec::new();
        let mut rows = 0;
        for (batch, _) in batches {
            if settings.cancel.load(Relaxed) {
                return Err(Error::Interrupted);
            }
            passes.push(model.forward(batch, Keep::Nothing, &[])?);
            rows += batch.rows() as u64;
            (settings.on_progress)(rows);
        }
        Ok((model, passes))
    }

    /// Scores a model: nats a token of the text, and of the divergence of the other model from it, where there is one.
    ///
    /// # Errors
    /// [`Error::Interrupted`]; what computing fails by.
    pub fn score(&self, model: &Decoder<D>, cancel: &AtomicBool) -> Result<Scores, Error> {
        let mut sum = HeadReport::default();
        for (at, (batch, labels)) in self.batches.iter().enumerate() {
            if cancel.load(Relaxed) {
                return Err(Error::Interrupted);
            }
            let rows = self.against.as_ref().map(|(other, passes)| TeacherRows::Hidden {
                head: other.head(),
                hidden: passes[at].hidden(),
            });
            sum.add(&score_against(model, rows.as_ref(), &self.objective, batch, labels)?);
        }
        let tokens = sum.rows as f64;
        let kl = self.against.as_ref().map(|_| sum.forward_kl / tokens);
        Ok(Scores { cross_entropy: sum.cross_entropy / tokens, kl })
    }
}

/// How well a model does on held-out text, in nats a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// Cross-entropy of the text.
    pub cross_entropy: f64,
    /// `KL(other, model)`, where there is another model.
    pub kl: Option<f64>,
}

/// What a model is by its config.
fn shape(model: &Path) -> Result<ModelConfig, Error> {
    let config = Config::read(&model.join("config.json"))?;
    Ok(ModelConfig::parse(&config)?)
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

/// Puts parts of documents together.
struct Packer {
    window: usize,
    /// Together no longer than a window.
    waiting: Vec<Part>,
}

impl Packer {
    /// Takes a part; the batch that it has no room in.
    fn add(&mut self, part: Part) -> Option<(Batch, Vec<u32>)> {
        let waiting: usize = self.waiting.iter().map(|part| part.ids.len()).sum();
        let full = if waiting + part.ids.len() > self.window { self.batch() } else { None };
        self.waiting.push(part);
        full
    }

    /// A batch of what waits, with its labels, where some of them count.
    fn batch(&mut self) -> Option<(Batch, Vec<u32>)> {
        let parts = std::mem::take(&mut self.waiting);
        let labels = parts.iter().flat_map(|part| part.labels.iter().copied()).collect::<Vec<_>>();
        let counts = labels.iter().any(|&label| label != IGNORED);
        counts.then(|| (Batch::pack(parts.iter().map(|part| part.ids.as_slice())), labels))
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
