//! Declares the flags that several commands have, and the values that they take.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::settings::{Size, Tile};

/// Where models are computed.
#[derive(Debug, Args)]
pub(crate) struct ComputingFlags {
    /// Where models are computed: `cpu`, or, by `distill` and `eval`, `cuda` (or `cuda:1`, ...)
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: DeviceName,
    /// Threads that compute; no result depends on it [default: one for each core]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
}

/// A device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceName {
    Cpu,
    /// A GPU by its position; without one, the first, or of several processes on a machine that of the process's number.
    Cuda(Option<usize>),
}

impl std::str::FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(None)),
            other => position(other, "cuda")
                .map(|ordinal| Self::Cuda(Some(ordinal)))
                .ok_or_else(|| "write cpu, cuda or cuda:N".to_owned()),
        }
    }
}

/// The position of a GPU: `cuda` is the first one that is reached so, `cuda:1` the second.
pub(super) fn position(text: &str, reached_by: &str) -> Option<usize> {
    match text.strip_prefix(reached_by)? {
        "" => Some(0),
        rest => rest.strip_prefix(':')?.parse().ok(),
    }
}

pub(super) fn part(text: &str) -> Result<aludel_cache::Part, String> {
    let numbers =
        text.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
    match numbers {
        Some((number, of)) if (1..=of).contains(&number) => Ok(aludel_cache::Part { number, of }),
        _ => Err("write the part's number and how many there are, as in `2/8`".to_owned()),
    }
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=1.0).contains(&number) => Ok(number),
        _ => Err("write a number from 0 to 1".to_owned()),
    }
}

pub(super) fn magnitude(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
        _ => Err("write a number of at least 0".to_owned()),
    }
}

/// How models are read that nothing is written of.
#[derive(Debug, Args)]
pub(crate) struct ReadingFlags {
    /// Threads that compute; no result depends on it [default: one for each core]
    #[arg(long, short = 'j', value_name = "N", alias = "num-threads")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Memory that the work may take beyond the process itself
    #[arg(long, value_name = "SIZE", default_value = "128MiB")]
    pub(crate) memory: Size,
    /// Elements per unit of work; no result depends on it
    #[arg(long, value_name = "ELEMENTS", hide = true)]
    pub(crate) tile: Option<Tile>,
}

/// What shapes a plan.
#[derive(Debug, Args)]
pub(crate) struct PlanningFlags {
    /// Threads that compute [default: one for each core]
    #[arg(long, short = 'j', value_name = "N", alias = "num-threads")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Memory that the work may take beyond the process itself
    #[arg(long, value_name = "SIZE", default_value = "128MiB")]
    pub(crate) memory: Size,
    /// The most weights in one output file
    #[arg(long, value_name = "SIZE", default_value = "5GB", alias = "out-shard-size")]
    pub(crate) shard_size: Size,
    /// Compute with NaN and infinities in the models instead of refusing them
    #[arg(long)]
    pub(crate) allow_nan: bool,
    /// Elements per unit of work; the output does not depend on it
    #[arg(long, value_name = "ELEMENTS", hide = true)]
    pub(crate) tile: Option<Tile>,
}

#[derive(Debug, Args)]
pub(crate) struct SeedFlag {
    /// Key of the random masks of DARE; the same seed gives the same output everywhere
    #[arg(long, value_name = "N", default_value_t = 0, alias = "random-seed")]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct StagesFlag {
    /// Write each named recipe of a file with several into a folder of its own in DIR, one merge after the other,
    /// instead of all of them in one pass
    #[arg(long, short = 'I', value_name = "DIR")]
    pub(crate) intermediate_dir: Option<PathBuf>,
}

/// How an output folder comes to be.
#[derive(Debug, Args)]
pub(crate) struct WritingFlags {
    /// Replace the output folder if it exists, once the new one is complete
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Leave it to the system when the files reach the disk: faster, but a power cut soon after may lose them
    #[arg(long)]
    pub(crate) no_sync: bool,
}

/// How an output folder comes to be that may be begun by one run and ended by another.
#[derive(Debug, Args)]
pub(crate) struct ResumableFlags {
    #[command(flatten)]
    pub(crate) folder: WritingFlags,
    /// Go on with what a run that was interrupted or failed has left; begin where there is nothing
    #[arg(long)]
    pub(crate) resume: bool,
    #[command(flatten)]
    pub(crate) pipeline: PipelineFlags,
}

/// What to do without, to measure what it is good for.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct PipelineFlags {
    /// Read, compute and write in turn instead of all at once; slower, and for measuring by how much
    #[arg(long)]
    pub(crate) no_overlap: bool,
    /// Merge small tensors one at a time, and on a GPU all, instead of many at once; slower, and for measuring by how much
    #[arg(long)]
    pub(crate) no_group: bool,
}

/// An element type by torch's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FloatName {
    #[value(alias = "f32", alias = "fp32")]
    Float32,
    #[value(alias = "f16", alias = "fp16")]
    Float16,
    #[value(alias = "bf16")]
    Bfloat16,
}

/// What weights are written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WeightName {
    #[value(alias = "f32", alias = "fp32")]
    Float32,
    #[value(alias = "f16", alias = "fp16")]
    Float16,
    #[value(alias = "bf16")]
    Bfloat16,
    Fp8,
}

impl WeightName {
    /// The type that all weights have; `None` where linear ones have another.
    pub(crate) const fn float(self) -> Option<FloatName> {
        match self {
            Self::Float32 => Some(FloatName::Float32),
            Self::Float16 => Some(FloatName::Float16),
            Self::Bfloat16 => Some(FloatName::Bfloat16),
            Self::Fp8 => None,
        }
    }
}
