//! Executes formulas on the CPU: blocks that stay in the first caches, vector instructions, any number of threads.
//!
//! In: a formula, the geometry of its tensors and a [`Source`] of their bytes. Out: encoded tiles of the output. An
//! [`Evaluation`] hands out [`Wave`]s of independent units; whoever owns the threads runs the units in any order. What
//! a unit computes depends on nothing but its index, and partial results are combined in a fixed order, so the bytes
//! are the same for any thread count and tile size. Threads, files and memory limits are the caller's.

mod ahead;
mod bands;
mod block;
mod cholesky;
mod codec;
mod compiled;
mod dispatch;
mod evaluation;
mod fused;
mod lanes;
mod low_rank;
mod machine;
mod ordinal;
mod patterns;
mod program;
mod rank;
mod reduce;
mod sample;
mod tile;
mod values;
mod wave;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_random;

pub use block::{BLOCK, CHUNK, Geometry, NonFinite, Source};
pub use cholesky::{Factor, Indefinite, Panel, Symmetric};
pub use codec::decode_stored;
pub use compiled::Compiled;
pub use dispatch::{Level, level};
pub use evaluation::{Evaluation, Job};
pub use low_rank::low_rank;
pub use machine::Scratch;
pub use program::registers_of;
pub(crate) use program::{Electors, Instruction, MaskSlot, Operand, Program, Register};
pub(crate) use rank::Cut;
pub(crate) use reduce::Fold;
pub use tile::{TILE, Tile};
pub use values::Statistic;
pub(crate) use values::Values;
pub use wave::{Unit, Wave, WaveKind};
