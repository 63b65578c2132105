//! Prints a compiled pass as CUDA C: what a thread computes of `V` elements, decoding included.
//!
//! In: a [`Program`], the types of its inputs, and which of them are to be checked. Out: the text of two functions, `known_of` (what is
//! the same for all elements of a tensor) and `values` (one value per element for each of `outputs`), as `text/*.cu` calls them. A pure
//! function: no device is needed, and no constant is in the text, so that tensors whose formulas differ in their numbers alone share
//! a kernel. Each instruction is printed as the arithmetic of `cpu/lanes.rs` and `cpu/fused.rs`, in their order.

use std::collections::HashMap;
use std::fmt::Write;

use crate::cpu::{Electors, Fold, Instruction, MaskSlot, Operand, Program, Register};
use crate::element::Element;
use crate::formula::{Binary, Formula, NodeId, Op, Unary};

/// A pass, printed.
#[derive(Debug)]
pub(super) struct Emitted {
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
pub(super) struct Reduced {
    pub fold: Fold,
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
/// `None` for a program with instructions that have no text: rows, columns and ranks within rows.
pub(super) fn emit(
    program: &Program,
    formula: &Formula,
    inputs: &[Element],
    checked: &[u16],
) -> Option<Emitted> {
    let mut printer = Printer { formula, inputs, checked, ..Printer::default_for(formula) };
    for instruction in &program.instructions {
        printer.instruction(instruction)?;
    }
    Some(printer.finish(program))
}

struct Printer<'a> {
    formula: &'a Formula,
    inputs: &'a [Element],
    checked: &'a [u16],
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
}

impl<'a> Printer<'a> {
    fn default_for(formula: &'a Formula) -> Self {
        Self {
            formula,
            inputs: &[],
            checked: &[],
            body: String::new(),
            names: HashMap::new(),
            count: 0,
            outputs: 0,
            reductions: Vec::new(),
            drawn: Vec::new(),
            nothings: Vec::new(),
            is_elementary: false,
        }
    }

    fn instruction(&mut self, instruction: &Instruction) -> Option<()> {
        match *instruction {
            Instruction::Load { to, input } => self.load(to, input),
            Instruction::Difference { to, input, x } => {
                let x = self.name(x);
                let loaded = Self::loaded(input);
                self.assign(to, &format!("{loaded} - {x}"));
            }
            Instruction::Random { to, stream } => {
                let word = self.word(stream);
                self.assign(to, &format!("unit({word})"));
            }
            Instruction::Unary { op, to, x } => {
                let text = self.unary(op, &self.name(x))?;
                self.assign(to, &text);
            }
            Instruction::Binary { op, to, a, b } => {
                let text = binary(op, &self.operand(a), &self.operand(b));
                self.assign(to, &text);
            }
            Instruction::Select { to, c, a, b } => {
                let text = format!("{} != 0.0f ? {} : {}", self.name(c), self.operand(a), self.operand(b));
                self.assign(to, &text);
            }
            Instruction::Keep { to, x, slot } => {
                let text = format!("number({})", self.kept(&self.name(x), slot));
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

    fn load(&mut self, to: Register, input: u16) {
        let loaded = Self::loaded(input);
        self.names.insert(to, loaded);
    }

    /// The decoded element of an input.
    fn loaded(input: u16) -> String {
        format!("in{input}[j]")
    }

    fn word(&mut self, stream: u16) -> String {
        if !self.drawn.contains(&stream) {
            self.drawn.push(stream);
        }
        format!("words{stream}[j]")
    }

    fn unary(&mut self, op: Unary, x: &str) -> Option<String> {
        let elementary = match op {
            Unary::Negate => return Some(format!("-{x}")),
            Unary::Absolute => return Some(format!("fabsf({x})")),
            Unary::SquareRoot => return Some(format!("__fsqrt_rn({x})")),
            Unary::Exponential => "exponential",
            Unary::ExponentialLessOne => "exponential_less_one",
            Unary::Logarithm => "logarithm",
            Unary::LogarithmOfOneMore => "logarithm_of_one_more",
            Unary::RoundToE4m3 | Unary::Sine | Unary::Cosine | Unary::ArcCosine => return None,
        };
        self.is_elementary = true;
        Some(format!("(float){elementary}((double){x})"))
    }

    fn masked(&mut self, x: &str, mask: MaskSlot, factors: &[Option<u16>]) -> String {
        let condition = match mask {
            MaskSlot::Cut(slot) => self.kept(x, slot),
            MaskSlot::Chance { stream, below } => {
                format!("unit({}) < known.s{below}", self.word(stream))
            }
        };
        // A factor of 1 or 0 and one per tensor are one of two numbers: the same product, sign of 0 and NaN included.
        let mut factors = factors.iter().flatten();
        let mut text = match factors.next() {
            Some(&first) => format!("{x} * ({condition} ? known.s{first} : {})", self.nothing_of(first)),
            None => format!("{x} * number({condition})"),
        };
        for factor in factors {
            let _ = write!(text, " * known.s{factor}");
        }
        text
    }

    /// A scalar times 0.
    fn nothing_of(&mut self, slot: u16) -> String {
        if !self.nothings.contains(&slot) {
            self.nothings.push(slot);
        }
        format!("known.nothing{slot}")
    }

    fn elect(&mut self, to: Register, election: &Electors) {
        let parts: Vec<String> =
            election.parts[..usize::from(election.count)].iter().map(|&part| self.name(part)).collect();
        let positive = self.fresh_of("bool", &format!("0.0f <= {}", parts.join(" + ")));
        let agreements: Vec<String> = parts
            .iter()
            .map(|x| self.fresh_of("bool", &format!("0.0f < ({positive} ? {x} : -{x})")))
            .collect();
        let products: Vec<String> =
            parts.iter().zip(&agreements).map(|(x, a)| format!("{x} * number({a})")).collect();
        let mixed = self.fresh(&products.join(" + "));
        if !election.is_divided {
            self.names.insert(to, mixed);
            return;
        }
        let weighted: Vec<String> = agreements
            .iter()
            .zip(election.weights)
            .map(|(a, weight)| match weight {
                Some(slot) => format!("({a} ? known.s{slot} : {})", self.nothing_of(slot)),
                None => format!("number({a})"),
            })
            .collect();
        let divisor = self.fresh(&weighted.join(" + "));
        self.assign(to, &format!("divided({mixed}, {divisor} == 0.0f ? 1.0f : {divisor})"));
    }

    /// Whether the magnitude of `x` is among those that the program's cut keeps.
    fn kept(&self, x: &str, slot: u16) -> String {
        format!("kept({x}, known.threshold{slot}, j < before{slot})")
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
        let _ = writeln!(self.body, "        out[{at}][j] = {};", self.name(x));
        at
    }

    fn assign(&mut self, to: Register, text: &str) {
        let name = self.fresh(text);
        self.names.insert(to, name);
    }

    fn fresh(&mut self, text: &str) -> String {
        self.fresh_of("float", text)
    }

    fn fresh_of(&mut self, kind: &str, text: &str) -> String {
        let name = format!("v{}", self.count);
        self.count += 1;
        let _ = writeln!(self.body, "        const {kind} {name} = {text};");
        name
    }

    fn name(&self, register: Register) -> String {
        self.names.get(&register).cloned().unwrap_or_else(|| "0.0f".to_owned())
    }

    fn operand(&self, operand: Operand) -> String {
        match operand {
            Operand::Register(register) => self.name(register),
            Operand::Scalar(slot) => format!("known.s{slot}"),
        }
    }

    fn finish(mut self, program: &Program) -> Emitted {
        let extents = self.formula.extents();
        for (reduced, &(node, _)) in self.reductions.iter_mut().zip(&program.reductions) {
            reduced.fold = Fold::of(self.formula, &extents, node);
        }
        let all = selections(self.formula);
        let cut_at = |node: &NodeId| all.iter().position(|known| known == node).unwrap_or_default();
        let mut fields = String::new();
        let mut binding = String::new();
        let mut before = String::new();
        for &input in &program.inputs {
            let _ = writeln!(fields, "    u64 in{input};");
            let _ = writeln!(binding, "    known.in{input} = tensor[INPUTS + {input}];");
            let kind = type_name(self.inputs[usize::from(input)]);
            let is_watched = self.checked.contains(&input);
            let _ = writeln!(before, "    float in{input}[V];");
            let load = format!("load_{kind}<{is_watched}>");
            let _ = writeln!(before, "    {load}(in{input}, known.in{input}, base, elements, met);");
        }
        for slot in 0..program.scalars.len() {
            let _ = writeln!(fields, "    float s{slot};");
            let _ = writeln!(binding, "    known.s{slot} = scalars[{slot}];");
        }
        for slot in &self.nothings {
            let _ = writeln!(fields, "    float nothing{slot};");
            let _ = writeln!(binding, "    known.nothing{slot} = 0.0f * known.s{slot};");
        }
        for (slot, at) in program.cuts.iter().map(cut_at).enumerate() {
            let _ = writeln!(fields, "    int threshold{slot};\n    u64 ties_end{slot};");
            let _ = writeln!(
                binding,
                "    known.threshold{slot} = (int)((const Cut*)tensor[CUTS])[{at}].threshold;"
            );
            let _ =
                writeln!(binding, "    known.ties_end{slot} = ((const Cut*)tensor[CUTS])[{at}].ties_end;");
            let _ = writeln!(before, "    const int before{slot} = ::before(known.ties_end{slot}, base);");
        }
        for stream in &self.drawn {
            let _ = writeln!(fields, "    u64 key{stream};");
            let _ = writeln!(binding, "    known.key{stream} = ((const u64*)tensor[KEYS])[{stream}];");
            let _ = writeln!(before, "    u32 words{stream}[V];");
            let _ = writeln!(before, "    draw(words{stream}, known.key{stream}, base);");
        }
        let text = format!(
            "struct Known {{\n{fields}}};\n\n\
             __device__ __forceinline__ Known known_of(const u64* tensor, const float* scalars) {{\n\
             \x20   Known known;\n{binding}    return known;\n}}\n\n\
             __device__ __forceinline__ void values(\n\
             \x20   const Known& known, const u64 base, const u64 elements, float (&out)[OUT][V], u32& met\n) {{\n\
             {before}#pragma unroll\n    for (int j = 0; j < V; j++) {{\n{}    }}\n}}\n",
            self.body
        );
        Emitted {
            text,
            outputs: self.outputs,
            reductions: self.reductions,
            is_elementary: self.is_elementary,
        }
    }
}

/// The name of a type in the texts.
pub(super) const fn type_name(element: Element) -> &'static str {
    match element {
        Element::F32 => "f32",
        Element::F16 => "f16",
        Element::BF16 => "bf16",
    }
}

fn binary(op: Binary, a: &str, b: &str) -> String {
    match op {
        Binary::Add => format!("{a} + {b}"),
        Binary::Subtract => format!("{a} - {b}"),
        Binary::Multiply => format!("{a} * {b}"),
        Binary::Divide => format!("{a} / {b}"),
        Binary::Minimum => format!("{b} < {a} ? {b} : {a}"),
        Binary::Maximum => format!("{b} > {a} ? {b} : {a}"),
        Binary::Less => format!("number({a} < {b})"),
        Binary::LessOrEqual => format!("number({a} <= {b})"),
        Binary::Equal => format!("number({a} == {b})"),
    }
}

/// What a formula has that the device does not compute; `None` where it computes all of it.
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

#[cfg(test)]
mod tests;
