//! Tells what happens in a run while it happens.

use indexmap::IndexMap;

/// Something that happened in a run.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// So many bytes of so many of the inputs are hashed.
    Hashing {
        /// Done.
        done: u64,
        /// In all.
        total: u64,
    },
    /// The models are loaded; training begins, or goes on, after so many steps.
    Begun {
        /// Steps taken earlier.
        done: u64,
        /// Steps of the whole run.
        steps: u64,
        /// Parameters that are trained.
        trained: u64,
        /// Parameters of the student.
        parameters: u64,
    },
    /// A step was taken.
    Step(StepEvent),
    /// Held-out documents are being scored: so many of so many tokens.
    Evaluating {
        /// Done.
        done: u64,
        /// In all.
        total: u64,
    },
    /// The student was evaluated.
    Evaluated {
        /// After so many steps.
        step: u64,
        /// What was measured.
        values: IndexMap<String, f64>,
    },
    /// A checkpoint was written.
    Saved {
        /// After so many steps.
        step: u64,
    },
    /// The output is being written.
    Writing,
    /// What was chosen so that the run fits the memory.
    Chosen(String),
    /// Something that the user should know.
    Warning(String),
}

/// A step that was taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepEvent {
    /// Its number, from 1.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// The objective.
    pub loss: f64,
    /// Of this step.
    pub learning_rate: f64,
    /// Steps taken since the run began or went on.
    pub taken: u64,
    /// Tokens that went through the student in them.
    pub tokens: u64,
    /// Seconds that they took, evaluations and checkpoints not counted.
    pub seconds: f64,
}
