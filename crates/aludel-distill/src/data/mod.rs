//! Turns files of texts and conversations into sequences of tokens.
mod format;

pub use format::Format;
