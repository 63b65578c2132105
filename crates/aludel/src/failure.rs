//! Gives every failure its exit code.
//!
//! 0 is success and 2 is the argument parser's; the others are decided here from the error's type, never from its text.

use std::fmt;

use aludel_document::Problems;
use aludel_merge::execute::MergeError;

/// A failure while running.
const FAILED: u8 = 1;
/// A refusal before any work was done.
const REFUSED: u8 = 3;
/// What shells add a signal's number to.
const SIGNALLED: u8 = 128;

/// Everything that keeps a command from starting.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The recipe's name, to go in front of places in it; `None` when the user wrote no recipe.
    pub(crate) recipe: Option<String>,
    /// At least one.
    pub(crate) problems: Problems,
}

/// A run that a signal ended.
#[derive(Debug)]
pub(crate) struct Interrupted {
    /// The signal's number.
    pub(crate) signal: u8,
    /// What is left, and how to go on with it; `None` where nothing is.
    pub(crate) left: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.count();
        write!(f, "{count} problem{}, nothing was written", if count == 1 { "" } else { "s" })
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.left {
            Some(left) => write!(f, "interrupted, {left}"),
            None => f.write_str("interrupted, nothing was written"),
        }
    }
}

impl std::error::Error for Refusal {}
impl std::error::Error for Interrupted {}

/// Why work on models ended that the merging library did: by the signal that was received, and what that left; refused; or failed.
/// What fails after a signal fails because of it.
pub(crate) fn of_merging(error: MergeError, signal: Option<u8>, left: Option<String>) -> anyhow::Error {
    match (error, signal) {
        (_, Some(signal)) => Interrupted { signal, left }.into(),
        (MergeError::Problems(problems), None) => Refusal { recipe: None, problems }.into(),
        (error, None) => error.into(),
    }
}

/// The same of the distilling library, which says itself that it was interrupted.
pub(crate) fn of_distilling(
    error: aludel_distill::Error,
    signal: Option<u8>,
    left: Option<String>,
) -> anyhow::Error {
    match (error, signal) {
        (aludel_distill::Error::Interrupted, Some(signal)) => Interrupted { signal, left }.into(),
        (aludel_distill::Error::Problems(problems), _) => Refusal { recipe: None, problems }.into(),
        (error, _) => error.into(),
    }
}

/// The exit code of an error.
pub(crate) fn code_of(error: &anyhow::Error) -> u8 {
    if error.is::<Refusal>() {
        return REFUSED;
    }
    if let Some(interrupted) = error.downcast_ref::<Interrupted>() {
        return SIGNALLED + interrupted.signal;
    }
    if let Some(aludel_distill::Error::Problems(_)) = error.downcast_ref() {
        return REFUSED;
    }
    let checkpoint = match error.downcast_ref::<MergeError>() {
        Some(MergeError::Problems(_)) => return REFUSED,
        Some(MergeError::Checkpoint(error)) => Some(error),
        _ => error.downcast_ref::<aludel_checkpoint::Error>(),
    };
    let checkpoint = checkpoint.or_else(|| match error.downcast_ref()? {
        aludel_distill::Error::Checkpoint(error) => Some(error),
        _ => None,
    });
    match checkpoint {
        Some(
            aludel_checkpoint::Error::TargetExists { .. } | aludel_checkpoint::Error::OtherOutput { .. },
        ) => REFUSED,
        _ => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use aludel_document::Problem;

    use super::*;

    #[test]
    fn codes_follow_from_the_kind_of_failure() {
        let problems = Problems::from(Problem::general("too little memory"));
        let refusal = Refusal { recipe: None, problems: problems.clone() };
        assert_eq!(refusal.to_string(), "1 problem, nothing was written");
        assert_eq!(code_of(&refusal.into()), 3);
        assert_eq!(code_of(&MergeError::Problems(problems).into()), 3);
        let exists = || aludel_checkpoint::Error::TargetExists { path: "out".into(), detail: "full".into() };
        assert_eq!(code_of(&exists().into()), 3);
        assert_eq!(code_of(&MergeError::Checkpoint(exists()).into()), 3);
        let damaged = aludel_checkpoint::Error::Damaged { file: "a".into(), detail: "short".into() };
        assert_eq!(code_of(&damaged.into()), 1);
        assert_eq!(code_of(&anyhow::anyhow!("anything else")), 1);
        assert_eq!(code_of(&Interrupted { signal: 2, left: None }.into()), 130);
        assert_eq!(code_of(&Interrupted { signal: 15, left: None }.into()), 143);
    }
}
