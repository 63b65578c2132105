//! Holds the distillation losses to their specification in f64, to torch, and to differences of their own values: through
//! the public functions, on the CPU.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod golden;
mod head;
mod hidden;
mod rows;
mod sorted;
mod sparse;
mod support;
mod taid;
