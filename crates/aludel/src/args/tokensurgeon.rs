//! Declares the arguments of `tokensurgeon`, which are mergekit's.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{EXIT_CODES, MergekitFlags, PlanningFlags, ResumableFlags, SeedFlag, magnitude};

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct TokensurgeonArguments {
    /// The model that gets another tokenizer: a folder, or whatever else may stand for a model in a recipe
    pub(crate) model: String,
    /// The model whose tokenizer it gets
    pub(crate) donor: String,
    /// The model folder to write; it appears under this name only when it is complete
    pub(crate) output: PathBuf,
    /// How rows of tokens come about that the model does not know
    #[arg(long, short, value_enum, default_value_t = Approximations::Omp, value_name = "METHOD")]
    pub(crate) approximation_method: Approximations,
    /// How many known tokens an unknown one is made of, with `omp` at the most
    #[arg(long, short, value_name = "N", default_value = "64")]
    pub(crate) k: NonZeroUsize,
    /// With `common_interpolation`, find the nearest tokens by cosine instead of distance
    #[arg(long, short, overrides_with = "no_cosine_similarity")]
    pub(crate) cosine_similarity: bool,
    #[arg(long, hide = true)]
    no_cosine_similarity: bool,
    /// With `common_interpolation`, how the nearest tokens are weighed
    #[arg(long, short, value_enum, default_value_t = WeightScheme::DistanceProportional, value_name = "SCHEME")]
    pub(crate) weight_scheme: WeightScheme,
    /// With `subword`, how the rows of a token's pieces become one
    #[arg(long, short, value_enum, default_value_t = SubwordMethod::Mean, value_name = "METHOD")]
    pub(crate) subword_method: SubwordMethod,
    /// Give an unknown token the row of the longest token that it begins with, in these tables
    #[arg(long, value_enum, default_value_t = Tables::No, value_name = "TABLES")]
    pub(crate) prefix_match: Tables,
    /// Take a byte's token and that of its character for the same, in these tables
    #[arg(long, value_enum, default_value_t = Tables::No, value_name = "TABLES")]
    pub(crate) byte_match: Tables,
    /// Add normal noise of this deviation to rows of unknown tokens
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = magnitude)]
    pub(crate) new_vocab_noise: f64,
    /// Multiply rows of unknown tokens by this, after any noise
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = finite)]
    pub(crate) new_vocab_scale: f64,
    /// mergekit's; how many are approximated at once follows from the memory
    #[arg(long, hide = true, value_name = "N", allow_hyphen_values = true)]
    batch_size: Option<i64>,
    /// mergekit's filter of tokens that are hardly trained
    #[arg(long, hide = true, overrides_with = "no_magikarp")]
    pub(crate) magikarp: bool,
    #[arg(long, hide = true)]
    no_magikarp: bool,
    #[command(flatten)]
    pub(crate) planning: PlanningFlags,
    #[command(flatten)]
    pub(crate) seed: SeedFlag,
    #[command(flatten)]
    pub(crate) writing: ResumableFlags,
    #[command(flatten)]
    pub(crate) mergekit: MergekitFlags,
}

/// How rows come about, by mergekit's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Approximations {
    /// Combined of tokens that both models know, by orthogonal matching pursuit in the donor's table
    Omp,
    /// Combined of the tokens that both know and that are nearest in the donor's table
    CommonInterpolation,
    /// Made of the pieces that the model's own tokenizer cuts the token into
    Subword,
    /// The mean of all rows
    Mean,
    /// Zeros
    Zero,
    /// Normal random numbers of deviation 1
    Randn,
}

/// How the nearest tokens are weighed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum WeightScheme {
    /// By nearness
    DistanceProportional,
    /// By least squares, adding up to 1
    Barycentric,
    /// By least squares
    LeastSquares,
}

/// How the rows of pieces become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum SubwordMethod {
    /// Their mean
    Mean,
    /// Their sum
    Sum,
    /// Their mean, the last piece weighing most in embeddings, the first in heads
    WeightedMean,
    /// The last piece in embeddings, the first in heads
    FirstLast,
}

/// The tables that something holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Tables {
    No,
    Embed,
    LmHead,
    Yes,
}

fn finite(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => Err("write a number".to_owned()),
    }
}
