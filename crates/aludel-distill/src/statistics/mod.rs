//! Collects what merges want to know of a model beside its weights, by running it over text.
//!
//! In: a model and files as a run would train on. Out: a folder of safetensors, a tensor for each weight that something is
//! known of, under the weight's name: of kind [`Kind::Gram`] the mean of `x x^T` over all inputs `x` of a linear layer; of
//! kind [`Kind::Fisher`] the diagonal of the empirical Fisher information. The header says which model and data they are of.
//!
//! Documents are cut into pieces of at most a window, so that every token goes through the model once. What does not fit into
//! the memory is collected in several passes over the data; the model's own memory comes on top. It merges nothing.
//!
//! Modules in reading order: `pieces` (the data), `share` (what one pass collects), `gram`, `fisher`, `write`.

mod fisher;
mod gram;
mod pieces;
mod share;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use aludel_checkpoint::{DigestCache, check_target};
use aludel_document::Problem;
use aludel_kernels::loss::LossDevice;
use aludel_model::{Decoder, Use};
use serde::Serialize;

use crate::error::Error;
use crate::inputs;
use pieces::Pieces;
use share::{Shares, Unit};
use write::{Facts, Output};

/// What is collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Gram matrices of the inputs of linear layers.
    Gram,
    /// The diagonal of the Fisher information, of all weights.
    Fisher,
}

impl Kind {
    /// What headers and recipes call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gram => "gram",
            Self::Fisher => "fisher",
        }
    }
}

/// What is collected of what, and how.
pub struct Settings<'a> {
    /// A model folder or GGUF file.
    pub model: &'a Path,
    /// What is collected.
    pub kind: Kind,
    /// JSON lines, Parquet or text.
    pub data: &'a [PathBuf],
    /// Tokens of a piece, at most; what the model was made for, and 1024 at the most, where it is not given.
    pub window: Option<usize>,
    /// Tokens after which the data end.
    pub tokens: Option<u64>,
    /// Bytes that sums may take.
    pub memory: u64,
    /// The folder to write; where there is none, nothing but a forecast can be asked for.
    pub target: Option<&'a Path>,
    /// Whether a folder there gives way.
    pub replace: bool,
    /// Whether it is on disk before it has its name.
    pub sync: bool,
    /// Bytes of one file of it.
    pub shard_bytes: u64,
    /// Where the digests of weights are remembered.
    pub digests: &'a DigestCache,
    /// Set from outside to stop.
    pub cancel: &'a AtomicBool,
    /// Told what is being done, as often as it changes.
    pub on_stage: &'a dyn Fn(Stage),
    /// Told what collecting takes, before it begins.
    pub on_forecast: &'a dyn Fn(&Forecast),
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Stage {
    /// So many bytes of the model of so many.
    Hashing {
        /// Done.
        done: u64,
        /// To do.
        total: u64,
    },
    /// Tokens of all passes.
    Collecting {
        /// Done.
        done: u64,
        /// To do.
        total: u64,
        /// Seconds since the first.
        seconds: f64,
    },
}

/// What collecting takes, known before it begins.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// The model.
    pub model: PathBuf,
    /// What is collected.
    pub kind: Kind,
    /// Tensors that are written.
    pub tensors: usize,
    /// Bytes of the output.
    pub bytes: u64,
    /// Bytes of the sums of one pass, beyond the model and what it computes.
    pub memory: u64,
    /// Passes over the data.
    pub passes: usize,
    /// Tokens of a piece, at most.
    pub window: usize,
    /// Tokens of each pass.
    pub tokens: u64,
    /// Pieces that they are cut into.
    pub pieces: u64,
}

/// What was collected.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Collected {
    /// The folder.
    pub output: PathBuf,
    /// As it was expected.
    #[serde(flatten)]
    pub forecast: Forecast,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Pieces are at most this long unless they are asked to be longer.
const USUAL_WINDOW: usize = 1024;

/// What collecting would take. Tokens are counted by encoding the data once.
///
/// # Errors
/// As [`collect`], before anything is computed.
pub fn forecast<D: LossDevice>(device: &Arc<D>, settings: &Settings<'_>) -> Result<Forecast, Error> {
    Work::open(device, settings)?.forecast()
}

/// Collects and writes.
///
/// # Errors
/// [`Error::Problems`] for a model and data that cannot be read or do not fit, and for a memory that no part fits into;
/// [`Error::Interrupted`], after which nothing is left; what computing or writing fails by.
pub fn collect<D: LossDevice>(device: &Arc<D>, settings: &Settings<'_>) -> Result<Collected, Error> {
    let begin = Instant::now();
    let Some(target) = settings.target else {
        return Err(Problem::general("no folder is given to write to").into());
    };
    check_target(target, settings.replace).map_err(|error| Error::from(error).into_problem())?;
    let mut work = Work::open(device, settings)?;
    let forecast = work.forecast()?;
    let files = inputs::weight_files(settings.model, settings.digests, settings.cancel, &|done, total| {
        (settings.on_stage)(Stage::Hashing { done, total });
    })?;
    let facts = Facts {
        kind: settings.kind,
        digests: files.into_iter().map(|file| file.sha256).collect(),
        data: work.pieces.fingerprint().to_owned(),
        tokens: forecast.tokens,
        pieces: forecast.pieces,
        window: forecast.window,
    };
    (settings.on_forecast)(&forecast);
    let mut output = Output::create(settings, target, work.shares.tensors(), &facts)?;
    work.run(forecast.tokens, &mut output)?;
    if settings.cancel.load(Relaxed) {
        return Err(Error::Interrupted);
    }
    Ok(Collected { output: output.finish()?, forecast, seconds: begin.elapsed().as_secs_f64() })
}

/// What is collected from what.
struct Work<'a, D: LossDevice> {
    settings: &'a Settings<'a>,
    model: Decoder<D>,
    pieces: Pieces,
    window: usize,
    shares: Shares,
}

impl<'a, D: LossDevice> Work<'a, D> {
    fn open(device: &Arc<D>, settings: &'a Settings<'a>) -> Result<Self, Error> {
        let model = Decoder::open(settings.model, Arc::clone(device), Use::Frozen)
            .map_err(|error| Error::from(error).into_problem())?;
        let window = settings.window.unwrap_or_else(|| model.config().positions.min(USUAL_WINDOW)).max(2);
        let pieces = Pieces::open(settings.model, settings.data, window).map_err(Error::into_problem)?;
        let units = match settings.kind {
            Kind::Gram => gram::units(&model),
            Kind::Fisher => fisher::units(&model),
        };
        let shares = Shares::new(units, settings.memory)?;
        Ok(Self { settings, model, pieces, window, shares })
    }

    fn forecast(&self) -> Result<Forecast, Error> {
        let (mut tokens, mut pieces) = (0, 0);
        self.pieces.each(self.settings.tokens, self.settings.cancel, |piece| {
            (tokens, pieces) = (tokens + piece.ids.len() as u64, pieces + 1);
            Ok(())
        })?;
        if tokens == 0 {
            return Err(Error::NoTargets.into_problem());
        }
        let tensors = self.shares.tensors();
        Ok(Forecast {
            model: self.settings.model.to_path_buf(),
            kind: self.settings.kind,
            tensors: tensors.len(),
            bytes: tensors.iter().map(write::bytes).sum(),
            memory: self.shares.memory(),
            passes: self.shares.passes().len(),
            window: self.window,
            tokens,
            pieces,
        })
    }

    /// Collects pass by pass.
    fn run(&mut self, tokens: u64, output: &mut Output) -> Result<(), Error> {
        let (begin, passes) = (Instant::now(), self.shares.passes().to_vec());
        let total = tokens * passes.len() as u64;
        for (number, pass) in passes.into_iter().enumerate() {
            let before = number as u64 * tokens;
            let on_tokens = |done: u64| {
                let seconds = begin.elapsed().as_secs_f64();
                (self.settings.on_stage)(Stage::Collecting { done: before + done, total, seconds });
            };
            let data = Data { pieces: &self.pieces, settings: self.settings, tokens, on_tokens: &on_tokens };
            match self.settings.kind {
                Kind::Gram => gram::collect(&self.model, pass, self.window, data, output)?,
                Kind::Fisher => {
                    let units: &[Unit] = &self.shares.units()[pass];
                    fisher::collect(&mut self.model, units, data, output)?;
                }
            }
        }
        Ok(())
    }
}

/// The data of one pass.
#[derive(Clone, Copy)]
struct Data<'a> {
    pieces: &'a Pieces,
    settings: &'a Settings<'a>,
    /// Of the pass.
    tokens: u64,
    /// Told how many tokens of the pass are done.
    on_tokens: &'a dyn Fn(u64),
}
