//! Says what a language for kernels must be able to say, so that one printer and one order of kernels serve all of them.
//!
//! A [`Dialect`] turns the parts of an expression into text, and wraps a printed pass up as the kernels that run it. It decides nothing about
//! what is computed, nor in which order.

use std::fmt::Debug;
use std::hash::Hash;

use super::emit::Emitted;
use crate::element::Element;
use crate::formula::{Formula, Unary};

/// Names a language, and prints it.
pub trait Dialect: Debug + Send + Sync + 'static {
    /// How the work of kernels is shared out among threads.
    type Shapes: Copy + Debug + Eq + Hash + Send + Sync;

    /// Selections of one kernel.
    const SELECTIONS_AT_ONCE: usize;

    /// Reductions of one kernel.
    const REDUCTIONS_AT_ONCE: usize;

    /// What a line of a pass begins with.
    const INDENT: &'static str;

    /// Why a formula's operation on elements has no text; `None` where it has one.
    fn obstacle(op: Unary) -> Option<&'static str>;

    /// A number that stands in a text.
    fn literal(value: Literal) -> &'static str;

    /// The decoded element of an input.
    fn loaded(input: u16) -> String;

    /// The word of a random stream.
    fn word(stream: u16) -> String;

    /// Arithmetic on two values.
    fn arithmetic(op: Arithmetic, a: &str, b: &str) -> String;

    /// A quotient whose divisor is not 0.
    fn divided(x: &str, divisor: &str) -> String;

    /// An operation on one value.
    fn unary(op: Unary, x: &str) -> String;

    /// `a` where a condition holds, else `b`.
    fn chosen(condition: &str, a: &str, b: &str) -> String;

    /// A choice as a part of an expression.
    fn grouped(text: &str) -> String;

    /// Whether a value's magnitude is among those that a cut keeps.
    fn kept(x: &str, slot: u16) -> String;

    /// The line that names a value.
    fn named(kind: Kind, name: &str, text: &str) -> String;

    /// The line that gives an output its value.
    fn given(output: usize, value: &str) -> String;

    /// The functions that all kernels of a pass call: what is the same for all elements of a tensor, and what is computed of elements.
    fn functions(pass: &Bound<'_>) -> String;

    /// The kernel that writes an output of this type.
    fn writing(pass: &Printed<'_>, output: Element, shapes: Self::Shapes) -> Source;

    /// The kernels that select.
    fn selecting(pass: &Printed<'_>, shapes: Self::Shapes) -> Source;

    /// The kernel that reduces.
    fn reducing(pass: &Printed<'_>) -> Source;
}

/// Numbers that stand in texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Literal {
    /// 0.
    Zero,
    /// 1.
    One,
}

/// What is computed of two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// `a + b`
    Add,
    /// `a - b`
    Subtract,
    /// `a * b`
    Multiply,
    /// `a / b`
    Divide,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An f32.
    Number,
    /// Whether something is so.
    Truth,
}

/// A pass whose lines are printed, and what they name.
#[derive(Debug)]
pub struct Bound<'a> {
    /// The inputs that are loaded: each with its type, and whether it is watched for what is not finite.
    pub inputs: &'a [(u16, Element, bool)],
    /// How many values per tensor there are.
    pub scalars: usize,
    /// Those of them whose product with 0 is named.
    pub nothings: &'a [u16],
    /// For each cut, its place among the cuts of a tensor.
    pub cuts: &'a [usize],
    /// The random streams that are drawn from.
    pub drawn: &'a [u16],
    /// How many values per element there are.
    pub outputs: usize,
    /// The lines.
    pub body: &'a str,
}

/// A printed pass and the formula that it is of.
#[derive(Debug)]
pub struct Printed<'a> {
    /// The formula.
    pub formula: &'a Formula,
    /// How many values per tensor there are.
    pub scalars: usize,
    /// The pass.
    pub emitted: &'a Emitted,
}

/// A kernel's whole text, and how it is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The text.
    pub text: String,
    /// Threads of a block.
    pub threads: u32,
    /// Blocks for a chunk.
    pub parts: u32,
}
