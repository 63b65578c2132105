//! Puts the texts of kernels together: constants that are baked in, a printed pass, and what `text/*.cu` does with it.
//!
//! In: a formula, the types of its tensors, a [`Shape`]. Out: one text for each kernel that the formula's evaluation takes, with the operations
//! whose values it is bound to. Pure functions; nothing is compiled here.

use crate::cpu::{Fold, Program};
use crate::element::Element;
use crate::formula::{Formula, NodeId, Op, Schedule};

use super::emit::{Emitted, Reduced, emit, type_name};

/// Blocks that sample one tensor.
pub(super) const SAMPLING_BLOCKS: u64 = 32;

/// Threads of a block that resolves selections.
pub(super) const RESOLVERS: u32 = 1024;

/// Words of a selection; see `text/selection.cu`.
pub(super) const SELECTION_WORDS: usize = 16;

/// Reductions of one kernel: what its blocks stage of their operands fits into their shared memory.
const REDUCTIONS_AT_ONCE: usize = 5;

/// Selections of one kernel.
const SELECTIONS_AT_ONCE: usize = 8;

/// How a kernel's work is shared out among threads. It changes no bit of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Shape {
    /// Threads of a block.
    pub threads: u32,
    /// Consecutive elements that a thread computes at once: 4, 8 or 16.
    pub vector: u32,
    /// Blocks that share a chunk of 65,536 elements, where the kernel lets them.
    pub parts: u32,
}

/// The shapes of the two kernels that sweep over all elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Shapes {
    /// Of the kernel that writes the output.
    pub write: Shape,
    /// Of the kernel that selects.
    pub select: Shape,
}

impl Default for Shapes {
    fn default() -> Self {
        Self {
            write: Shape { threads: 256, vector: 8, parts: 1 },
            select: Shape { threads: 256, vector: 8, parts: 1 },
        }
    }
}

/// A kernel's text, and the operations whose values are bound to it.
#[derive(Clone, Debug)]
pub(super) struct Text {
    pub source: String,
    /// Values per tensor, in the order of its scalars.
    pub scalars: Vec<NodeId>,
    /// What it completes, in the order of its outputs.
    pub completes: Vec<NodeId>,
    /// How each of them is joined from chunks, where it reduces.
    pub folds: Vec<Fold>,
    pub threads: u32,
    /// Blocks for a chunk.
    pub parts: u32,
}

/// The kernels of one pass.
#[derive(Clone, Debug, Default)]
pub(super) struct PassTexts {
    pub selecting: Vec<Text>,
    pub reducing: Vec<Text>,
}

/// The kernels of a formula.
#[derive(Clone, Debug)]
pub(super) struct Texts {
    /// One for each pass but the last.
    pub passes: Vec<PassTexts>,
    pub writing: Text,
}

/// The text that brackets and resolves selections, of whatever formula.
pub(super) fn resolving() -> String {
    let shape = Shapes::default().select;
    [&constants(shape, &[]), PRELUDE, SELECTION, RESOLVE].concat()
}

/// The texts of a formula; `None` where it has something that is not computed here, or writes nothing.
pub(super) fn texts(formula: &Formula, inputs: &[Element], output: Element, shapes: Shapes) -> Option<Texts> {
    super::obstacle(formula).is_none().then_some(())?;
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
        for nodes in selections.chunks(SELECTIONS_AT_ONCE) {
            let program = Program::reducing(formula, nodes);
            let checked = taken(&mut unchecked, &program.inputs);
            texts.selecting.push(selecting(&program, formula, inputs, &checked, shapes.select)?);
        }
        for nodes in sums.chunks(REDUCTIONS_AT_ONCE) {
            let program = Program::reducing(formula, nodes);
            let checked = taken(&mut unchecked, &program.inputs);
            texts.reducing.push(self::reducing(&program, formula, inputs, &checked)?);
        }
        passes.push(texts);
    }
    let emitted = emit(&writing, formula, inputs, &writing.inputs)?;
    let more = [("STORE", format!("store_{}", type_name(output)))];
    let writing = text(&writing, formula, &emitted, shapes.write, &more, &[WRITE]);
    Some(Texts { passes, writing })
}

/// Takes what a program reads out of the inputs that nobody has checked yet.
fn taken(unchecked: &mut Vec<u16>, reads: &[u16]) -> Vec<u16> {
    unchecked.extract_if(.., |input| reads.contains(input)).collect()
}

fn selecting(
    program: &Program,
    formula: &Formula,
    inputs: &[Element],
    checked: &[u16],
    shape: Shape,
) -> Option<Text> {
    let emitted = emit(program, formula, inputs, checked)?;
    // 36 KiB of shared memory for six bytes of each magnitude.
    let staged = (36 * 1024 / (6 * emitted.outputs.max(1))).min(1280);
    let more = [("STAGED", staged.to_string()), ("SAMPLING_BLOCKS", format!("{SAMPLING_BLOCKS}ULL"))];
    let text = text(program, formula, &emitted, shape, &more, &[SELECTION, SELECT]);
    Some(Text { completes: program.ranks.clone(), parts: 1, ..text })
}

fn reducing(program: &Program, formula: &Formula, inputs: &[Element], checked: &[u16]) -> Option<Text> {
    let emitted = emit(program, formula, inputs, checked)?;
    let list = |value: &dyn Fn(&Reduced) -> String| {
        let values: Vec<String> = emitted.reductions.iter().map(value).collect();
        format!("{{{}}}", values.join(", "))
    };
    let fold = |reduced: &Reduced| match (reduced.fold, reduced.y) {
        (Fold::Sum, None) => "SUM",
        (Fold::Sum, Some(_)) => "DOT",
        (Fold::Magnitudes, _) => "MAGNITUDES",
        (Fold::Largest, _) => "LARGEST",
        (Fold::Greatest, _) => "GREATEST",
    };
    let more = [
        ("REDUCTIONS", emitted.reductions.len().to_string()),
        ("FOLDS", list(&|reduced| fold(reduced).to_owned())),
        ("FOLD_X", list(&|reduced| reduced.x.to_string())),
        ("FOLD_Y", list(&|reduced| reduced.y.unwrap_or(reduced.x).to_string())),
    ];
    let shape = Shape { threads: 128, vector: 8, parts: 1 };
    let text = text(program, formula, &emitted, shape, &more, &[REDUCE]);
    Some(Text {
        completes: program.reductions.iter().map(|&(node, _)| node).collect(),
        folds: emitted.reductions.iter().map(|reduced| reduced.fold).collect(),
        ..text
    })
}

fn text(
    program: &Program,
    formula: &Formula,
    emitted: &Emitted,
    shape: Shape,
    more: &[(&str, String)],
    kernels: &[&str],
) -> Text {
    let mut all = vec![
        ("WORDS", words_of(formula).to_string()),
        ("SCALARS", program.scalars.len().to_string()),
        ("OUT", emitted.outputs.to_string()),
    ];
    all.extend(more.iter().cloned());
    let elementary = if emitted.is_elementary { ELEMENTARY } else { "" };
    let constants = constants(shape, &all);
    let mut source = [&constants, PRELUDE, elementary, "\n", &emitted.text, "\n"].concat();
    source.extend(kernels.iter().copied());
    Text {
        source,
        scalars: program.scalars.clone(),
        completes: Vec::new(),
        folds: Vec::new(),
        threads: shape.threads,
        parts: shape.parts,
    }
}

/// Words that describe a tensor; see `text/prelude.cu`.
pub(super) fn words_of(formula: &Formula) -> usize {
    4 + formula.inputs()
}

fn constants(shape: Shape, more: &[(&str, String)]) -> String {
    let Shape { threads, vector, parts } = shape;
    let shape =
        [("THREADS", format!("{threads}ULL")), ("V", format!("{vector}")), ("PARTS", format!("{parts}u"))];
    let lines = shape.iter().chain(more).map(|(name, value)| format!("#define {name} {value}\n"));
    lines.collect()
}

/// Whether a formula selects by something that the host has to know before the next pass.
pub(super) fn is_magnitude(formula: &Formula, node: NodeId) -> bool {
    matches!(formula.op(node), Op::Kth(..))
}

const PRELUDE: &str = include_str!("text/prelude.cu");
const ELEMENTARY: &str = include_str!("text/elementary.cu");
const SELECTION: &str = include_str!("text/selection.cu");
const WRITE: &str = include_str!("text/write.cu");
const REDUCE: &str = include_str!("text/reduce.cu");
const SELECT: &str = include_str!("text/select.cu");
const RESOLVE: &str = include_str!("text/resolve.cu");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formula::{Axis, Graph};

    #[test]
    fn a_formula_has_a_text_for_each_sweep() {
        let graph = Graph::new();
        let base = graph.input(0);
        let mut merged = base;
        for model in 1..=6 {
            let d = graph.input(model) - base;
            let kept = d * d.top(10);
            merged = merged + kept * (d.norm(Axis::Tensor) / kept.norm(Axis::Tensor));
        }
        let formula = graph.finish(merged).unwrap();
        let texts = texts(&formula, &[Element::BF16; 7], Element::F16, Shapes::default()).unwrap();
        let counts: Vec<_> =
            texts.passes.iter().map(|pass| (pass.selecting.len(), pass.reducing.len())).collect();
        // Six selections, and six norms in two kernels, then six norms of what is kept.
        assert_eq!(counts, [(1, 2), (0, 2)]);
        assert_eq!(texts.passes[0].selecting[0].completes.len(), 6);
        assert!(texts.writing.source.contains("#define STORE store_f16\n"));
        assert!(texts.writing.source.contains("#define WORDS 11\n"));
        assert!(!texts.writing.source.contains("exponential"));
    }

    #[test]
    fn an_input_that_the_output_does_not_read_is_checked_where_it_is_read() {
        let graph = Graph::new();
        let (x, y) = (graph.input(0), graph.input(1));
        let formula = graph.finish(x * y.sum(Axis::Tensor)).unwrap();
        let texts = texts(&formula, &[Element::F32; 2], Element::F32, Shapes::default()).unwrap();
        let watches = |text: &Text| text.source.contains("<true>(");
        assert!(watches(&texts.passes[0].reducing[0]) && watches(&texts.writing));
        let graph = Graph::new();
        let x = graph.input(0);
        let formula = graph.finish(x * x.sum(Axis::Tensor)).unwrap();
        let texts = self::texts(&formula, &[Element::F32], Element::F32, Shapes::default()).unwrap();
        assert!(!watches(&texts.passes[0].reducing[0]) && watches(&texts.writing));
    }
}
