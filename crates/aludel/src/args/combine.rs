//! Declares the arguments of `merge-lora`: those of peft's `add_weighted_adapter`, by its names.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{EXIT_CODES, FloatName, SeedFlag, WritingFlags};

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct CombineArguments {
    /// The adapter's folder to write; it appears under this name only when it is complete
    pub(crate) output: PathBuf,
    /// An adapter in peft's layout, or `owner/name[@revision]` of one on a hub; given several times
    #[arg(long, short, value_name = "ADAPTER", required = true)]
    pub(crate) adapter: Vec<String>,
    /// The weight of an adapter, below 0 to take it away; given once for each, in their order [default: 1]
    #[arg(long, short, value_name = "X", allow_negative_numbers = true, value_parser = number)]
    pub(crate) weight: Vec<f64>,
    /// How they are combined, by the names of peft's combination types
    #[arg(long, value_enum, default_value_t = CombinationName::Cat)]
    pub(crate) method: CombinationName,
    /// The share of each adapter that is kept, with `ties`, `dare` and `magnitude_prune`
    #[arg(long, value_name = "X", default_value_t = 0.5, value_parser = share_above_zero)]
    pub(crate) density: f64,
    /// Whose sign counts, with `ties`
    #[arg(long, value_enum, default_value_t = SignName::Total)]
    pub(crate) majority_sign_method: SignName,
    /// The rank of the output, with `svd` [default: the highest of the adapters]
    #[arg(long, alias = "svd-rank", value_name = "N")]
    pub(crate) rank: Option<NonZeroUsize>,
    /// The type that is written [default: the first adapter's]
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<FloatName>,
    /// Threads that compute; no result depends on it [default: one for each core]
    #[arg(long, short = 'j', value_name = "N", alias = "num-threads")]
    pub(crate) threads: Option<NonZeroUsize>,
    #[command(flatten)]
    pub(crate) seed: SeedFlag,
    #[command(flatten)]
    pub(crate) writing: WritingFlags,
}

/// How adapters are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum CombinationName {
    /// Factors side by side: exactly the weighted sum, of a rank that adds up
    Cat,
    /// Weighted sums of factors
    Linear,
    /// Weighted sum of products, factored anew
    Svd,
    /// Of factors, the largest magnitudes of the sign of most
    Ties,
    /// As `ties`, of products
    TiesSvd,
    /// Of factors, elements kept at random
    DareLinear,
    /// As `dare_linear`, of products
    DareLinearSvd,
    /// Of factors, elements kept at random, of the sign of most
    DareTies,
    /// As `dare_ties`, of products
    DareTiesSvd,
    /// Of factors, the largest magnitudes
    MagnitudePrune,
    /// As `magnitude_prune`, of products
    MagnitudePruneSvd,
}

/// Whose sign counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SignName {
    /// That of the sum
    Total,
    /// That of more adapters
    Frequency,
}

fn number(text: &str) -> Result<f64, String> {
    text.parse::<f64>().ok().filter(|number| number.is_finite()).ok_or_else(|| "write a number".to_owned())
}

fn share_above_zero(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1.0 => Ok(number),
        _ => Err("write a number above 0 and up to 1".to_owned()),
    }
}
