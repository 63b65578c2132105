//! Computes merge formulas over tensors: typed expression graphs, their specification and their executors.
//!
//! In: a [`Formula`](formula::Formula) and the bytes of its input tensors through a [`Source`](cpu::Source). Out: the
//! encoded bytes of one output tensor, tile by tile. This crate never sees a path, a model or a recipe.
//!
//! Reading order: [`formula`] (the language and its scalar interpreter), [`random`] and [`normal`] (counter-based numbers),
//! [`cpu`] (the tiled executor), [`gpu`] (the same on GPUs, by way of [`cuda`] or [`wgpu`]); [`nn`] (operations of a decoder), [`loss`] (distillation losses), [`svd`] (leading singular values),
//! [`pursuit`] (vectors approximated by few of a table's).

pub mod cpu;
pub mod cuda;
pub mod element;
pub mod formula;
pub mod gpu;
pub mod loss;
pub mod nn;
pub mod normal;
pub mod pursuit;
pub mod random;
pub mod svd;
pub mod wgpu;
