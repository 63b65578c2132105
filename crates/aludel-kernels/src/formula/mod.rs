//! Describes a merge method as a formula: reductions over elementwise expressions, then one elementwise expression.
//!
//! In: expressions built with ordinary operators on a [`Graph`]. Out: a verified [`Formula`], which a
//! [`Schedule`] splits into passes and which [`interpret()`] defines element by element. Nothing here is fast.

pub(crate) mod elementary;
mod graph;
mod interpret;
mod op;
mod print;
mod rounded;
mod scaled;
mod schedule;
mod verify;

pub use graph::{Expr, Graph};
pub(crate) use interpret::{binary_f64, unary_f64};
pub use interpret::{interpret, interpret_in_bands};
pub use op::{Axis, Binary, Extent, Formula, Literal, NodeId, Op, Outcome, Unary};
pub use schedule::{Pass, Schedule};
pub use verify::FormulaError;
