//! Compiles the elementwise part of a pass into instructions over a few registers of lanes.
//!
//! In: a formula and the operations that the pass must complete. Out: a straight-line [`Program`]. What is known
//! before the pass (values per tensor and row, cuts) is named by slot and bound when a wave starts.

use std::collections::HashMap;

use super::patterns::{ELECTORS, Election, FACTORS, Mask, Masked, Patterns, magnitudes};
use super::reduce::Fold;
use crate::formula::{Axis, Binary, Extent, Formula, NodeId, Op, Schedule, Unary};

/// The index of a register of lanes.
pub(crate) type Register = u16;

/// A register, or a value per tensor by its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operand {
    Register(Register),
    Scalar(u16),
}

/// One step. `to` never is one of the registers read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Instruction {
    Load {
        to: Register,
        input: u16,
    },
    Random {
        to: Register,
        stream: u16,
    },
    Row {
        to: Register,
        slot: u16,
    },
    Column {
        to: Register,
        slot: u16,
    },
    Ordinal {
        to: Register,
        slot: u16,
    },
    Unary {
        op: Unary,
        to: Register,
        x: Register,
    },
    Binary {
        op: Binary,
        to: Register,
        a: Operand,
        b: Operand,
    },
    Select {
        to: Register,
        c: Register,
        a: Operand,
        b: Operand,
    },
    Keep {
        to: Register,
        x: Register,
        slot: u16,
    },
    KeepInRow {
        to: Register,
        x: Register,
        slot: u16,
    },
    /// An input less another value.
    Difference {
        to: Register,
        input: u16,
        x: Register,
    },
    /// A value times 1 or 0, times factors per tensor.
    Masked {
        to: Register,
        x: Register,
        mask: MaskSlot,
        factors: [Option<u16>; FACTORS],
    },
    /// What has the sign of the sum.
    Elect {
        to: Register,
        election: Electors,
    },
    Sum {
        x: Register,
        slot: u16,
    },
    Dot {
        x: Register,
        y: Register,
        slot: u16,
    },
    Largest {
        x: Register,
        slot: u16,
    },
    Greatest {
        x: Register,
        slot: u16,
    },
    Rank {
        x: Register,
        slot: u16,
    },
    Store {
        x: Register,
    },
}

/// Where a masked value's 1 or 0 comes from: a cut by its slot, or a stream and a value per tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MaskSlot {
    Cut(u16),
    Chance { stream: u16, below: u16 },
}

/// The values among which a sign is elected: `parts[..count]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Electors {
    pub parts: [Register; ELECTORS],
    pub weights: [Option<u16>; ELECTORS],
    pub count: u8,
    /// Whether the sum is divided by that of the weights.
    pub is_divided: bool,
}

/// A straight line of instructions and the meaning of its slots.
#[derive(Clone, Debug, Default)]
pub(crate) struct Program {
    pub instructions: Vec<Instruction>,
    pub registers: usize,
    /// Values per tensor.
    pub scalars: Vec<NodeId>,
    /// Values per row.
    pub rows: Vec<NodeId>,
    /// Values per column.
    pub columns: Vec<NodeId>,
    /// What is ranked within rows.
    pub ordinals: Vec<NodeId>,
    /// Selections whose cut is known.
    pub cuts: Vec<NodeId>,
    /// Selections within rows whose cuts are known.
    pub row_cuts: Vec<NodeId>,
    /// Sums, inner products and extremes being reduced.
    pub reductions: Vec<(NodeId, Axis)>,
    /// How the parts of each of them are joined.
    pub folds: Vec<Fold>,
    /// Selections being made.
    pub ranks: Vec<NodeId>,
    /// Selections within rows being made. No instruction does it: whole rows are gathered by programs of their own.
    pub row_tops: Vec<NodeId>,
    /// Inputs that are loaded.
    pub inputs: Vec<u16>,
    /// Inputs that are read, by the selections within rows too.
    pub reads: Vec<u16>,
}

impl Program {
    /// Compiles the completion of `reductions`.
    pub(crate) fn reducing(formula: &Formula, reductions: &[NodeId]) -> Self {
        let is_row_top = |node: &NodeId| matches!(formula.op(*node), Op::RowTop(..));
        let (row_tops, swept): (Vec<NodeId>, Vec<NodeId>) =
            reductions.iter().partition(|node| is_row_top(node));
        let roots = swept.iter().flat_map(|&node| formula.op(node).swept_operands());
        let mut compiler = Compiler::new(formula, roots);
        swept.iter().for_each(|&node| compiler.reduce(node));
        let mut program = compiler.finish();
        for operand in row_tops.iter().flat_map(|&node| formula.op(node).swept_operands()) {
            program.reads.extend(Self::storing(formula, operand).inputs);
        }
        program.reads.sort_unstable();
        program.reads.dedup();
        Self { row_tops, ..program }
    }

    /// Compiles the output; nothing where there is none.
    pub(crate) fn writing(formula: &Formula) -> Self {
        formula.output().map_or_else(Self::default, |output| Self::storing(formula, output))
    }

    /// Compiles one value for each element as what is stored.
    pub(crate) fn storing(formula: &Formula, node: NodeId) -> Self {
        let mut compiler = Compiler::new(formula, [node].into_iter());
        let x = compiler.register(node);
        compiler.program.instructions.push(Instruction::Store { x });
        compiler.finish()
    }
}

/// Registers of a thread that evaluates a formula, the most of any of its passes.
pub fn registers_of(formula: &Formula) -> usize {
    let passes = Schedule::of(formula).passes;
    let reducing = passes.iter().map(|pass| Program::reducing(formula, &pass.reductions).registers);
    let stored = |op: &Op| if let Op::Rank(x) | Op::RowTop(x, _) = op { Some(*x) } else { None };
    let ranked = formula.nodes().iter().filter_map(stored);
    let ranking = ranked.map(|x| Program::storing(formula, x).registers);
    reducing.chain(ranking).chain([Program::writing(formula).registers]).max().unwrap_or_default()
}

/// Emits one virtual register per value; `finish` maps them to as few as possible.
struct Compiler<'f> {
    formula: &'f Formula,
    extents: Vec<Extent>,
    patterns: Patterns<'f>,
    known: HashMap<NodeId, Register>,
    program: Program,
    next: Register,
}

impl<'f> Compiler<'f> {
    fn new(formula: &'f Formula, roots: impl Iterator<Item = NodeId>) -> Self {
        Self {
            formula,
            extents: formula.extents(),
            patterns: Patterns::new(formula, roots),
            known: HashMap::new(),
            program: Program::default(),
            next: 0,
        }
    }

    fn reduce(&mut self, node: NodeId) {
        let op = self.formula.op(node);
        let summed = |x| match op {
            Op::Sum(..) => magnitudes(self.formula, &self.extents, x).unwrap_or(x),
            _ => x,
        };
        let operands: Vec<NodeId> = op.swept_operands().map(summed).collect();
        let registers: Vec<Register> = operands.into_iter().map(|x| self.register(x)).collect();
        let slot = self.program.reductions.len() as u16;
        let instruction = match op {
            Op::Sum(_, axis) => {
                self.program.reductions.push((node, axis));
                Instruction::Sum { x: registers[0], slot }
            }
            Op::Dot(_, _, axis) => {
                self.program.reductions.push((node, axis));
                Instruction::Dot { x: registers[0], y: registers[1], slot }
            }
            Op::Largest(_, axis) => {
                self.program.reductions.push((node, axis));
                Instruction::Largest { x: registers[0], slot }
            }
            Op::Greatest(_, axis) => {
                self.program.reductions.push((node, axis));
                Instruction::Greatest { x: registers[0], slot }
            }
            _ => {
                self.program.ranks.push(node);
                Instruction::Rank { x: registers[0], slot: self.program.ranks.len() as u16 - 1 }
            }
        };
        if self.program.reductions.len() > self.program.folds.len() {
            self.program.folds.push(Fold::of(self.formula, &self.extents, node));
        }
        self.program.instructions.push(instruction);
    }

    /// The register that holds a value for each element.
    fn register(&mut self, node: NodeId) -> Register {
        if let Some(&register) = self.known.get(&node) {
            return register;
        }
        if let Some(instruction) = self.group(node) {
            return self.emit(node, instruction);
        }
        let instruction = match self.formula.op(node) {
            _ if self.extents[node.index()] == Extent::Row => {
                let slot = slot(&mut self.program.rows, node);
                Instruction::Row { to: self.fresh(), slot }
            }
            _ if self.extents[node.index()] == Extent::Column => {
                let slot = slot(&mut self.program.columns, node);
                Instruction::Column { to: self.fresh(), slot }
            }
            Op::Rank(x) => {
                // Its operand is computed over whole rows before the block: a program of its own, which reads inputs.
                self.program.inputs.extend(Program::storing(self.formula, x).inputs);
                let slot = slot(&mut self.program.ordinals, node);
                Instruction::Ordinal { to: self.fresh(), slot }
            }
            Op::Input(input) => {
                self.program.inputs.push(input);
                Instruction::Load { to: self.fresh(), input }
            }
            Op::Random(stream) => Instruction::Random { to: self.fresh(), stream },
            Op::Unary(op, x) => {
                let x = self.register(x);
                Instruction::Unary { op, to: self.fresh(), x }
            }
            Op::Binary(op, a, b) => {
                let (a, b) = (self.operand(a), self.operand(b));
                Instruction::Binary { op, to: self.fresh(), a, b }
            }
            Op::Select(c, a, b) => {
                let c = self.register(c);
                let (a, b) = (self.operand(a), self.operand(b));
                Instruction::Select { to: self.fresh(), c, a, b }
            }
            Op::Top(x, _) => {
                let x = self.register(x);
                let slot = slot(&mut self.program.cuts, node);
                Instruction::Keep { to: self.fresh(), x, slot }
            }
            Op::RowTop(x, _) => {
                let x = self.register(x);
                let slot = slot(&mut self.program.row_cuts, node);
                Instruction::KeepInRow { to: self.fresh(), x, slot }
            }
            Op::Constant(_)
            | Op::Sum(..)
            | Op::Dot(..)
            | Op::Largest(..)
            | Op::Greatest(..)
            | Op::Kth(..) => {
                return self.filled(node);
            }
        };
        self.emit(node, instruction)
    }

    /// The one instruction for this operation and those that only it reads, where there is one.
    fn group(&mut self, node: NodeId) -> Option<Instruction> {
        if let Some((input, other)) = self.patterns.difference(node) {
            self.program.inputs.push(input);
            let x = self.register(other);
            return Some(Instruction::Difference { to: self.fresh(), input, x });
        }
        if let Some(masked) = self.patterns.masked(node) {
            return Some(self.masked(masked));
        }
        let election = self.patterns.election(node)?;
        Some(self.elect(&election))
    }

    fn masked(&mut self, masked: Masked) -> Instruction {
        let x = self.register(masked.x);
        let mask = match masked.mask {
            Mask::Top(node) => MaskSlot::Cut(slot(&mut self.program.cuts, node)),
            Mask::Chance { stream, below } => {
                MaskSlot::Chance { stream, below: slot(&mut self.program.scalars, below) }
            }
        };
        let factors = masked.factors.map(|factor| Some(slot(&mut self.program.scalars, factor?)));
        Instruction::Masked { to: self.fresh(), x, mask, factors }
    }

    fn elect(&mut self, election: &Election) -> Instruction {
        let mut electors = Electors {
            parts: [0; ELECTORS],
            weights: [None; ELECTORS],
            count: election.parts.len() as u8,
            is_divided: election.weights.is_some(),
        };
        for (to, &part) in electors.parts.iter_mut().zip(&election.parts) {
            *to = self.register(part);
        }
        for (to, weight) in electors.weights.iter_mut().zip(election.weights.iter().flatten()) {
            *to = weight.map(|weight| slot(&mut self.program.scalars, weight));
        }
        Instruction::Elect { to: self.fresh(), election: electors }
    }

    /// One value for the whole tensor where a register is wanted: the larger of it and itself.
    fn filled(&mut self, node: NodeId) -> Register {
        let a = Operand::Scalar(slot(&mut self.program.scalars, node));
        let instruction = Instruction::Binary { op: Binary::Maximum, to: self.fresh(), a, b: a };
        self.emit(node, instruction)
    }

    fn emit(&mut self, node: NodeId, instruction: Instruction) -> Register {
        self.program.instructions.push(instruction);
        self.known.insert(node, self.next - 1);
        self.next - 1
    }

    fn operand(&mut self, node: NodeId) -> Operand {
        match self.extents[node.index()] {
            Extent::Tensor => Operand::Scalar(slot(&mut self.program.scalars, node)),
            Extent::Row | Extent::Column | Extent::Element => Operand::Register(self.register(node)),
        }
    }

    fn fresh(&mut self) -> Register {
        self.next += 1;
        self.next - 1
    }

    /// Gives every virtual register a real one, reused after its last reader.
    fn finish(mut self) -> Program {
        let mut last_use = vec![0; usize::from(self.next)];
        for (at, instruction) in self.program.instructions.iter().enumerate() {
            instruction.clone().registers(&mut |register, _| last_use[usize::from(*register)] = at);
        }
        let mut real = vec![0; usize::from(self.next)];
        let mut free: Vec<Register> = Vec::new();
        for (at, instruction) in self.program.instructions.iter_mut().enumerate() {
            let mut ended = Vec::new();
            instruction.registers(&mut |register, is_written| {
                let this = usize::from(*register);
                if is_written {
                    real[this] = free.pop().unwrap_or_else(|| {
                        self.program.registers += 1;
                        self.program.registers as Register - 1
                    });
                } else if last_use[this] == at && !ended.contains(&real[this]) {
                    ended.push(real[this]);
                }
                *register = real[this];
            });
            free.extend(ended);
        }
        self.program.inputs.sort_unstable();
        self.program.inputs.dedup();
        self.program.reads = self.program.inputs.clone();
        self.program
    }
}

fn slot(slots: &mut Vec<NodeId>, node: NodeId) -> u16 {
    let at = slots.iter().position(|&known| known == node).unwrap_or_else(|| {
        slots.push(node);
        slots.len() - 1
    });
    at as u16
}

impl Instruction {
    /// The register written; `None` for instructions that reduce or store.
    #[inline(always)]
    pub(crate) const fn target(&self) -> Option<Register> {
        match *self {
            Self::Load { to, .. }
            | Self::Random { to, .. }
            | Self::Row { to, .. }
            | Self::Column { to, .. }
            | Self::Ordinal { to, .. }
            | Self::Unary { to, .. }
            | Self::Binary { to, .. }
            | Self::Select { to, .. }
            | Self::Keep { to, .. }
            | Self::KeepInRow { to, .. }
            | Self::Difference { to, .. }
            | Self::Masked { to, .. }
            | Self::Elect { to, .. } => Some(to),
            Self::Sum { .. }
            | Self::Dot { .. }
            | Self::Largest { .. }
            | Self::Greatest { .. }
            | Self::Rank { .. }
            | Self::Store { .. } => None,
        }
    }

    /// Visits the register written (with `true`), then those read.
    fn registers(&mut self, visit: &mut impl FnMut(&mut Register, bool)) {
        let operand = |operand: &mut Operand, visit: &mut dyn FnMut(&mut Register, bool)| {
            if let Operand::Register(register) = operand {
                visit(register, false);
            }
        };
        match self {
            Self::Load { to, .. }
            | Self::Random { to, .. }
            | Self::Row { to, .. }
            | Self::Column { to, .. }
            | Self::Ordinal { to, .. } => visit(to, true),
            Self::Unary { to, x, .. }
            | Self::Keep { to, x, .. }
            | Self::KeepInRow { to, x, .. }
            | Self::Difference { to, x, .. }
            | Self::Masked { to, x, .. } => {
                visit(to, true);
                visit(x, false);
            }
            Self::Elect { to, election } => {
                visit(to, true);
                election.parts[..usize::from(election.count)].iter_mut().for_each(|x| visit(x, false));
            }
            Self::Binary { to, a, b, .. } => {
                visit(to, true);
                operand(a, visit);
                operand(b, visit);
            }
            Self::Select { to, c, a, b } => {
                visit(to, true);
                visit(c, false);
                operand(a, visit);
                operand(b, visit);
            }
            Self::Sum { x, .. }
            | Self::Largest { x, .. }
            | Self::Greatest { x, .. }
            | Self::Rank { x, .. }
            | Self::Store { x } => {
                visit(x, false);
            }
            Self::Dot { x, y, .. } => {
                visit(x, false);
                visit(y, false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formula::Graph;

    #[test]
    fn registers_are_reused_after_their_last_reader() {
        let graph = Graph::new();
        let mut sum = graph.input(0) * 0.1;
        for input in 1..20 {
            sum = sum + graph.input(input) * 0.1;
        }
        let program = Program::writing(&graph.finish(sum).unwrap());
        assert_eq!(program.registers, 3);
        assert_eq!(program.inputs, (0..20).collect::<Vec<_>>());
        assert_eq!(program.scalars.len(), 1);
    }

    /// What a method with a sign consensus writes: few instructions, each group once.
    #[test]
    fn groups_become_one_instruction() {
        let graph = Graph::new();
        let (b, zero) = (graph.input(0), graph.constant(0.0));
        let part = |input, weight: f64| {
            let d = graph.input(input) - b;
            d * d.top(3) * weight
        };
        let (x, y) = (part(1, 0.5), part(2, 0.3));
        let is_positive = zero.less_or_equal(x + y);
        let agree = [x, y].map(|x| is_positive.select(zero.less(x), x.less(0.0)));
        let divisor = agree[0] * 0.5 + agree[1] * 0.3;
        let merged = b + (x * agree[0] + y * agree[1]) / divisor.equal(0.0).select(1.0, divisor);
        let program = Program::writing(&graph.finish(merged).unwrap());
        let names = program.instructions.iter().map(|instruction| match instruction {
            Instruction::Load { .. } => "load",
            Instruction::Difference { .. } => "difference",
            Instruction::Masked { .. } => "masked",
            Instruction::Elect { .. } => "elect",
            Instruction::Binary { .. } => "binary",
            Instruction::Store { .. } => "store",
            _ => "another",
        });
        let expected = ["load", "difference", "masked", "difference", "masked", "elect", "binary", "store"];
        assert_eq!(names.collect::<Vec<_>>(), expected);
        assert_eq!(program.inputs, [0, 1, 2]);
    }

    #[test]
    fn what_others_read_stays_an_instruction_of_its_own() {
        let graph = Graph::new();
        let (b, x) = (graph.input(0), graph.input(1));
        let d = x - b;
        let mask = d.top(3);
        let program = Program::writing(&graph.finish(x + d * mask + mask).unwrap());
        let is_group =
            |i: &Instruction| matches!(i, Instruction::Difference { .. } | Instruction::Masked { .. });
        assert!(!program.instructions.iter().any(is_group), "{:?}", program.instructions);
    }

    #[test]
    fn nothing_is_written_to_a_register_that_is_read() {
        let graph = Graph::new();
        let (b, x) = (graph.input(0), graph.input(1));
        let d = x - b;
        let formula = graph.finish(b + (d * d.top(3)).less(0.0).select(d, -d) * d.norm(Axis::Row)).unwrap();
        let top = formula.ids().find(|&id| matches!(formula.op(id), Op::Top(..))).unwrap();
        for program in [Program::writing(&formula), Program::reducing(&formula, &[top])] {
            for mut instruction in program.instructions {
                let mut written = None;
                instruction.registers(&mut |register, is_written| {
                    assert!(is_written || Some(*register) != written, "{register}");
                    written = if is_written { Some(*register) } else { written };
                });
            }
        }
    }
}
