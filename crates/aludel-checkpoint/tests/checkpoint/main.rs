//! Tests of the crate through its public interface, as one program.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions too")]

mod files;
mod gguf;
mod gguf_hostile;
mod hostile;
mod opening;
mod planning;
mod properties;
mod staging;
mod torch;
