//! Declares the arguments of `extract-lora`: its own, and mergekit's names of them.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;

use super::{EXIT_CODES, FloatName, MergekitFlags, SeedFlag, Size, WritingFlags, magnitude};

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct ExtractArguments {
    /// The fine-tuned model: a folder, a file of weights, or whatever else may stand for a model in a recipe
    #[arg(value_name = "FINETUNED", required_unless_present = "model")]
    finetuned: Option<String>,
    /// The model that it comes from
    #[arg(value_name = "BASE", required_unless_present = "base_model")]
    base: Option<String>,
    /// The adapter's folder to write; it appears under this name only when it is complete
    #[arg(value_name = "OUT", required_unless_present = "out_path")]
    output: Option<PathBuf>,
    /// mergekit's name of FINETUNED
    #[arg(long, hide = true, conflicts_with = "finetuned", requires_all = ["base_model", "out_path"])]
    model: Option<String>,
    /// mergekit's name of BASE
    #[arg(long, hide = true, conflicts_with = "base", requires_all = ["model", "out_path"])]
    base_model: Option<String>,
    /// mergekit's name of OUT
    #[arg(long, hide = true, conflicts_with = "output", requires_all = ["model", "base_model"])]
    out_path: Option<PathBuf>,
    /// The highest rank of a tensor
    #[arg(long, alias = "max-rank", value_name = "N", default_value = "128")]
    pub(crate) rank: NonZeroUsize,
    /// Spend no more rank on a tensor than brings its relative error down to this
    #[arg(long, value_name = "X", value_parser = part)]
    pub(crate) error: Option<f64>,
    /// Leave out singular values up to this one
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = magnitude)]
    pub(crate) sv_epsilon: f64,
    /// Extract only modules whose names match; may be given several times
    #[arg(long, short, value_name = "REGEX")]
    pub(crate) include_regex: Vec<String>,
    /// Leave out modules whose names match; may be given several times
    #[arg(long, short, value_name = "REGEX")]
    pub(crate) exclude_regex: Vec<String>,
    /// Save this module whole, by its name or the last word of it; may be given several times
    #[arg(long, value_name = "MODULE")]
    pub(crate) save_module: Vec<String>,
    /// Extract embeddings and heads too, instead of saving them whole
    #[arg(long, overrides_with = "no_embed_lora")]
    pub(crate) embed_lora: bool,
    #[arg(long, hide = true)]
    no_embed_lora: bool,
    /// Leave out what has no factors (norms, convolutions), instead of saving it whole
    #[arg(long)]
    pub(crate) skip_undecomposable: bool,
    #[arg(long, hide = true)]
    distribute_scale: bool,
    /// Give the singular values to A alone, instead of their roots to A and B
    #[arg(long, overrides_with = "distribute_scale")]
    pub(crate) no_distribute_scale: bool,
    /// The type of the factors; what is saved whole keeps its own
    #[arg(long, value_enum, default_value_t = FloatName::Float32)]
    pub(crate) dtype: FloatName,
    /// Threads that compute; no result depends on it [default: one for each core]
    #[arg(long, short = 'j', value_name = "N", alias = "num-threads")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Memory for a tensor's difference: one that is larger is read again for every product; no result depends on it
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub(crate) memory: Size,
    #[command(flatten)]
    pub(crate) seed: SeedFlag,
    #[command(flatten)]
    pub(crate) writing: WritingFlags,
    /// mergekit's; an adapter is one file
    #[arg(long, hide = true, value_name = "SIZE")]
    out_shard_size: Option<String>,
    #[command(flatten)]
    pub(crate) mergekit: MergekitFlags,
}

impl ExtractArguments {
    /// The fine-tuned model.
    pub(crate) fn finetuned(&self) -> &str {
        self.finetuned.as_deref().or(self.model.as_deref()).unwrap_or_default()
    }

    /// Its base.
    pub(crate) fn base(&self) -> &str {
        self.base.as_deref().or(self.base_model.as_deref()).unwrap_or_default()
    }

    /// The adapter's folder.
    pub(crate) fn output(&self) -> PathBuf {
        self.output.clone().or_else(|| self.out_path.clone()).unwrap_or_default()
    }
}

/// Above 0 and below 1.
fn part(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number < 1.0 => Ok(number),
        _ => Err("write a number between 0 and 1".to_owned()),
    }
}
