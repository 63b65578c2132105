//! Says which kernels a formula takes, and prints them.
//!
//! In: a formula, the types of its tensors, a dialect and how it shares work out. Out: one text for each kernel that the formula's evaluation
//! takes, pass by pass, with the operations whose values it is bound to. Pure functions; nothing is compiled here.

use super::dialect::{Dialect, Printed};
use super::emit::{emit, obstacle_in};
use crate::cpu::{Fold, Program};
use crate::element::Element;
use crate::formula::{Formula, NodeId, Op, Schedule};

/// A kernel's text, and the operations whose values are bound to it.
#[derive(Clone, Debug)]
pub struct Text {
    /// The text.
    pub source: String,
    /// Values per tensor, in the order of its scalars.
    pub scalars: Vec<NodeId>,
    /// What it completes, in the order of its outputs.
    pub completes: Vec<NodeId>,
    /// How each of them is joined from chunks, where it reduces.
    pub(crate) folds: Vec<Fold>,
    /// Threads of a block.
    pub threads: u32,
    /// Blocks for a chunk.
    pub parts: u32,
}

/// The kernels of one pass.
#[derive(Clone, Debug, Default)]
pub(crate) struct PassTexts {
    pub selecting: Vec<Text>,
    pub reducing: Vec<Text>,
}

/// The kernels of a formula.
#[derive(Clone, Debug)]
pub(crate) struct Texts {
    /// One for each pass but the last.
    pub passes: Vec<PassTexts>,
    pub writing: Text,
}

/// The texts of a formula; `None` where it has something that is not computed in this dialect, or writes nothing.
pub(crate) fn texts<D: Dialect>(
    formula: &Formula,
    inputs: &[Element],
    output: Element,
    shapes: D::Shapes,
) -> Option<Texts> {
    obstacle_in::<D>(formula).is_none().then_some(())?;
    formula.output()?;
    let writing = Program::writing(formula);
    let mut unchecked: Vec<u16> = (0..formula.inputs() as u16).collect();
    unchecked.retain(|input| !writing.inputs.contains(input));
    let schedule = Schedule::of(formula);
    let (_, reducing) = schedule.passes.split_last()?;
    let mut passes = Vec::new();
    for pass in reducing {
        let is_selection = |node: &&NodeId| formula.op(**node).is_selection();
        let (selections, sums): (Vec<NodeId>, Vec<NodeId>) =
            pass.reductions.iter().partition(|node| is_selection(node));
        let mut texts = PassTexts::default();
        for nodes in selections.chunks(D::SELECTIONS_AT_ONCE) {
            let program = Program::reducing(formula, nodes);
            let checked = taken(&mut unchecked, &program.inputs);
            texts.selecting.push(selecting::<D>(&program, formula, inputs, &checked, shapes)?);
        }
        for nodes in sums.chunks(D::REDUCTIONS_AT_ONCE) {
            let program = Program::reducing(formula, nodes);
            let checked = taken(&mut unchecked, &program.inputs);
            texts.reducing.push(self::reducing::<D>(&program, formula, inputs, &checked)?);
        }
        passes.push(texts);
    }
    let emitted = emit::<D>(&writing, formula, inputs, &writing.inputs)?;
    let printed = Printed { formula, scalars: writing.scalars.len(), emitted: &emitted };
    let source = D::writing(&printed, output, shapes);
    let writing = Text {
        source: source.text,
        scalars: writing.scalars,
        completes: Vec::new(),
        folds: Vec::new(),
        threads: source.threads,
        parts: source.parts,
    };
    Some(Texts { passes, writing })
}

/// Takes what a program reads out of the inputs that nobody has checked yet.
fn taken(unchecked: &mut Vec<u16>, reads: &[u16]) -> Vec<u16> {
    unchecked.extract_if(.., |input| reads.contains(input)).collect()
}

fn selecting<D: Dialect>(
    program: &Program,
    formula: &Formula,
    inputs: &[Element],
    checked: &[u16],
    shapes: D::Shapes,
) -> Option<Text> {
    let emitted = emit::<D>(program, formula, inputs, checked)?;
    let printed = Printed { formula, scalars: program.scalars.len(), emitted: &emitted };
    let source = D::selecting(&printed, shapes);
    Some(Text {
        source: source.text,
        scalars: program.scalars.clone(),
        completes: program.ranks.clone(),
        folds: Vec::new(),
        threads: source.threads,
        parts: source.parts,
    })
}

fn reducing<D: Dialect>(
    program: &Program,
    formula: &Formula,
    inputs: &[Element],
    checked: &[u16],
) -> Option<Text> {
    let emitted = emit::<D>(program, formula, inputs, checked)?;
    let printed = Printed { formula, scalars: program.scalars.len(), emitted: &emitted };
    let source = D::reducing(&printed);
    Some(Text {
        source: source.text,
        scalars: program.scalars.clone(),
        completes: program.reductions.iter().map(|&(node, _)| node).collect(),
        folds: emitted.reductions.iter().map(|reduced| reduced.fold).collect(),
        threads: source.threads,
        parts: source.parts,
    })
}

/// Words that describe a tensor to a kernel: its elements, its output, its cuts, the keys of its streams, then its inputs.
pub(crate) fn words_of(formula: &Formula) -> usize {
    4 + formula.inputs()
}

/// Whether a formula selects by something that the host has to know before the next pass.
pub(super) fn is_magnitude(formula: &Formula, node: NodeId) -> bool {
    matches!(formula.op(node), Op::Kth(..))
}
