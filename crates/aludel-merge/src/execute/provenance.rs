//! Refuses statistics that were collected from another model than they are used with.
//!
//! In: a plan, and digests of its sources' files as far as they are known. Out: nothing, or which of them do not belong
//! together. Statistics that do not say what they are of are taken as they are.

use super::MergeError;
use crate::plan::Plan;

/// What headers call the digests of a model's weight files.
const MODEL: &str = "model_sha256";

/// Holds what statistics say of their model against the files of that model; `digest` gives the digest of a file of a source,
/// where it is known.
pub(super) fn check(plan: &Plan, digest: impl Fn(usize, usize) -> Option<String>) -> Result<(), MergeError> {
    for &(statistics, model) in &plan.statistics {
        let (statistics, files) = (&plan.sources[statistics], plan.sources[model].checkpoint.files());
        let Some(said) = statistics.checkpoint.metadata().get(MODEL) else { continue };
        let said: Vec<&str> = said.split(',').collect();
        let is_other =
            |(file, said): (usize, &&str)| digest(model, file).is_some_and(|known| known != **said);
        if said.len() != files.len() || said.iter().enumerate().any(is_other) {
            let model = plan.sources[model].model.clone();
            return Err(MergeError::OtherModel { statistics: statistics.model.clone(), model });
        }
    }
    Ok(())
}
