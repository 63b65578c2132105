//! Extracts a LoRA adapter from a fine-tuned model and its base, with a stated error.
//!
//! In: two models as a recipe names them, and how large the adapter may be or how exact it has to be. Out: an adapter that peft loads, and a
//! [`Report`] with the error of every tensor: `|D - B A| / |D|` in Frobenius' norm, computed from the factors as they are written. `D`
//! is what the fine-tuned model has beyond its base. Factors are its leading singular vectors ([`aludel_kernels::svd`]). What has no
//! factors is saved whole as peft saves modules, or told with its norm: nothing is left out without a word.
//!
//! One tensor at a time is held in f32, with its factors, where the memory has room for it; else it is read anew for every product. The random numbers depend on the seed and the tensors' names, the bits
//! neither on threads nor on the order of tensors.
//!
//! Reading order: `treatment` (what becomes of each tensor), `difference` (how it is read), `run`, `report`, `card`.

mod card;
mod difference;
mod report;
mod run;
mod treatment;

pub use report::{Extracted, LeftOut, Report, Saved};

use std::path::Path;
use std::time::Instant;

use aludel_checkpoint::check_target;

use crate::execute::{ExecuteOptions, MergeError};
use crate::plan::{Opened, PlanOptions};
use crate::recipe::FloatType;

/// What is extracted, and how exactly.
#[derive(Clone, Debug)]
pub struct Settings<'a> {
    /// The fine-tuned model.
    pub finetuned: &'a str,
    /// The model that it comes from.
    pub base: &'a str,
    /// The highest rank of a tensor; at least 1.
    pub rank: usize,
    /// The error of a tensor that no more rank is spent on: below 1.
    pub error: Option<f64>,
    /// Singular values up to this one are left out.
    pub epsilon: f64,
    /// Whether both factors get the root of each singular value; else A gets all of it.
    pub distribute_scale: bool,
    /// Modules that match one of these get factors; all do where there are none.
    pub include: &'a [String],
    /// Modules that match one of these do not.
    pub exclude: &'a [String],
    /// Modules that are saved whole, by their names or last words.
    pub save: &'a [String],
    /// Whether embeddings and heads get factors as well, instead of being saved whole.
    pub embed_lora: bool,
    /// Whether what has no factors is left out instead of being saved whole.
    pub skip_undecomposable: bool,
    /// The type of the factors.
    pub dtype: FloatType,
}

/// Extracts.
///
/// # Errors
/// [`MergeError`]; the target is then as it was before.
pub fn extract(
    settings: &Settings<'_>,
    target: &Path,
    options: &PlanOptions,
    execute: &ExecuteOptions<'_>,
) -> Result<Report, MergeError> {
    let start = Instant::now();
    check_target(target, execute.replace)?;
    let opened = Opened::open(&[settings.finetuned, settings.base], &options.hub)?;
    let treated = treatment::treat(&opened, settings)?;
    let report = run::run(&opened, treated, settings, (target, options), execute)?;
    Ok(Report { seconds: start.elapsed().as_secs_f64(), ..report })
}
