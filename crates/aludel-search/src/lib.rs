//! Searches for the numbers of a recipe that make the best of it.
//!
//! In: the text of a recipe, which of its numbers may vary between which bounds, and a function that scores a text. Out: the best text, and a
//! record of every candidate from which a search goes on after it was killed. What a recipe is and how it is scored is not known here;
//! nor is the strategy of the search (CMA-ES), which is a library's.
//!
//! Reading order: [`variable`] (what varies), [`template`] (the recipe with other numbers), [`log`] (the record), [`search`](mod@search), [`page`]
//! (the record as HTML).
#![forbid(unsafe_code)]

pub mod log;
pub mod page;
pub mod search;
pub mod template;
pub mod variable;

pub use log::{Evaluation, Log, LogError};
pub use search::{End, Found, SearchError, Settings, search};
pub use template::Template;
pub use variable::Variable;
