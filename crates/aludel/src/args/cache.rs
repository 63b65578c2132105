//! Declares the arguments of the commands about caches of teachers.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{ComputingFlags, EXIT_CODES, part};
use crate::settings::Size;

#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// Run a teacher over the data of a run, and store what it says of every token
    Capture(CaptureArguments),
    /// Say what a cache is of, and how large
    Info(CacheInfoArguments),
    /// Check every byte of a cache, and with a run how far it lies from the live teacher
    Verify(CacheVerifyArguments),
    /// Make a cache of rows that another tool stored, or rows of a cache for other tools
    Convert(CacheConvertArguments),
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct CaptureArguments {
    /// A run in YAML that names its teacher, or `-` for standard input
    pub(crate) run: PathBuf,
    /// The cache to write, or to go on with
    pub(crate) cache: PathBuf,
    /// What is stored of each token
    #[arg(long, value_enum, default_value_t = CacheMode::TopK)]
    pub(crate) mode: CacheMode,
    /// Tokens of a row, with `top_k` [default: 128]
    #[arg(long, value_name = "N")]
    pub(crate) k: Option<u32>,
    /// Draws of a row, with `sampled` [default: 12]
    #[arg(long, value_name = "N")]
    pub(crate) draws: Option<u32>,
    /// Key of the draws' random numbers [default: 0]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Temperatures that rows can be taken at [default: those of the run's objective]
    #[arg(long, value_name = "T", value_delimiter = ',', value_parser = above_zero)]
    pub(crate) temperatures: Option<Vec<f32>>,
    /// Write one part of several, as in `2/8`: each by a process of its own, on any machine
    #[arg(long, value_name = "I/N", value_parser = part, default_value = "1/1")]
    pub(crate) part: aludel_cache::Part,
    /// Bytes of one file of the cache
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    pub(crate) shard_size: Size,
    /// Leave it to the system when the files reach the disk
    #[arg(long)]
    pub(crate) no_sync: bool,
    /// Run the teacher over the data and store nothing: how fast a capture can be at the most
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) computing: ComputingFlags,
}

#[derive(Debug, Args)]
pub(crate) struct CacheInfoArguments {
    /// The cache
    pub(crate) cache: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct CacheVerifyArguments {
    /// The cache
    pub(crate) cache: PathBuf,
    /// The run that it was captured by: a sample is compared with what its teacher says now
    #[arg(long, value_name = "RUN")]
    pub(crate) run: Option<PathBuf>,
    /// Records of the sample
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub(crate) records: usize,
    #[command(flatten)]
    pub(crate) computing: ComputingFlags,
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct CacheConvertArguments {
    /// A cache; or rows of token ids with the likeliest tokens of each position: a .parquet or .jsonl
    /// file, or a folder of them, such as a capture of DistillKit
    pub(crate) input: PathBuf,
    /// The cache to write, or to go on with; or the .parquet file to write
    pub(crate) output: PathBuf,
    /// What to make of it [default: `parquet` of a cache, `cache` of anything else]
    #[arg(long, value_enum, value_name = "LAYOUT")]
    pub(crate) to: Option<CacheLayout>,
    /// The run that is trained from the cache: it says what the data are, and by its student what the
    /// ids mean; adds tokens to the rows of a cache
    #[arg(long, value_name = "RUN")]
    pub(crate) run: Option<PathBuf>,
    /// How DistillKit packed the rows: its compression_config.yaml, or its run's YAML [default:
    /// compression_config.yaml in the folder]
    #[arg(long, value_name = "FILE")]
    pub(crate) compression: Option<PathBuf>,
    /// Who spoke: a model, whose weights are hashed, or a name [default: the teacher that the run
    /// names]
    #[arg(long, value_name = "MODEL")]
    pub(crate) teacher: Option<PathBuf>,
    /// Every id is below [default: the tokenizer's]
    #[arg(long, value_name = "N")]
    pub(crate) vocabulary: Option<u32>,
    /// Keep so many of the likeliest tokens of each position [default: as many as the first row has,
    /// and more are refused; 128 of a cache of all]
    #[arg(long, value_name = "N")]
    pub(crate) k: Option<u32>,
    /// The values are logits: the tokens of a position share the whole probability
    #[arg(long)]
    pub(crate) logits: bool,
    /// Write one part of several, as in `2/8`: each by a process of its own, on any machine
    #[arg(long, value_name = "I/N", value_parser = part, default_value = "1/1")]
    pub(crate) part: aludel_cache::Part,
    /// Bytes of one file of the cache
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    pub(crate) shard_size: Size,
    /// Replace a file that is there
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Leave it to the system when the files reach the disk
    #[arg(long)]
    pub(crate) no_sync: bool,
}

/// What rows of a teacher are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheLayout {
    /// A teacher cache
    Cache,
    /// Everything that a cache has, in columns of lists
    Parquet,
    /// The likeliest tokens of each position, as DistillKit reads them
    Distillkit,
}

/// What a cache stores of each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum CacheMode {
    /// The likeliest tokens with their probabilities
    TopK,
    /// Tokens drawn from the teacher's distribution
    Sampled,
    /// All logits in 8 bits
    Int8,
    /// All logits in 4 bits
    Int4,
    /// Hidden states, with the teacher's head beside them
    Hidden,
}

/// As it is written on a command line.
impl std::fmt::Display for CacheMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.to_possible_value().map_or(Ok(()), |value| f.write_str(value.get_name()))
    }
}

fn above_zero(text: &str) -> Result<f32, String> {
    match text.trim().parse::<f32>() {
        Ok(number) if (0.01..=1000.0).contains(&number) => Ok(number),
        _ => Err("write a number from 0.01 to 1000".to_owned()),
    }
}
