//! Reads YAML documents whose every part has a place, and says what is wrong with them.
//!
//! In: text of any origin. Out: a tree of nodes that know their line and column, walked by cursors that know the path, and
//! problems that a person can act on. What a document means (a merge recipe, a training run) is not known here.
//!
//! Reading order: [`problem`] (what can be wrong, and where), [`tree`] (YAML to nodes), [`cursor`] (walking them),
//! [`scalar`] (numbers, truth values, text), [`words`] (the known word nearest to an unknown one). Beside them, [`page`] has what
//! all pages of HTML have in common.
#![forbid(unsafe_code)]

pub mod cursor;
pub mod page;
pub mod problem;
pub mod scalar;
pub mod tree;
pub mod words;

pub use cursor::{Cursor, Key, Located};
pub use problem::{Place, Problem, Problems};
pub use scalar::Scalar;
pub use tree::{Content, Node};
pub use words::{listed, nearest, quoted};
