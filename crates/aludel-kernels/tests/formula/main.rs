//! Holds what executes formulas on the CPU to the scalar interpreter, as one program.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions too")]

mod executor;
mod scaled;
