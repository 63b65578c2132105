//! Declares the arguments of `aludel search`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use aludel_search::Variable;
use clap::Args;

use super::EXIT_CODES;
use super::flags::{DeviceName, ReadingFlags, SeedFlag};

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct SearchArguments {
    /// A recipe in mergekit's YAML, or `-` for standard input; model paths in it start at the current folder
    pub(crate) recipe: PathBuf,
    /// A number of the recipe that varies, by its place and its bounds, as in `models[0].parameters.weight=0..1`; may be given several
    /// times. Places with a comma between them get the same number
    #[arg(long, value_name = "PLACE=LOW..HIGH", required = true)]
    pub(crate) vary: Vec<Variable>,
    /// Held-out text (.txt), JSON lines (.jsonl) or Parquet that merges are scored on; may be given several times
    #[arg(long, value_name = "FILE", required = true)]
    pub(crate) data: Vec<PathBuf>,
    /// Score by the divergence of this model from the merge, KL(MODEL, merge), instead of the loss on the text
    #[arg(long, value_name = "MODEL")]
    pub(crate) against: Option<PathBuf>,
    /// The folder for the best recipe, the record and the page [default: the recipe's name with `.search`]
    #[arg(long, short, value_name = "FOLDER")]
    pub(crate) output: Option<PathBuf>,
    /// Merges to score at the most
    #[arg(long, short = 'n', value_name = "N", default_value = "100")]
    pub(crate) evaluations: NonZeroUsize,
    /// Merges of a generation [default: 4 and thrice the logarithm of how many numbers vary]
    #[arg(long, value_name = "N")]
    pub(crate) population: Option<NonZeroUsize>,
    /// How far the first candidates lie from the recipe's own numbers, as a share of the ranges
    #[arg(long, value_name = "SHARE", default_value_t = 0.3, value_parser = step)]
    pub(crate) step: f64,
    /// Tokens of a window; longer documents are scored in windows that overlap [default: the positions of the model, 1024 at the
    /// most]
    #[arg(long, value_name = "TOKENS")]
    pub(crate) window: Option<NonZeroUsize>,
    /// Tokens from the beginning of a window to that of the next [default: half a window]
    #[arg(long, value_name = "TOKENS")]
    pub(crate) stride: Option<NonZeroUsize>,
    /// Go on with a search that was interrupted, or that had fewer evaluations; begin where there is none
    #[arg(long, conflicts_with = "force")]
    pub(crate) resume: bool,
    /// Discard an earlier search
    #[arg(short, long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) seed: SeedFlag,
    /// Compute with NaN and infinities in the models instead of refusing them
    #[arg(long)]
    pub(crate) allow_nan: bool,
    /// Where merges are made and scored: `cpu`, or `cuda` (or `cuda:1`, ...), in whose memory the models then stay
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: DeviceName,
    #[command(flatten)]
    pub(crate) reading: ReadingFlags,
}

fn step(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1.0 => Ok(number),
        _ => Err("write a number above 0 and at most 1".to_owned()),
    }
}
