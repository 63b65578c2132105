//! Says everything in WGSL: what is printed of a pass, and the constants and texts (`text/*.wgsl`) that make kernels of it.
//!
//! In: the parts of expressions, a printed pass. Out: texts for wgpu, which translates them for Metal, Vulkan or Direct3D 12. Four elements are
//! computed at once by a thread, as one vector. Arithmetic is called by name (`plus`, `times`), because what it may not be made into is said there.

use std::fmt::Write;

use crate::cpu::Fold;
use crate::element::Element;
use crate::formula::Unary;
use crate::gpu::{Arithmetic, Bound, Dialect, Kind, Literal, Printed, Source, type_name, words_of};

/// Threads of a block: as many as every adapter has.
pub(super) const THREADS: u32 = 256;

/// Threads of a block that reduces: sixteen for each reduction, and what they stage fits into 16 KiB.
const REDUCING_THREADS: u32 = 64;

/// The language of WebGPU's kernels, which any GPU runs.
#[derive(Clone, Copy, Debug)]
pub struct Wgsl;

/// The text that finds thresholds by what was counted, of whatever formula.
pub(super) fn resolving() -> String {
    let constants = format!("const THREADS = {THREADS}u;\n");
    [&constants, PRELUDE, SELECTION, RESOLVE].concat()
}

impl Dialect for Wgsl {
    /// It is the same for all of them.
    type Shapes = ();

    /// A histogram takes half of a block's memory.
    const SELECTIONS_AT_ONCE: usize = 1;

    const REDUCTIONS_AT_ONCE: usize = 4;

    const INDENT: &'static str = "    ";

    fn obstacle(op: Unary) -> Option<&'static str> {
        match op {
            Unary::Negate | Unary::Absolute | Unary::SquareRoot => None,
            Unary::Exponential | Unary::ExponentialLessOne | Unary::Logarithm | Unary::LogarithmOfOneMore => {
                Some("it has exponentials or logarithms, which take f64")
            }
            Unary::RoundToE4m3 => Some("it rounds to FP8"),
            Unary::Sine | Unary::Cosine | Unary::ArcCosine => Some("it has angles of elements"),
        }
    }

    fn literal(value: Literal) -> &'static str {
        match value {
            Literal::Zero => "vec4(0.0)",
            Literal::One => "vec4(1.0)",
        }
    }

    fn loaded(input: u16) -> String {
        format!("in{input}")
    }

    fn word(stream: u16) -> String {
        format!("words{stream}")
    }

    fn arithmetic(op: Arithmetic, a: &str, b: &str) -> String {
        let name = match op {
            Arithmetic::Add => "plus",
            Arithmetic::Subtract => "minus",
            Arithmetic::Multiply => "times",
            Arithmetic::Divide => "quotient",
        };
        format!("{name}({a}, {b})")
    }

    fn divided(x: &str, divisor: &str) -> String {
        Self::arithmetic(Arithmetic::Divide, x, divisor)
    }

    fn unary(op: Unary, x: &str) -> String {
        let name = match op {
            Unary::Negate => "negated",
            Unary::Absolute => "magnitude",
            Unary::SquareRoot => "root",
            _ => unreachable!("an obstacle"),
        };
        format!("{name}({x})")
    }

    fn chosen(condition: &str, a: &str, b: &str) -> String {
        format!("select({b}, {a}, {condition})")
    }

    fn grouped(text: &str) -> String {
        text.to_owned()
    }

    fn kept(x: &str, slot: u16) -> String {
        format!("kept({x}, known.threshold{slot}, early{slot})")
    }

    fn named(_: Kind, name: &str, text: &str) -> String {
        format!("let {name} = {text};")
    }

    fn given(output: usize, value: &str) -> String {
        format!("out[{output}] = {value};")
    }

    fn functions(pass: &Bound<'_>) -> String {
        let mut fields = String::from("    elements: u32,\n");
        let mut binding = String::from("    known.elements = word(tensor + ELEMENTS);\n");
        let mut before = String::from("    begin(base, known.elements);\n");
        for &(input, element, is_watched) in pass.inputs {
            let _ = writeln!(fields, "    in{input}: u32,");
            let _ = writeln!(binding, "    known.in{input} = word(tensor + INPUTS + {}u);", 2 * input);
            let load = format!("load_{}(known.in{input}, base, {is_watched})", type_name(element));
            let _ = writeln!(before, "    let in{input} = {load};");
        }
        for slot in 0..pass.scalars {
            let _ = writeln!(fields, "    s{slot}: vec4<f32>,");
            let _ = writeln!(binding, "    known.s{slot} = scalar(scalars + {slot}u);");
        }
        for slot in pass.nothings {
            let _ = writeln!(fields, "    nothing{slot}: vec4<f32>,");
            let _ = writeln!(binding, "    known.nothing{slot} = nothing_of(known.s{slot});");
        }
        for (slot, at) in pass.cuts.iter().enumerate() {
            let _ = writeln!(fields, "    threshold{slot}: i32,\n    ties_end{slot}: u32,");
            let (threshold, ties_end) = (4 * at, 4 * at + 2);
            let _ = writeln!(
                binding,
                "    known.threshold{slot} = bitcast<i32>(word(word(tensor + CUTS) + {threshold}u));"
            );
            let _ = writeln!(binding, "    known.ties_end{slot} = word(word(tensor + CUTS) + {ties_end}u);");
            let _ = writeln!(before, "    let early{slot} = early(known.ties_end{slot}, base);");
        }
        for stream in pass.drawn {
            let _ = writeln!(fields, "    key{stream}: vec2<u32>,");
            let (low, high) = (2 * stream, 2 * stream + 1);
            let _ = writeln!(binding, "    let keys{stream} = word(tensor + KEYS);");
            let key = format!("vec2(word(keys{stream} + {low}u), word(keys{stream} + {high}u))");
            let _ = writeln!(binding, "    known.key{stream} = {key};");
            let _ = writeln!(before, "    let words{stream} = draw(known.key{stream}, base);");
        }
        format!(
            "struct Known {{\n{fields}}}\n\n\
             fn known_of(tensor: u32, scalars: u32) -> Known {{\n\
             \x20   var known: Known;\n{binding}    return known;\n}}\n\n\
             fn values(known: Known, base: u32) -> array<vec4<f32>, OUT> {{\n\
             {before}    var out: array<vec4<f32>, OUT>;\n{}    return out;\n}}\n",
            pass.body
        )
    }

    fn writing(pass: &Printed<'_>, output: Element, (): ()) -> Source {
        // WGSL has no names for functions.
        let write = WRITE.replace("STORE(", &format!("store_{}(", type_name(output)));
        source(pass, THREADS, &[], "", &[&write])
    }

    fn selecting(pass: &Printed<'_>, (): ()) -> Source {
        source(pass, THREADS, &[], "", &[SELECTION, SELECT])
    }

    fn reducing(pass: &Printed<'_>) -> Source {
        let reductions = &pass.emitted.reductions;
        let mut choice = String::new();
        for (at, reduced) in reductions.iter().enumerate() {
            let fold = match (reduced.fold, reduced.y) {
                (Fold::Sum, None) => "SUM",
                (Fold::Sum, Some(_)) => "DOT",
                (Fold::Magnitudes, _) => "MAGNITUDES",
                (Fold::Largest, _) => "LARGEST",
                (Fold::Greatest, _) => "GREATEST",
            };
            let (x, y) = (reduced.x, reduced.y.unwrap_or(reduced.x));
            let _ = writeln!(choice, "        case {at}u: {{ return vec3({fold}, {x}u, {y}u); }}");
        }
        let choice = format!(
            "// What a reduction does, and of which outputs.\n\
             fn reduction_of(at: u32) -> vec3<u32> {{\n    switch at {{\n{choice}        \
             default: {{ return vec3(SUM, 0u, 0u); }}\n    }}\n}}\n\n"
        );
        let count = [("REDUCTIONS", reductions.len())];
        source(pass, REDUCING_THREADS, &count, &choice, &[REDUCE])
    }
}

fn source(
    pass: &Printed<'_>,
    threads: u32,
    more: &[(&str, usize)],
    functions: &str,
    kernels: &[&str],
) -> Source {
    // Places are counted in words of 32 bits.
    let all = [
        ("THREADS", threads as usize),
        ("WORDS", 2 * words_of(pass.formula)),
        ("SCALARS", pass.scalars),
        ("OUT", pass.emitted.outputs),
    ];
    let constants: String =
        all.iter().chain(more).map(|(name, value)| format!("const {name} = {value}u;\n")).collect();
    let mut text = [&constants, PRELUDE, "\n", &pass.emitted.text, "\n", functions].concat();
    text.extend(kernels.iter().copied());
    Source { text, threads, parts: 1 }
}

const PRELUDE: &str = include_str!("text/prelude.wgsl");
const WRITE: &str = include_str!("text/write.wgsl");
const REDUCE: &str = include_str!("text/reduce.wgsl");
const SELECTION: &str = include_str!("text/selection.wgsl");
const SELECT: &str = include_str!("text/select.wgsl");
const RESOLVE: &str = include_str!("text/resolve.wgsl");
