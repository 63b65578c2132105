//! Says everything in CUDA C: what is printed of a pass, and the constants and texts (`text/*.cu`) that make kernels of it.
//!
//! In: the parts of expressions, a printed pass, a [`Shape`]. Out: texts for the run-time compiler. `V` elements are computed at once by a thread.

use std::fmt::Write;

use crate::cpu::Fold;
use crate::element::Element;
use crate::formula::Unary;
use crate::gpu::{Arithmetic, Bound, Dialect, Kind, Literal, Printed, Reduced, Source, type_name, words_of};

/// Blocks that sample one tensor.
pub(super) const SAMPLING_BLOCKS: u64 = 32;

/// Threads of a block that resolves selections.
pub(super) const RESOLVERS: u32 = 1024;

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

/// The language of NVIDIA's compiler, translated to a device's own instructions when a kernel is first needed.
#[derive(Clone, Copy, Debug)]
pub struct CudaC;

/// The text that brackets and resolves selections, of whatever formula.
pub(super) fn resolving() -> String {
    let shape = Shapes::default().select;
    [&constants(shape, &[]), PRELUDE, SELECTION, RESOLVE].concat()
}

impl Dialect for CudaC {
    type Shapes = Shapes;

    const SELECTIONS_AT_ONCE: usize = 8;

    /// What a block stages of their operands fits into its shared memory.
    const REDUCTIONS_AT_ONCE: usize = 5;

    const INDENT: &'static str = "        ";

    fn obstacle(op: Unary) -> Option<&'static str> {
        match op {
            Unary::RoundToE4m3 => Some("it rounds to FP8"),
            Unary::Sine | Unary::Cosine | Unary::ArcCosine => Some("it has angles of elements"),
            _ => None,
        }
    }

    fn literal(value: Literal) -> &'static str {
        match value {
            Literal::Zero => "0.0f",
            Literal::One => "1.0f",
        }
    }

    fn loaded(input: u16) -> String {
        format!("in{input}[j]")
    }

    fn word(stream: u16) -> String {
        format!("words{stream}[j]")
    }

    fn arithmetic(op: Arithmetic, a: &str, b: &str) -> String {
        let sign = match op {
            Arithmetic::Add => '+',
            Arithmetic::Subtract => '-',
            Arithmetic::Multiply => '*',
            Arithmetic::Divide => '/',
        };
        format!("{a} {sign} {b}")
    }

    fn divided(x: &str, divisor: &str) -> String {
        format!("divided({x}, {divisor})")
    }

    fn unary(op: Unary, x: &str) -> String {
        let elementary = match op {
            Unary::Negate => return format!("-{x}"),
            Unary::Absolute => return format!("fabsf({x})"),
            Unary::SquareRoot => return format!("__fsqrt_rn({x})"),
            Unary::Exponential => "exponential",
            Unary::ExponentialLessOne => "exponential_less_one",
            Unary::Logarithm => "logarithm",
            Unary::LogarithmOfOneMore => "logarithm_of_one_more",
            Unary::RoundToE4m3 | Unary::Sine | Unary::Cosine | Unary::ArcCosine => {
                unreachable!("an obstacle")
            }
        };
        format!("(float){elementary}((double){x})")
    }

    fn chosen(condition: &str, a: &str, b: &str) -> String {
        format!("{condition} ? {a} : {b}")
    }

    fn grouped(text: &str) -> String {
        format!("({text})")
    }

    fn kept(x: &str, slot: u16) -> String {
        format!("kept({x}, known.threshold{slot}, j < before{slot})")
    }

    fn named(kind: Kind, name: &str, text: &str) -> String {
        let kind = match kind {
            Kind::Number => "float",
            Kind::Truth => "bool",
        };
        format!("const {kind} {name} = {text};")
    }

    fn given(output: usize, value: &str) -> String {
        format!("out[{output}][j] = {value};")
    }

    fn functions(pass: &Bound<'_>) -> String {
        let mut fields = String::new();
        let mut binding = String::new();
        let mut before = String::new();
        for &(input, element, is_watched) in pass.inputs {
            let _ = writeln!(fields, "    u64 in{input};");
            let _ = writeln!(binding, "    known.in{input} = tensor[INPUTS + {input}];");
            let _ = writeln!(before, "    float in{input}[V];");
            let load = format!("load_{}<{is_watched}>", type_name(element));
            let _ = writeln!(before, "    {load}(in{input}, known.in{input}, base, elements, met);");
        }
        for slot in 0..pass.scalars {
            let _ = writeln!(fields, "    float s{slot};");
            let _ = writeln!(binding, "    known.s{slot} = scalars[{slot}];");
        }
        for slot in pass.nothings {
            let _ = writeln!(fields, "    float nothing{slot};");
            let _ = writeln!(binding, "    known.nothing{slot} = 0.0f * known.s{slot};");
        }
        for (slot, at) in pass.cuts.iter().enumerate() {
            let cut = format!("((const Cut*)tensor[CUTS])[{at}]");
            let _ = writeln!(fields, "    int threshold{slot};\n    u64 ties_end{slot};");
            let _ = writeln!(binding, "    known.threshold{slot} = (int){cut}.threshold;");
            let _ = writeln!(binding, "    known.ties_end{slot} = {cut}.ties_end;");
            let _ = writeln!(before, "    const int before{slot} = ::before(known.ties_end{slot}, base);");
        }
        for stream in pass.drawn {
            let _ = writeln!(fields, "    u64 key{stream};");
            let _ = writeln!(binding, "    known.key{stream} = ((const u64*)tensor[KEYS])[{stream}];");
            let _ = writeln!(before, "    u32 words{stream}[V];");
            let _ = writeln!(before, "    draw(words{stream}, known.key{stream}, base);");
        }
        format!(
            "struct Known {{\n{fields}}};\n\n\
             __device__ __forceinline__ Known known_of(const u64* tensor, const float* scalars) {{\n\
             \x20   Known known;\n{binding}    return known;\n}}\n\n\
             __device__ __forceinline__ void values(\n\
             \x20   const Known& known, const u64 base, const u64 elements, float (&out)[OUT][V], u32& met\n) {{\n\
             {before}#pragma unroll\n    for (int j = 0; j < V; j++) {{\n{}    }}\n}}\n",
            pass.body
        )
    }

    fn writing(pass: &Printed<'_>, output: Element, shapes: Shapes) -> Source {
        let more = [("STORE", format!("store_{}", type_name(output)))];
        source(pass, shapes.write, &more, &[WRITE])
    }

    fn selecting(pass: &Printed<'_>, shapes: Shapes) -> Source {
        // 36 KiB of shared memory for six bytes of each magnitude.
        let staged = (36 * 1024 / (6 * pass.emitted.outputs.max(1))).min(1280);
        let more = [("STAGED", staged.to_string()), ("SAMPLING_BLOCKS", format!("{SAMPLING_BLOCKS}ULL"))];
        Source { parts: 1, ..source(pass, shapes.select, &more, &[SELECTION, SELECT]) }
    }

    fn reducing(pass: &Printed<'_>) -> Source {
        let reductions = &pass.emitted.reductions;
        let list = |value: &dyn Fn(&Reduced) -> String| {
            let values: Vec<String> = reductions.iter().map(value).collect();
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
            ("REDUCTIONS", reductions.len().to_string()),
            ("FOLDS", list(&|reduced| fold(reduced).to_owned())),
            ("FOLD_X", list(&|reduced| reduced.x.to_string())),
            ("FOLD_Y", list(&|reduced| reduced.y.unwrap_or(reduced.x).to_string())),
        ];
        source(pass, Shape { threads: 128, vector: 8, parts: 1 }, &more, &[REDUCE])
    }
}

fn source(pass: &Printed<'_>, shape: Shape, more: &[(&str, String)], kernels: &[&str]) -> Source {
    let mut all = vec![
        ("WORDS", words_of(pass.formula).to_string()),
        ("SCALARS", pass.scalars.to_string()),
        ("OUT", pass.emitted.outputs.to_string()),
    ];
    all.extend(more.iter().cloned());
    let elementary = if pass.emitted.is_elementary { ELEMENTARY } else { "" };
    let constants = constants(shape, &all);
    let mut text = [&constants, PRELUDE, elementary, "\n", &pass.emitted.text, "\n"].concat();
    text.extend(kernels.iter().copied());
    Source { text, threads: shape.threads, parts: shape.parts }
}

fn constants(shape: Shape, more: &[(&str, String)]) -> String {
    let Shape { threads, vector, parts } = shape;
    let shape =
        [("THREADS", format!("{threads}ULL")), ("V", format!("{vector}")), ("PARTS", format!("{parts}u"))];
    let lines = shape.iter().chain(more).map(|(name, value)| format!("#define {name} {value}\n"));
    lines.collect()
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
    use crate::gpu::{Text, texts};

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
        let texts = texts::<CudaC>(&formula, &[Element::BF16; 7], Element::F16, Shapes::default()).unwrap();
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
        let texts = texts::<CudaC>(&formula, &[Element::F32; 2], Element::F32, Shapes::default()).unwrap();
        let watches = |text: &Text| text.source.contains("<true>(");
        assert!(watches(&texts.passes[0].reducing[0]) && watches(&texts.writing));
        let graph = Graph::new();
        let x = graph.input(0);
        let formula = graph.finish(x * x.sum(Axis::Tensor)).unwrap();
        let texts =
            crate::gpu::texts::<CudaC>(&formula, &[Element::F32], Element::F32, Shapes::default()).unwrap();
        assert!(!watches(&texts.passes[0].reducing[0]) && watches(&texts.writing));
    }
}
