//! Prints a compiled pass in a dialect: what a thread computes of each element, decoding included.
//!
//! In: a [`Program`], the types of its inputs, and which of them are to be checked. Out: the functions that the dialect's kernels call: what
//! is the same for all elements of a tensor, and one value per element for each of `outputs`. A pure
//! function: no device is needed, and no constant is in the text, so that tensors whose formulas differ in their numbers alone share
//! a kernel. Each instruction is printed as the arithmetic of `cpu/lanes.rs` and `cpu/fused.rs`, in their order, whatever the dialect.

use std::collections::HashMap;
use std::marker::PhantomData;

use super::dialect::{Arithmetic, Bound, Dialect, Kind, Literal};
use crate::cpu::{Electors, Fold, Instruction, MaskSlot, Operand, Program, Register};
use crate::element::Element;
use crate::formula::{Binary, Extent, Formula, NodeId, Op, Unary};

/// A pass, printed.
#[derive(Debug)]
pub struct Emitted {
    /// The functions.
    pub text: String,
    /// How many values per element it has.
    pub outputs: usize,
    /// What is reduced, by the positions of its operands among the outputs.
    pub reductions: Vec<Reduced>,
    /// Whether it needs exponentials or logarithms.
    pub is_elementary: bool,
}

/// A reduction of one or two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reduced {
    pub(crate) fold: Fold,
    /// The output that is reduced.
    pub x: usize,
    /// The second factor of a product.
    pub y: Option<usize>,
}

/// The selections of a formula, in the order of their cuts in memory.
pub(super) fn selections(formula: &Formula) -> Vec<NodeId> {
    formula.ids().filter(|&node| formula.op(node).is_selection()).collect()
}

/// Prints a program of a formula whose inputs are stored as `inputs`; those in `checked` are watched for what is not finite.
///
/// `None` for a program with instructions that have no text: rows, columns, ranks within rows, and what the dialect lacks.
pub(super) fn emit<D: Dialect>(
    program: &Program,
    formula: &Formula,
    inputs: &[Element],
    checked: &[u16],
) -> Option<Emitted> {
    let mut printer = Printer::<D>::default();
    for instruction in &program.instructions {
        printer.instruction(instruction)?;
    }
    Some(printer.finish(program, formula, inputs, checked))
}

struct Printer<D> {
    body: String,
    /// The name that a register's value has at present.
    names: HashMap<Register, String>,
    count: usize,
    outputs: usize,
    reductions: Vec<Reduced>,
    drawn: Vec<u16>,
    /// Scalars whose product with 0 is wanted.
    nothings: Vec<u16>,
    is_elementary: bool,
    dialect: PhantomData<D>,
}

impl<D> Default for Printer<D> {
    fn default() -> Self {
        Self {
            body: String::new(),
            names: HashMap::new(),
            count: 0,
            outputs: 0,
            reductions: Vec::new(),
            drawn: Vec::new(),
            nothings: Vec::new(),
            is_elementary: false,
            dialect: PhantomData,
        }
    }
}

impl<D: Dialect> Printer<D> {
    fn instruction(&mut self, instruction: &Instruction) -> Option<()> {
        match *instruction {
            Instruction::Load { to, input } => {
                self.names.insert(to, D::loaded(input));
            }
            Instruction::Difference { to, input, x } => {
                let text = D::arithmetic(Arithmetic::Subtract, &D::loaded(input), &self.name(x));
                self.assign(to, &text);
            }
            Instruction::Random { to, stream } => {
                let text = self.drawn(stream);
                self.assign(to, &text);
            }
            Instruction::Unary { op, to, x } => {
                let text = self.unary(op, &self.name(x))?;
                self.assign(to, &text);
            }
            Instruction::Binary { op, to, a, b } => {
                let text = binary::<D>(op, &self.operand(a), &self.operand(b));
                self.assign(to, &text);
            }
            Instruction::Select { to, c, a, b } => {
                let condition = relation("!=", &self.name(c), D::literal(Literal::Zero));
                let text = D::chosen(&condition, &self.operand(a), &self.operand(b));
                self.assign(to, &text);
            }
            Instruction::Keep { to, x, slot } => {
                let text = number(&D::kept(&self.name(x), slot));
                self.assign(to, &text);
            }
            Instruction::Masked { to, x, mask, factors } => {
                let text = self.masked(&self.name(x), mask, &factors);
                self.assign(to, &text);
            }
            Instruction::Elect { to, election } => self.elect(to, &election),
            Instruction::Sum { x, slot }
            | Instruction::Largest { x, slot }
            | Instruction::Greatest { x, slot } => {
                self.reduce(slot, x, None);
            }
            Instruction::Dot { x, y, slot } => self.reduce(slot, x, Some(y)),
            Instruction::Rank { x, .. } | Instruction::Store { x } => {
                self.output(x);
            }
            Instruction::Row { .. }
            | Instruction::Column { .. }
            | Instruction::Ordinal { .. }
            | Instruction::KeepInRow { .. } => {
                return None;
            }
        }
        Some(())
    }

    /// The number in `[0, 1)` of an element in a random stream.
    fn drawn(&mut self, stream: u16) -> String {
        if !self.drawn.contains(&stream) {
            self.drawn.push(stream);
        }
        format!("unit({})", D::word(stream))
    }

    fn unary(&mut self, op: Unary, x: &str) -> Option<String> {
        self.is_elementary |= matches!(
            op,
            Unary::Exponential | Unary::ExponentialLessOne | Unary::Logarithm | Unary::LogarithmOfOneMore
        );
        D::obstacle(op).is_none().then(|| D::unary(op, x))
    }

    fn masked(&mut self, x: &str, mask: MaskSlot, factors: &[Option<u16>]) -> String {
        let condition = match mask {
            MaskSlot::Cut(slot) => D::kept(x, slot),
            MaskSlot::Chance { stream, below } => relation("<", &self.drawn(stream), &scalar(below)),
        };
        // A factor of 1 or 0 and one per tensor are one of two numbers: the same product, sign of 0 and NaN included.
        let mut factors = factors.iter().flatten();
        let first = match factors.next() {
            Some(&first) => self.weight(&condition, Some(first)),
            None => self.weight(&condition, None),
        };
        let text = D::arithmetic(Arithmetic::Multiply, x, &first);
        factors.fold(text, |text, &factor| D::arithmetic(Arithmetic::Multiply, &text, &scalar(factor)))
    }

    /// A value per tensor, or 1, where a condition holds, and its product with 0 elsewhere.
    fn weight(&mut self, condition: &str, slot: Option<u16>) -> String {
        let Some(slot) = slot else { return number(condition) };
        if !self.nothings.contains(&slot) {
            self.nothings.push(slot);
        }
        D::grouped(&D::chosen(condition, &scalar(slot), &format!("known.nothing{slot}")))
    }

    fn elect(&mut self, to: Register, election: &Electors) {
        let [zero, one] = [Literal::Zero, Literal::One].map(D::literal);
        let parts: Vec<String> =
            election.parts[..usize::from(election.count)].iter().map(|&part| self.name(part)).collect();
        let positive = relation("<=", zero, &sum::<D>(&parts));
        let positive = self.fresh(Kind::Truth, &positive);
        let mut agreements = Vec::new();
        for part in &parts {
            let directed = D::grouped(&D::chosen(&positive, part, &D::unary(Unary::Negate, part)));
            agreements.push(self.fresh(Kind::Truth, &relation("<", zero, &directed)));
        }
        let product =
            |(x, agrees): (&String, &String)| D::arithmetic(Arithmetic::Multiply, x, &number(agrees));
        let products: Vec<String> = parts.iter().zip(&agreements).map(product).collect();
        let mixed = self.fresh(Kind::Number, &sum::<D>(&products));
        if !election.is_divided {
            self.names.insert(to, mixed);
            return;
        }
        let weights = agreements.iter().zip(election.weights);
        let weights: Vec<String> = weights.map(|(agrees, slot)| self.weight(agrees, slot)).collect();
        let divisor = self.fresh(Kind::Number, &sum::<D>(&weights));
        let divisor = D::chosen(&relation("==", &divisor, zero), one, &divisor);
        self.assign(to, &D::divided(&mixed, &divisor));
    }

    fn reduce(&mut self, slot: u16, x: Register, y: Option<Register>) {
        debug_assert_eq!(usize::from(slot), self.reductions.len());
        let same = y == Some(x);
        let x = self.output(x);
        let y = y.map(|y| if same { x } else { self.output(y) });
        self.reductions.push(Reduced { fold: Fold::Sum, x, y });
    }

    fn output(&mut self, x: Register) -> usize {
        let at = self.outputs;
        self.outputs += 1;
        self.line(&D::given(at, &self.name(x)));
        at
    }

    fn assign(&mut self, to: Register, text: &str) {
        let name = self.fresh(Kind::Number, text);
        self.names.insert(to, name);
    }

    fn fresh(&mut self, kind: Kind, text: &str) -> String {
        let name = format!("v{}", self.count);
        self.count += 1;
        self.line(&D::named(kind, &name, text));
        name
    }

    fn line(&mut self, text: &str) {
        self.body.extend([D::INDENT, text, "\n"]);
    }

    fn name(&self, register: Register) -> String {
        self.names.get(&register).cloned().unwrap_or_else(|| D::literal(Literal::Zero).to_owned())
    }

    fn operand(&self, operand: Operand) -> String {
        match operand {
            Operand::Register(register) => self.name(register),
            Operand::Scalar(slot) => scalar(slot),
        }
    }

    fn finish(
        mut self,
        program: &Program,
        formula: &Formula,
        inputs: &[Element],
        checked: &[u16],
    ) -> Emitted {
        let extents = formula.extents();
        for (reduced, &(node, _)) in self.reductions.iter_mut().zip(&program.reductions) {
            reduced.fold = Fold::of(formula, &extents, node);
        }
        let all = selections(formula);
        let cut_at = |node: &NodeId| all.iter().position(|known| known == node).unwrap_or_default();
        let cuts: Vec<usize> = program.cuts.iter().map(cut_at).collect();
        let loaded = |&input: &u16| (input, inputs[usize::from(input)], checked.contains(&input));
        let inputs: Vec<_> = program.inputs.iter().map(loaded).collect();
        let text = D::functions(&Bound {
            inputs: &inputs,
            scalars: program.scalars.len(),
            nothings: &self.nothings,
            cuts: &cuts,
            drawn: &self.drawn,
            outputs: self.outputs,
            body: &self.body,
        });
        Emitted {
            text,
            outputs: self.outputs,
            reductions: self.reductions,
            is_elementary: self.is_elementary,
        }
    }
}

/// The name of a type in the texts.
pub(crate) const fn type_name(element: Element) -> &'static str {
    match element {
        Element::F32 => "f32",
        Element::F16 => "f16",
        Element::BF16 => "bf16",
    }
}

fn binary<D: Dialect>(op: Binary, a: &str, b: &str) -> String {
    let arithmetic = |op| D::arithmetic(op, a, b);
    match op {
        Binary::Add => arithmetic(Arithmetic::Add),
        Binary::Subtract => arithmetic(Arithmetic::Subtract),
        Binary::Multiply => arithmetic(Arithmetic::Multiply),
        Binary::Divide => arithmetic(Arithmetic::Divide),
        Binary::Minimum => D::chosen(&relation("<", b, a), b, a),
        Binary::Maximum => D::chosen(&relation(">", b, a), b, a),
        Binary::Less => number(&relation("<", a, b)),
        Binary::LessOrEqual => number(&relation("<=", a, b)),
        Binary::Equal => number(&relation("==", a, b)),
    }
}

fn sum<D: Dialect>(parts: &[String]) -> String {
    let (first, rest) = parts.split_first().map_or(("", parts), |(first, rest)| (first.as_str(), rest));
    rest.iter().fold(first.to_owned(), |sum, part| D::arithmetic(Arithmetic::Add, &sum, part))
}

/// Comparisons and the names below are written alike in all dialects.
fn relation(sign: &str, a: &str, b: &str) -> String {
    format!("{a} {sign} {b}")
}

fn number(condition: &str) -> String {
    format!("number({condition})")
}

fn scalar(slot: u16) -> String {
    format!("known.s{slot}")
}

/// What a formula has that no GPU computes; `None` where one may compute all of it.
pub fn obstacle(formula: &Formula) -> Option<&'static str> {
    use crate::formula::Axis;
    formula.nodes().iter().find_map(|op| match *op {
        Op::Rank(_) => Some("it ranks the elements of rows"),
        Op::RowTop(..) => Some("it selects within rows"),
        Op::Unary(Unary::RoundToE4m3, _) => Some("it rounds to FP8"),
        Op::Sum(_, axis) | Op::Dot(_, _, axis) | Op::Largest(_, axis) | Op::Greatest(_, axis)
            if axis != Axis::Tensor =>
        {
            Some("it reduces over rows or columns")
        }
        _ => None,
    })
}

/// What a formula has that a dialect has no text for, or that no GPU computes.
pub(super) fn obstacle_in<D: Dialect>(formula: &Formula) -> Option<&'static str> {
    let of_elements = formula.nodes().iter().zip(formula.extents()).find_map(|(op, extent)| match *op {
        Op::Unary(op, _) if extent == Extent::Element => D::obstacle(op),
        _ => None,
    });
    obstacle(formula).or(of_elements)
}

#[cfg(test)]
mod tests;
