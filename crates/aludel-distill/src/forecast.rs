//! Predicts what a run takes, without training: memory from the buffers that it will hold, time from one micro-batch.
//!
//! In: a run and a device. Out: a [`Forecast`]. The models are loaded and one micro-batch of the run's own data goes through
//! forward, backward and optimizer on copies in memory; nothing is written. Where the plan does not fit the memory that is
//! free, nothing is timed.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use aludel_checkpoint::resident;
use aludel_kernels::element::Element;
use aludel_kernels::loss::LossDevice;
use aludel_model::config::{FeedForward, LayerConfig};
use aludel_model::{Decoder, ModelConfig};
use serde::Serialize;

use crate::cache::CachedTeacher;
use crate::error::Error;
use crate::group::most;
use crate::prepare::Models;
use crate::run::{Checkpointing, Moments, Run};
use crate::step::Trainer;
use crate::train::{Corpus, Source};

/// What a run takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// Optimizer steps.
    pub steps: u64,
    /// Tokens of a step, at the most.
    pub tokens_per_step: u64,
    /// Parameters of the student.
    pub parameters: u64,
    /// Those that are trained.
    pub trained: u64,
    /// Bytes that will be held.
    pub memory: Memory,
    /// What was timed; `None` where the plan does not fit the free memory.
    pub timing: Option<Timing>,
}

/// Bytes that a run holds at its peak, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Weights of the student, masters included.
    pub weights: u64,
    /// Gradients of the trained parameters.
    pub gradients: u64,
    /// AdamW's moments.
    pub moments: u64,
    /// Weights of the teacher, which stay in its mapped files where the device can use them there.
    pub teacher: u64,
    /// Activations of a micro-batch, the teacher's included.
    pub activations: u64,
    /// Logits and their gradients, some rows at a time.
    pub logits: u64,
    /// What the process holds before.
    pub process: u64,
}

/// How fast a micro-batch was.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Timing {
    /// Tokens of the micro-batch.
    pub tokens: u64,
    /// Seconds of forward and backward.
    pub pass: f64,
    /// Seconds of the optimizer.
    pub update: f64,
    /// Tokens a second of the whole run.
    pub tokens_per_second: f64,
    /// Seconds of the whole run, evaluations and checkpoints not counted.
    pub seconds: f64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> u64 {
        let Self { weights, gradients, moments, teacher, activations, logits, process } = *self;
        weights + gradients + moments + teacher + activations + logits + process
    }
}

/// Predicts what one of so many processes takes for a run; the speed is that of one alone.
///
/// # Errors
/// [`Error::Problems`] as the run itself would; what computing fails by.
pub fn forecast<D: LossDevice>(device: &Arc<D>, run: &Run, processes: usize) -> Result<Forecast, Error> {
    let free = device.free_memory();
    // What the process holds is in the host's memory, which a device with its own leaves alone.
    let process = if free.is_some() { 0 } else { resident::now().unwrap_or(0) };
    let models = Models::load(device, run)?;
    let mut corpus = Corpus::open(run, &models.tokenizers).map_err(Error::into_problem)?;
    let steps = corpus.steps();
    let memory = Memory { process, ..plan(run, &models, processes) };
    let (parameters, trained) = (count(&models.student, false), count(&models.student, true));
    let fits = free.or_else(available).is_none_or(|free| memory.total() - process <= free);
    let cache = CachedTeacher::of_run(device, run, models.tokenizers.of_teacher(), corpus.fingerprint())?;
    let timing = if fits { Some(time(run, (models, cache), &mut corpus, steps)?) } else { None };
    let tokens_per_step = (run.train.batch_size * run.data.sequence_length) as u64;
    Ok(Forecast { steps, tokens_per_step, parameters, trained, memory, timing })
}

/// One micro-batch, twice: the first time touches memory that later ones have.
fn time<D: LossDevice>(
    run: &Run,
    (models, cache): (Models<D>, Option<CachedTeacher<D>>),
    corpus: &mut Corpus,
    steps: u64,
) -> Result<Timing, Error> {
    let mut trainer = Trainer::new(models.student, models.teacher, run, steps)?.with_cache(cache);
    let micro_batches = corpus.next_step()?;
    let (mut seconds, mut update, mut tokens) = (0.0, 0.0, 0);
    for _ in 0..2 {
        let begin = Instant::now();
        if let Some(report) = trainer.step(&micro_batches[..1], &|| false)? {
            (seconds, update, tokens) = (begin.elapsed().as_secs_f64(), report.update_seconds, report.rows);
        }
    }
    let pass = (seconds - update).max(0.0);
    let count = micro_batches.len() as f64;
    let step = pass * count + update;
    Ok(Timing {
        tokens,
        pass,
        update,
        tokens_per_second: tokens as f64 * count / step.max(1e-9),
        seconds: step * steps as f64,
    })
}

/// Bytes of the buffers of a run.
fn plan<D: LossDevice>(run: &Run, models: &Models<D>, processes: usize) -> Memory {
    let device = models.student.device();
    let trained = count(&models.student, true);
    let stored = |decoder: &Decoder<D>| {
        let parameters = decoder.parameters().iter();
        parameters.map(|p| (p.elements() * device.element(&p.buffer).size()) as u64).sum::<u64>()
    };
    let trainable = || models.student.parameters().trainable();
    // Of processes that share the optimizer's state out, the one that has most.
    let held = match run.train.zero {
        0 => trained,
        _ => most(&trainable().map(|p| p.elements()).collect::<Vec<_>>(), processes),
    };
    let has_masters = trainable().any(|p| device.element(&p.buffer) != Element::F32);
    let masters = if has_masters { 4 * held } else { 0 };
    let rows = (run.train.micro_batch * run.data.sequence_length) as u64;
    let activation = device.activation().size() as u64;
    let student = activations(models.student.config(), run.train.checkpointing);
    let teacher = models.teacher.as_ref().map_or(0, |teacher| widest(teacher.config()));
    Memory {
        weights: stored(&models.student) + masters,
        gradients: 4 * trained,
        moments: match run.train.moments {
            Moments::Float32 => 8 * held,
            // A code for each element, and a scale for each block of a few hundred.
            Moments::Int8 => 2 * held + held / 32,
        },
        teacher: models.teacher.as_ref().map_or(0, stored),
        activations: rows * activation * (student + teacher),
        logits: logits(rows, models),
        process: 0,
    }
}

/// Elements that a row of the student leaves for its backward pass and needs in it.
fn activations(config: &ModelConfig, checkpointing: Checkpointing) -> u64 {
    let (hidden, layers) = (config.hidden as u64, config.layers.len() as u64);
    let all: u64 = config.layers.iter().map(|layer| kept(hidden, layer)).sum();
    let most = config.layers.iter().map(|layer| kept(hidden, layer)).max().unwrap_or(0);
    let trace = match checkpointing {
        Checkpointing::None => all,
        Checkpointing::Block => hidden * layers + most,
        Checkpointing::Every(count) => hidden * layers.div_ceil(count.max(1)) + most * count.min(layers),
    };
    trace + working(config)
}

/// Elements of a row that one layer keeps: what goes in, queries, keys, values and what they become, the middle, gate and up.
fn kept(hidden: u64, layer: &LayerConfig) -> u64 {
    let attention = 2 * layer.attention.query_width() as u64 + 2 * layer.attention.key_width() as u64;
    let feed_forward = match layer.feed_forward {
        FeedForward::Dense { width, .. } => 2 * width as u64,
        FeedForward::Experts { chosen, width, .. } => chosen as u64 * (2 * width as u64 + hidden),
    };
    2 * hidden + attention + feed_forward
}

/// Elements of a row that the backward pass of one layer works with besides, and the gradient of the hidden states.
fn working(config: &ModelConfig) -> u64 {
    let hidden = config.hidden as u64;
    let of_layer = |layer: &LayerConfig| {
        let attention = 3 * layer.attention.query_width() as u64 + 2 * layer.attention.key_width() as u64;
        let feed_forward = match layer.feed_forward {
            FeedForward::Dense { width, .. } => 2 * width as u64,
            FeedForward::Experts { chosen, width, .. } => 2 * chosen as u64 * (width as u64 + hidden),
        };
        attention + feed_forward
    };
    5 * hidden + config.layers.iter().map(of_layer).max().unwrap_or(0)
}

/// Elements of a row in a forward pass that keeps nothing.
fn widest(config: &ModelConfig) -> u64 {
    let hidden = config.hidden as u64;
    let most = config.layers.iter().map(|layer| kept(hidden, layer)).max().unwrap_or(0);
    2 * hidden + most
}

/// Bytes of logits: as many rows as fit the memory that is set aside for them.
fn logits<D: LossDevice>(rows: u64, models: &Models<D>) -> u64 {
    let activation = models.student.device().activation().size() as u64;
    let of = |config: &ModelConfig| (config.vocabulary + 2 * config.hidden) as u64 * activation;
    let of_row =
        of(models.student.config()) + models.teacher.as_ref().map_or(0, |teacher| of(teacher.config()));
    (rows * of_row).min((models.student.device().logit_memory() as u64).max(of_row))
}

fn count<D: LossDevice>(decoder: &Decoder<D>, trained: bool) -> u64 {
    let parameters = decoder.parameters().iter().filter(|parameter| parameter.trainable || !trained);
    parameters.map(|parameter| parameter.elements() as u64).sum()
}

/// Bytes that the system can still give, where it tells.
fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    value.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

impl fmt::Display for Memory {
    /// `4.10 GB: weights 0.54 GB, ...`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("moments", self.moments),
            ("teacher", self.teacher),
            ("activations", self.activations),
            ("logits", self.logits),
            ("process", self.process),
        ];
        write!(f, "{:.1} MB: ", self.total() as f64 / 1e6)?;
        for (place, (name, bytes)) in parts.into_iter().filter(|(_, bytes)| *bytes > 0).enumerate() {
            let comma = if place > 0 { ", " } else { "" };
            write!(f, "{comma}{name} {:.1}", bytes as f64 / 1e6)?;
        }
        Ok(())
    }
}
