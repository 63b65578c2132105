//! Distils a teacher model into a student.
//!
//! Reading order: [`record`] (what a run leaves for people), [`error`].
#![forbid(unsafe_code)]

pub mod error;
pub mod record;

pub use error::Error;
