//! Tests of the crate through its public interface, as one program.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions too")]

mod page;
mod statistics;
mod training;
