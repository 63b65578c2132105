//! Turns arguments as typed into settings as meant, once.
//!
//! In: the structures of [`crate::args`], the environment and the terminal. Out: values that commands use as they are.

mod planning;
mod size;
mod talk;

pub(crate) use planning::{Tile, float_type, plan_options, reading_options};
pub(crate) use size::Size;
pub(crate) use talk::{Display, Talk, Verbosity};
