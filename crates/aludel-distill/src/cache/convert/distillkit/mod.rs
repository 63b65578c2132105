//! Reads how DistillKit packs a teacher's likeliest tokens, in both generations of its captures.
//!
//! In: the configuration of a capture, and bytes or words of one position. Out: ids and log-probabilities, the likeliest first. The layouts
//! are those that arcee-ai/DistillKit writes; files and columns are not known here.
//!
//! Reading order: `config` (what was configured), `bits` (whole numbers of few bits, and types of numbers), `packed` (the newer layout),
//! `fitted` (the older one).

mod bits;
mod config;
mod fitted;
mod packed;

pub(super) use config::Compression;
pub(super) use fitted::Fitted;
pub(super) use packed::Packed;
