//! Holds the CPU executor to the scalar interpreter: one table of formulas and shapes through both, at every vector
//! level, tile size and storage type.

use std::ops::Range;
use std::sync::Arc;

use aludel_kernels::cpu::{
    CHUNK, Compiled, Evaluation, Geometry, Job, Level, NonFinite, Scratch, Source, WaveKind,
};
use aludel_kernels::element::Element;
use aludel_kernels::formula::{Axis, Expr, Formula, Graph, interpret, interpret_in_bands};
use aludel_kernels::random::{StreamKey, uniform};

struct Stored {
    element: Element,
    inputs: Vec<Vec<u8>>,
}

impl Source for Stored {
    fn element(&self, _: usize) -> Element {
        self.element
    }
    fn bytes(&self, input: usize, elements: Range<u64>) -> &[u8] {
        let size = self.element.size();
        &self.inputs[input][elements.start as usize * size..elements.end as usize * size]
    }
}

/// The same values, of which those of one input are made when they are asked for.
struct Made<'s> {
    stored: &'s Stored,
    input: usize,
}

impl Source for Made<'_> {
    fn element(&self, input: usize) -> Element {
        self.stored.element(input)
    }
    fn bytes(&self, input: usize, elements: Range<u64>) -> &[u8] {
        assert_ne!(input, self.input, "it has no bytes");
        self.stored.bytes(input, elements)
    }
    fn is_made(&self, input: usize) -> bool {
        input == self.input
    }
    fn make(&self, input: usize, start: u64, to: &mut [f32]) {
        assert!(to.len() <= 1024, "more than a block");
        let elements = start..start + to.len() as u64;
        to.copy_from_slice(&self.element(input).decode(self.stored.bytes(input, elements)));
    }
}

/// Runs all units, the last first, and counts the sweeps.
fn evaluate(job: Job, source: &dyn Source) -> Result<(Vec<u8>, usize), NonFinite> {
    evaluated(job, source).map(|(out, evaluation)| (out, evaluation.sweeps()))
}

/// Runs all units, the last first.
fn evaluated(job: Job, source: &dyn Source) -> Result<(Vec<u8>, Evaluation), NonFinite> {
    let size = job.output.size();
    let mut out = vec![0xAA; job.geometry.elements as usize * size];
    let (mut evaluation, mut wave) = Evaluation::start(job);
    let mut scratch = Scratch::default();
    loop {
        for index in (0..wave.units()).rev() {
            let elements = wave.unit(index).elements;
            let writes = wave.kind() == WaveKind::Write;
            let range = elements.start as usize * size..elements.end as usize * size;
            wave.run(index, source, &mut scratch, if writes { &mut out[range] } else { &mut [] })?;
        }
        match evaluation.advance(&wave) {
            Some(next) => wave = next,
            None => return Ok((out, evaluation)),
        }
    }
}

/// The figures of a job that measures; runs all units, the last first.
fn figures(job: Job, source: &dyn Source) -> Vec<f64> {
    let (mut evaluation, mut wave) = Evaluation::start(job);
    let mut scratch = Scratch::default();
    loop {
        assert_ne!(wave.kind(), WaveKind::Write);
        for index in (0..wave.units()).rev() {
            wave.run(index, source, &mut scratch, &mut []).unwrap();
        }
        match evaluation.advance(&wave) {
            Some(next) => wave = next,
            None => return evaluation.figures(),
        }
    }
}

/// Values of the size of weights; every seventh is a multiple of 1/64, so that differences tie.
fn stored(element: Element, inputs: usize, elements: usize) -> Stored {
    let value = |input: usize, i: usize| {
        let u = uniform(StreamKey(1000 + input as u64), i as u64) - 0.5;
        if i.is_multiple_of(7) { (u * 8.0).round() / 64.0 } else { u }
    };
    let input = |n| element.encode(&(0..elements).map(|i| value(n, i)).collect::<Vec<_>>());
    Stored { element, inputs: (0..inputs).map(input).collect() }
}

/// Builds a formula for a tensor of so many elements.
type Build = for<'g> fn(&'g Graph, u64) -> Expr<'g>;

/// Formulas of the elementwise operations alone, then with reductions of every kind.
fn cases() -> Vec<(&'static str, Build, usize)> {
    vec![
        ("arithmetic", |g, _| g.input(0) * 0.3 + g.input(1) * -1.7 / (g.input(2).abs() + 0.5).sqrt(), 0),
        (
            "comparison",
            |g, _| {
                let (a, b, c) = (g.input(0), g.input(1), g.input(2));
                a.less(b).select(a.min(c), b.max(0.1)) + a.less_or_equal(b).and(!c.equal(0.0)) * -c
            },
            0,
        ),
        ("random", |g, _| g.input(0) + g.input(1) * g.random(0).less(0.4) - g.input(2) * g.random(1), 0),
        ("constant", |g, _| g.input(0).less(0.0).select(1.5, -2.5) + g.input(1) * g.input(2), 0),
        (
            "sums",
            |g, _| {
                let (a, b, c) = (g.input(0), g.input(1), g.input(2));
                a * (a.dot(b, Axis::Tensor) / (a.norm(Axis::Tensor) * b.norm(Axis::Tensor)).max(1e-6))
                    .min(1.0)
                    .max(-1.0)
                    .acos()
                    .sin()
                    + c / (c.largest(Axis::Tensor) + 1.0)
                    - b * c.abs().sum(Axis::Tensor)
            },
            1,
        ),
        (
            "rows",
            |g, _| {
                let (a, b, c) = (g.input(0), g.input(1), g.input(2));
                a * a.dot(b, Axis::Row)
                    + c / (c.largest(Axis::Row) + 1.0)
                    + b.sum(Axis::Row) * c.sum(Axis::Tensor)
            },
            1,
        ),
        (
            "top",
            |g, n| {
                let (b, x) = (g.input(0) - g.input(2), g.input(1) - g.input(2));
                g.input(2) + b * b.top(n / 2) + x * x.top(n / 5)
            },
            1,
        ),
        (
            "band",
            |g, n| {
                let x = g.input(0) - g.input(1);
                g.input(2) + x * x.top(n - n / 3).and(!x.top(n / 50))
            },
            1,
        ),
        (
            "rescaled",
            |g, n| {
                let d = g.input(0) - g.input(1);
                let kept = d * d.top(n / 3 + 1);
                g.input(2) + kept * (d.abs().sum(Axis::Tensor) / kept.abs().sum(Axis::Tensor))
            },
            2,
        ),
        ("elected of two", |g, n| elected(g, n, 2, false), 1),
        ("elected of three", |g, n| elected(g, n, 3, true), 1),
        ("elected of four", |g, n| elected(g, n, 4, true), 1),
        ("elected of five", |g, n| elected(g, n, 5, true), 1),
        (
            "drawn",
            |g, _| {
                let (d, e) = (g.input(0) - g.input(1), g.input(2));
                let ratio = d.abs().sum(Axis::Tensor) / (e.largest(Axis::Tensor) + 1.0);
                g.input(1) + d * g.random(0).less(0.4) * ratio * 0.7 + e * g.random(1).less(0.9)
            },
            1,
        ),
        (
            "powers",
            |g, _| {
                let (a, b, c) = (g.input(0), g.input(1), g.input(2));
                (a * 9.0).exp() - (b.abs() + 1e-3).ln() + (c * 1e-3).exp_m1() * (b * b).ln_1p()
            },
            0,
        ),
        (
            "columns",
            |g, _| {
                let (a, b, c) = (g.input(0), g.input(1), g.input(2));
                a / (a.norm(Axis::Column) + 0.1) + b * b.dot(c, Axis::Column) * c.sum(Axis::Row)
                    - c.greatest(Axis::Column) * b.largest(Axis::Column)
                    + (a.sum(Axis::Column) * 0.5 + b.sum(Axis::Row)) * c.sum(Axis::Tensor).cos()
            },
            1,
        ),
        (
            "softmax",
            |g, _| {
                let (a, b) = (g.input(0), g.input(1));
                let power = (a - a.greatest(Axis::Row)).exp();
                power / power.sum(Axis::Row) * b + g.input(2) * b.greatest(Axis::Tensor)
            },
            2,
        ),
        (
            "quantiles",
            |g, n| {
                let x = g.input(0) - g.input(1);
                let (first, last) = (x.kth(1u64), x.kth(n));
                let middle = x.kth(n.div_ceil(2));
                g.constant(0.0).less(x.abs() - middle).select(g.input(2), first) + last
            },
            1,
        ),
        (
            "a counted count",
            |g, _| {
                let (a, b) = (g.input(0), g.input(1));
                let differ = !(a * 8.0).abs().less(b.abs());
                g.input(2)
                    + b * (b * differ).top(differ.sum(Axis::Tensor) * 0.5)
                    + a.kth(0u64).min(3.0) * a.kth(1u64 << 40)
            },
            2,
        ),
        (
            "ranks",
            |g, _| {
                let (a, b, c) = (g.input(0), g.input(1), g.input(2));
                c + (a - b) * (b - c).rank() - b * g.random(0).less((a * a.sum(Axis::Tensor)).rank() * 1e-3)
            },
            1,
        ),
        (
            "sums of ranks",
            |g, _| {
                let (a, b) = (g.input(0), g.input(1));
                g.input(2) + a * (a * (a - b).rank()).sum(Axis::Tensor) / (b.rank().sum(Axis::Row) + 1.0)
            },
            1,
        ),
        (
            "tops of rows",
            |g, _| {
                let (a, b, c) = (g.input(0) - g.input(2), g.input(1), g.input(2));
                let kept = a * a.row_top(7u64);
                c + kept * (a.abs().sum(Axis::Row) / (kept.abs().sum(Axis::Row) + 1.0))
                    + b * b.row_top(0u64)
                    + b * (b * c.row_top(30u64)).row_top(1u64 << 40)
            },
            2,
        ),
        ("nothing and everything", |g, n| g.input(0) * g.input(1).top(0) + g.input(1) * g.input(2).top(n), 1),
    ]
}

/// Parts of which some are trimmed and some are dropped at random, those that have the elected sign added, as a method
/// with a sign consensus writes it.
fn elected(g: &Graph, elements: u64, parts: u16, normalize: bool) -> Expr<'_> {
    let (base, zero) = (g.input(0), g.constant(0.0));
    let part = |i: u16| {
        let d = g.input(1 + i % 2) - base * f64::from(i + 1);
        let kept =
            if i.is_multiple_of(2) { d * d.top(elements / 2 + 1) } else { d * g.random(i % 2).less(0.7) };
        if i == 1 { kept } else { kept * (0.5 + f64::from(i)) }
    };
    let values: Vec<Expr<'_>> = (0..parts).map(part).collect();
    fn sum<'g>(terms: &[Expr<'g>]) -> Expr<'g> {
        terms[1..].iter().fold(terms[0], |sum, &term| sum + term)
    }
    let is_positive = zero.less_or_equal(sum(&values));
    let agrees: Vec<_> = values.iter().map(|&x| is_positive.select(zero.less(x), x.less(0.0))).collect();
    let mixed = sum(&values.iter().zip(&agrees).map(|(&x, &agrees)| x * agrees).collect::<Vec<_>>());
    if !normalize {
        return base + mixed;
    }
    let weight = |(i, &agrees): (usize, &_)| if i == 1 { agrees } else { agrees * (i as f64 - 0.5) };
    let divisor = sum(&agrees.iter().enumerate().map(weight).collect::<Vec<_>>());
    base + mixed / divisor.equal(0.0).select(1.0, divisor)
}

/// What is measured in one sweep, in several, and with selections that need none.
fn measures() -> Vec<Arc<Formula>> {
    let of = |build: for<'g> fn(&'g Graph) -> Vec<Expr<'g>>| {
        let graph = Graph::new();
        Arc::new(graph.measure(&build(&graph)).unwrap())
    };
    vec![
        of(|g| {
            let d = g.input(1) - g.input(0);
            let signs = g.constant(0.0).less(d) - d.less(0.0);
            vec![d.dot(d, Axis::Tensor), signs.dot(signs, Axis::Tensor), d.largest(Axis::Tensor)]
        }),
        of(|g| {
            let far = g.input(0) - g.input(2).sum(Axis::Tensor) * 1e-6;
            vec![far.abs().sum(Axis::Tensor), g.input(1).norm(Axis::Tensor), far.top(5).sum(Axis::Tensor)]
        }),
        of(|g| {
            let (none, one) = (g.input(0).kth(0u64), g.input(0).kth(1u64));
            vec![none, one + g.input(1).largest(Axis::Tensor), one]
        }),
        of(|g| vec![g.input(0).kth(0u64)]),
    ]
}

#[test]
fn figures_are_measured_in_the_order_asked_for_and_depend_on_nothing_else() {
    for formula in measures() {
        for (elements, columns) in SHAPES {
            let source = stored(Element::F32, 3, elements as usize);
            let inputs: Vec<Vec<f32>> =
                source.inputs.iter().map(|bytes| Element::F32.decode(bytes)).collect();
            let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
            let expected = interpret(&formula, &inputs, columns as usize, &[]);
            let run = |tile, level| {
                let job = Job { tile: tile * CHUNK, level, ..job(&formula, elements, columns) };
                figures(job, &source)
            };
            let got = run(1, Level::Baseline);
            assert_eq!(got.len(), expected.len());
            for (got, expected) in got.iter().zip(&expected) {
                let same = got == &f64::from(*expected)
                    || (got - f64::from(*expected)).abs() <= 1e-6 * got.abs().max(1e-3);
                assert!(same, "{formula} of {elements}: {got}, should be {expected}");
            }
            for (tile, level) in [(2, Level::Avx512), (4, Level::Avx2)] {
                assert!(run(tile, level) == got, "{formula}, {tile} chunks, {level:?}");
            }
        }
    }
}

fn formula(build: Build, elements: u64) -> Arc<Formula> {
    let graph = Graph::new();
    let out = build(&graph, elements);
    Arc::new(graph.finish(out).unwrap())
}

fn job(formula: &Arc<Formula>, elements: u64, columns: u64) -> Job {
    let geometry = Geometry::new(elements, columns);
    let streams = vec![StreamKey(77), StreamKey(78)];
    Job { streams, ..Job::new(Arc::new(Compiled::new(Arc::clone(formula))), geometry, Element::F32, CHUNK) }
}

/// Formulas whose sums the interpreter adds in another order.
const SUMMED: [&str; 8] =
    ["sums", "rows", "rescaled", "drawn", "columns", "softmax", "sums of ranks", "tops of rows"];

const SHAPES: [(u64, u64); 8] =
    [(1, 1), (41, 41), (401, 1), (1271, 31), (4096, 64), (70_000, 700), (140_000, 140_000), (262_710, 417)];

#[test]
fn what_is_known_is_not_computed_again_and_changes_no_bit() {
    for (name, build, _) in cases() {
        for (elements, columns) in [(1, 1), (1271, 31), (140_000, 700)] {
            let formula = formula(build, elements);
            let source = stored(Element::BF16, 3, elements as usize);
            let (first, evaluation) = evaluated(job(&formula, elements, columns), &source).unwrap();
            let known = evaluation.statistics();
            let again = Job { known: known.clone(), ..job(&formula, elements, columns) };
            let (second, evaluation) = evaluated(again, &source).unwrap();
            assert!(first == second, "{name} of {elements}");
            assert_eq!((evaluation.sweeps(), evaluation.statistics()), (1, known), "{name} of {elements}");
        }
    }
}

#[test]
fn the_executor_agrees_with_the_interpreter() {
    for (name, build, passes) in cases() {
        for (elements, columns) in SHAPES {
            let formula = formula(build, elements);
            let source = stored(Element::F32, 3, elements as usize);
            let (got, sweeps) = evaluate(job(&formula, elements, columns), &source).unwrap();
            let inputs: Vec<Vec<f32>> =
                source.inputs.iter().map(|bytes| Element::F32.decode(bytes)).collect();
            let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
            let expected = interpret(&formula, &inputs, columns as usize, &[StreamKey(77), StreamKey(78)]);
            let got = Element::F32.decode(&got);
            for (i, (a, b)) in got.iter().zip(&expected).enumerate() {
                let same = if SUMMED.contains(&name) {
                    (a - b).abs() <= 4e-7 * b.abs().max(1e-3)
                } else {
                    a.to_bits() == b.to_bits()
                };
                assert!(same, "{name} of {elements}: element {i} is {a}, should be {b}");
            }
            // The last sweep writes; an f32 threshold may need a second look, as its bucket can hold several values.
            assert!(sweeps <= passes + 2, "{name} of {elements} took {sweeps} sweeps");
        }
    }
}

/// Every so many-th row counts to the same band, as the columns of a head do.
#[test]
fn rows_that_are_apart_count_as_one() {
    let names = ["rows", "rescaled", "drawn", "columns", "tops of rows"];
    for (name, build, _) in cases().into_iter().filter(|(name, ..)| names.contains(name)) {
        for (elements, columns, bands) in [
            (4096, 64, 4),
            (1271, 31, 1),
            (96, 3, 32),
            (262_710, 417, 5),
            (229_376, 128, 7),
            (40_000, 1, 200),
        ] {
            let formula = formula(build, elements);
            let source = stored(Element::F32, 3, elements as usize);
            let run = |tile, level| {
                let geometry = Geometry::new(elements, columns).in_bands(bands);
                let job = Job { geometry, tile: tile * CHUNK, level, ..job(&formula, elements, columns) };
                evaluate(job, &source).unwrap().0
            };
            let got = run(1, Level::Baseline);
            let inputs: Vec<Vec<f32>> =
                source.inputs.iter().map(|bytes| Element::F32.decode(bytes)).collect();
            let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
            let shape = (columns as usize, bands as usize);
            let expected = interpret_in_bands(&formula, &inputs, shape, &[StreamKey(77), StreamKey(78)]);
            for (i, (a, b)) in Element::F32.decode(&got).iter().zip(&expected).enumerate() {
                let same = (a - b).abs() <= 4e-7 * b.abs().max(1e-3);
                assert!(same, "{name} of {elements} in {bands}: element {i} is {a}, should be {b}");
            }
            assert!(run(2, Level::Avx512) == got && run(4, Level::Avx2) == got, "{name} of {elements}");
        }
    }
}

#[test]
fn bytes_do_not_depend_on_tile_level_or_storage_order() {
    for element in [Element::F32, Element::F16, Element::BF16] {
        for (name, build, _) in cases() {
            let (elements, columns) = (3 * CHUNK + 14_736, 336);
            let formula = formula(build, elements);
            let source = stored(element, 3, elements as usize);
            let run = |tile, level| {
                let job = Job {
                    tile: tile * CHUNK,
                    level,
                    output: element.into(),
                    ..job(&formula, elements, columns)
                };
                evaluate(job, &source).unwrap().0
            };
            let expected = run(1, Level::Baseline);
            for (tile, level) in
                [(2, Level::Baseline), (4, Level::Avx2), (1, Level::Avx512), (3, Level::Avx512)]
            {
                assert!(run(tile, level) == expected, "{name} in {element:?}, {tile} chunks, {level:?}");
            }
            for input in 0..3 {
                let job = Job { output: element.into(), ..job(&formula, elements, columns) };
                let made = evaluate(job, &Made { stored: &source, input }).unwrap().0;
                assert!(made == expected, "{name} in {element:?}, input {input} made");
            }
        }
    }
}

/// Zeros of both signs, infinities, NaN, the smallest and the largest numbers in all combinations.
#[test]
fn values_at_the_edges_come_out_as_the_interpreter_has_them() {
    let edges = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        1e-45,
        -1e-39,
        f32::MAX,
        -f32::MAX,
    ];
    let count = edges.len().pow(3);
    let input =
        |n: u32| (0..count).map(|i| edges[i / edges.len().pow(n) % edges.len()]).collect::<Vec<f32>>();
    let inputs = [input(0), input(1), input(2)];
    let source =
        Stored { element: Element::F32, inputs: inputs.iter().map(|x| Element::F32.encode(x)).collect() };
    let keys = [StreamKey(77), StreamKey(78)];
    for (name, build, _) in cases().into_iter().filter(|case| !SUMMED.contains(&case.0)) {
        let formula = formula(build, count as u64);
        let expected = interpret(&formula, &[&inputs[0][..], &inputs[1], &inputs[2]], count, &keys);
        for level in [Level::Baseline, Level::Avx2, Level::Avx512] {
            let job = Job { allow_non_finite: true, level, ..job(&formula, count as u64, count as u64) };
            let got = Element::F32.decode(&evaluate(job, &source).unwrap().0);
            for (i, (a, b)) in got.iter().zip(&expected).enumerate() {
                let same = a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
                assert!(same, "{name}, {level:?}: element {i} is {a}, should be {b}");
            }
        }
    }
}

#[test]
fn sixteen_bit_inputs_are_computed_in_f32_and_rounded_once() {
    let formula = formula(|g, _| g.input(0) * 0.3 + g.input(1) * 0.3 + g.input(2) * 0.4, 1271);
    for element in [Element::F16, Element::BF16] {
        let source = stored(element, 3, 1271);
        let inputs: Vec<Vec<f32>> = source.inputs.iter().map(|bytes| element.decode(bytes)).collect();
        let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
        let expected = element.encode(&interpret(&formula, &inputs, 1271, &[]));
        let got = evaluate(Job { output: element.into(), ..job(&formula, 1271, 1271) }, &source).unwrap().0;
        assert_eq!(got, expected);
    }
}

#[test]
fn a_value_that_is_not_finite_is_refused_by_input_and_index() {
    for (name, build, _) in cases() {
        for elements in [1271, 200_000] {
            let formula = formula(build, elements);
            let mut source = stored(Element::BF16, 3, elements as usize);
            source.inputs[2][2 * 1200..2 * 1200 + 2].copy_from_slice(&0xff80u16.to_le_bytes());
            let refused = evaluate(job(&formula, elements, 1), &source).unwrap_err();
            let expected = NonFinite { input: 2, index: 1200, value: f32::NEG_INFINITY };
            assert_eq!(refused, expected, "{name} of {elements}");
            let made = Made { stored: &source, input: 2 };
            assert_eq!(evaluate(job(&formula, elements, 1), &made).unwrap_err(), expected, "{name}, made");
            let allowed = Job { allow_non_finite: true, ..job(&formula, elements, 1) };
            assert!(evaluate(allowed, &source).is_ok());
        }
    }
}

#[test]
fn an_empty_tensor_is_an_empty_tensor() {
    for (name, build, _) in cases() {
        let formula = formula(build, 0);
        let (out, _) = evaluate(job(&formula, 0, 1), &stored(Element::F16, 3, 0)).unwrap();
        assert!(out.is_empty(), "{name}");
    }
}
