//! Holds the decoder against what transformers computes from tiny seeded models of every family
//! (`tests/golden/decoder`), and against itself: packing, checkpointing, threads, generation, saving, adapters.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod adapters;
mod consistency;
mod families;
mod grams;
mod loading;
mod students;
mod support;
mod text;
