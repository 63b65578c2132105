//! Combines LoRA adapters of one base into one adapter, as peft's `add_weighted_adapter` does.
//!
//! In: adapters, a weight for each, and how they are combined. Out: an adapter that peft loads, whose factor is 1 (`lora_alpha` is the rank), and a
//! [`Report`]. With `s` the factor of an adapter in a module and `w` its weight, the modules of the output are
//!
//! - `cat`: `B = [B1 B2 ...]`, `A = [w1 s1 A1; w2 s2 A2; ...]`: exactly the weighted sum of the adapters, of a rank that adds up.
//! - `linear`, `ties`, `dare_linear`, `dare_ties`, `magnitude_prune`: A and B are combined each for itself, A with the weights
//!   `sign(w s) sqrt(|w s|)` and B with `sqrt(|w s|)`. That is no sum of the products: it has products of one adapter's B with another's A.
//! - the same names with `_svd`, and `svd` for `linear`: the products `s B A` are combined with the weights `w`, and the leading singular vectors
//!   of the result are taken, whose error is stated.
//!
//! `ties` (Yadav et al. 2023, as peft has it): of each adapter the `density` of the largest magnitudes; a sign for every element, that of
//! their sum (`total`) or of more of them (`frequency`), before weights count; then the mean over the adapters of that sign, with
//! their weights. `dare` (Yu et al. 2023): elements are kept at random and divided by `density`. This `ties` is not that of a recipe, which
//! weighs before it elects, and divides by the weights.
//!
//! An adapter without a module does not count in it. Reading order: `matched` (modules and what keeps adapters apart), `mix` (the arithmetic),
//! `run`.

mod matched;
mod mix;
mod run;

pub use mix::{Mixing, Sign};
pub use run::{Combined, Report};

use std::path::Path;

use crate::execute::{ExecuteOptions, MergeError};
use crate::plan::PlanOptions;
use crate::recipe::FloatType;

/// What is combined, and how.
#[derive(Clone, Debug)]
pub struct Settings<'a> {
    /// Adapters, by folder or name on a hub, and their weights.
    pub adapters: &'a [(String, f64)],
    /// What becomes of one number of each adapter.
    pub mixing: Mixing,
    /// What the numbers are.
    pub of: Of,
    /// The type that is written; the first adapter's where there is none.
    pub dtype: Option<FloatType>,
}

/// What is mixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// The factors, put side by side.
    Concatenated,
    /// Each factor for itself.
    Factors,
    /// The products, factored anew with this rank; the highest of the adapters in a module where there is none.
    Products {
        /// The rank.
        rank: Option<usize>,
    },
}

/// Combines.
///
/// # Errors
/// [`MergeError`]; the target is then as it was before.
pub fn combine(
    settings: &Settings<'_>,
    target: &Path,
    options: &PlanOptions,
    execute: &ExecuteOptions<'_>,
) -> Result<Report, MergeError> {
    aludel_checkpoint::check_target(target, execute.replace)?;
    let matched = matched::matched(settings, &options.hub)?;
    run::run(&matched, settings, target, options, execute)
}
