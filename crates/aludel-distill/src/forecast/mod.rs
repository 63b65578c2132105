//! Predicts what a run takes, without training: memory from the buffers that it will hold, time from one micro-batch.
//!
//! In: a run and a device. Out: a [`Forecast`]. Memory is counted before anything is loaded (`count`), and settings that the run leaves open are chosen
//! so that it fits (`fit`). Then the models are loaded and one micro-batch of the run's own data goes through forward, backward and optimizer on copies
//! in memory; nothing is written. Of a micro-batch that would take the CPU minutes only the beginning is timed. Where nothing fits, nothing is loaded.

mod count;
mod fit;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use aludel_kernels::loss::LossDevice;
use aludel_model::Decoder;
use serde::Serialize;

use crate::cache::CachedTeacher;
use crate::data::MicroBatch;
use crate::error::Error;
use crate::prepare::{Models, Tokenizers};
use crate::run::Run;
use crate::step::Trainer;
use crate::train::{Corpus, Source};
use count::Counted;
pub(crate) use fit::{
    Fitted, Limit, Saving, as_recorded, bits, fit, held, last_recorded, of_bits, told, with,
};

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
    /// Settings that were chosen so that the run fits.
    pub chosen: Vec<String>,
    /// What was timed; `None` where there was nothing to learn.
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
    /// What lies in the host's memory beside a device's own; no part of the total.
    pub aside: u64,
}

/// How fast a micro-batch was.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Timing {
    /// Tokens of the micro-batch.
    pub tokens: u64,
    /// Seconds that a micro-batch adds to a step.
    pub pass: f64,
    /// Seconds of a step beside, the optimizer's; 0 where a step is one micro-batch, which does not tell them apart.
    pub update: f64,
    /// Tokens a second of the whole run.
    pub tokens_per_second: f64,
    /// Seconds of the whole run, evaluations and checkpoints not counted.
    pub seconds: f64,
}

impl Memory {
    /// All of it that competes for the same memory.
    pub fn total(&self) -> u64 {
        let Self { weights, gradients, moments, teacher, activations, logits, process, aside: _ } = *self;
        weights + gradients + moments + teacher + activations + logits + process
    }
}

/// Rows of a beginning, and the seconds from which on a micro-batch is not waited for.
const BEGINNING: usize = 256;
const PATIENCE: f64 = 20.0;

/// Predicts what one of so many processes takes for a run, of the memory that is given or free; the speed is that of one alone. `tell` is given what is
/// known before anything is timed.
///
/// # Errors
/// [`Error::Problems`] as the run itself would; what computing fails by.
pub fn forecast<D: LossDevice>(
    device: &Arc<D>,
    run: &Run,
    processes: usize,
    memory: Option<u64>,
    tell: &dyn Fn(&Forecast),
) -> Result<Forecast, Error> {
    let limit = Limit::of(device.as_ref(), memory);
    let Fitted { run, savings, counted } = fit(device.as_ref(), run, processes, limit)?;
    let Counted { memory, parameters, trained } = counted;
    let tokenizers = Tokenizers::of(&run).map_err(Error::into_problem)?;
    let mut corpus = Corpus::open(&run, &tokenizers).map_err(Error::into_problem)?;
    let steps = corpus.steps();
    let cache = CachedTeacher::of_run(device, &run, tokenizers.of_teacher(), corpus.fingerprint())?;
    let process = held(device.as_ref());
    let tokens_per_step = (run.train.batch_size * run.data.sequence_length) as u64;
    let chosen = savings.iter().map(ToString::to_string).collect();
    let memory = Memory { process, ..memory };
    let counted = Forecast { steps, tokens_per_step, parameters, trained, memory, chosen, timing: None };
    tell(&counted);
    let models = Models::load(device, &run)?;
    let timing = time(&run, (models, cache), &mut corpus, steps)?;
    Ok(Forecast { timing, ..counted })
}

/// A step of one micro-batch, and of two where a step has so many; a first one touches memory that later ones have. On the CPU short ones come first, and
/// tell whether whole ones are worth waiting for.
fn time<D: LossDevice>(
    run: &Run,
    (models, cache): (Models<D>, Option<CachedTeacher<D>>),
    corpus: &mut Corpus,
    steps: u64,
) -> Result<Option<Timing>, Error> {
    let has_memory = models.student.device().free_memory().is_some();
    let mut trainer = Trainer::new(models.student, models.teacher, run, steps)?.with_cache(cache);
    let micro_batches = corpus.next_step()?;
    let Some(first) = micro_batches.first() else { return Ok(None) };
    let mut timed = |micro_batches: &[MicroBatch]| -> Result<(f64, u64), Error> {
        let begin = Instant::now();
        let report = trainer.step(micro_batches, &|| false)?;
        trainer.device().synchronize()?;
        Ok((begin.elapsed().as_secs_f64(), report.map_or(0, |report| report.rows)))
    };
    let longer = |short: &MicroBatch| first.batch.rows() as f64 / short.batch.rows() as f64;
    let mut sample = micro_batches[..micro_batches.len().min(2)].to_vec();
    let shorter: Option<Vec<MicroBatch>> = sample.iter().map(|micro| micro.beginning(BEGINNING)).collect();
    match shorter.filter(|_| !has_memory) {
        Some(shorter) => {
            timed(&shorter[..1])?;
            if timed(&shorter[..1])?.0 * longer(&shorter[0]) > PATIENCE {
                sample = shorter;
            }
        }
        None => {
            timed(&sample[..1])?;
        }
    }
    let (one, tokens) = timed(&sample[..1])?;
    let of_sample = match sample.get(..2) {
        Some(two) => (timed(two)?.0 - one).clamp(0.0, one),
        None => one,
    };
    let (pass, update) = (of_sample * longer(&sample[0]), one - of_sample);
    let count = micro_batches.len() as f64;
    let step = pass * count + update;
    Ok(Some(Timing {
        tokens,
        pass,
        update,
        tokens_per_second: first.batch.rows() as f64 * count / step.max(1e-9),
        seconds: step * steps as f64,
    }))
}

fn count<D: LossDevice>(decoder: &Decoder<D>, trained: bool) -> u64 {
    let parameters = decoder.parameters().iter().filter(|parameter| parameter.trainable || !trained);
    parameters.map(|parameter| parameter.elements() as u64).sum()
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
        match self.aside {
            0 => Ok(()),
            aside => write!(f, "; beside it {:.1} MB of the host's", aside as f64 / 1e6),
        }
    }
}
