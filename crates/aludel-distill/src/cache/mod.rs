//! Distils offline: what a teacher says is stored once, and students are trained from it.
//!
//! In: a run whose data a teacher went through. Out: a cache ([`capture()`]), and rows for the steps of a training ([`CachedTeacher`]).
//! A record is of one piece of one row of the data: however a run shuffles and packs, its sequences are made of the same pieces, and no
//! piece sees another. The format is [`aludel_cache`]'s; what a row means for a loss is the kernels'.
//!
//! Reading order: [`identity`] (what a cache is of), `sources` (pieces), [`mod@capture`], `local` and `served` (who is asked), `store` (written meanwhile), [`taught`]
//! (rows for a step), `head` (of hidden states), [`mod@verify`], [`convert`] (from and to what other tools store).

pub mod capture;
pub mod convert;
mod head;
pub mod identity;
mod local;
mod served;
mod sources;
mod store;
pub mod taught;
pub mod verify;

pub use capture::{Capture, Captured, Stage, Wanted, capture};
#[doc(hidden)]
pub use served::read_answer;
pub use taught::{CachedRows, CachedTeacher};
pub use verify::{Distance, Verified, verify};
