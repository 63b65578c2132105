//! Holds outputs in FP8 with a scale for each row to the interpreter, whatever the tile and the vector level.

use std::ops::Range;
use std::sync::Arc;

use aludel_kernels::cpu::{CHUNK, Compiled, Evaluation, Geometry, Job, Level, Scratch, Source, WaveKind};
use aludel_kernels::element::{Element, Encoding};
use aludel_kernels::formula::{Formula, Graph, interpret};
use aludel_kernels::random::{StreamKey, uniform};

struct Stored(Vec<Vec<f32>>, Vec<Vec<u8>>);

impl Stored {
    /// Two inputs whose rows differ in size by powers of ten; the row in the middle is of zeros.
    fn new(rows: usize, columns: usize) -> Self {
        let value = |input: u64, i: usize| {
            let row = i / columns;
            let size = if row == rows / 2 { 0.0 } else { 10f32.powi(row as i32 % 7 - 3) };
            (uniform(StreamKey(input), i as u64) - 0.5) * size
        };
        let values = [3, 4].map(|input| (0..rows * columns).map(|i| value(input, i)).collect::<Vec<_>>());
        let bytes = values.each_ref().map(|values| Element::F32.encode(values));
        Self(values.to_vec(), bytes.to_vec())
    }
}

impl Source for Stored {
    fn element(&self, _: usize) -> Element {
        Element::F32
    }
    fn bytes(&self, input: usize, elements: Range<u64>) -> &[u8] {
        &self.1[input][elements.start as usize * 4..elements.end as usize * 4]
    }
}

fn formula() -> Arc<Formula> {
    let graph = Graph::new();
    let merged = graph.input(0) * 0.25 + graph.input(1) * 0.75;
    Arc::new(graph.finish(merged).unwrap().scaled(Encoding::E4M3_LARGEST).unwrap())
}

/// The codes, the scales as the units hand them out, and the number of sweeps.
fn evaluate(
    source: &Stored,
    rows: usize,
    columns: usize,
    tile: u64,
    level: Level,
) -> (Vec<u8>, Vec<f32>, usize) {
    let geometry = Geometry::new((rows * columns) as u64, columns as u64);
    let job = Job { level, ..Job::new(Arc::new(Compiled::new(formula())), geometry, Encoding::E4m3, tile) };
    let (mut codes, mut scales) = (vec![0xAA; rows * columns], vec![f32::NAN; rows]);
    let (mut evaluation, mut wave) = Evaluation::start(job);
    loop {
        for index in (0..wave.units()).rev() {
            let Range { start, end } = wave.unit(index).elements;
            let writes = wave.kind() == WaveKind::Write;
            let out = if writes { &mut codes[start as usize..end as usize] } else { &mut [] };
            wave.run(index, source, &mut Scratch::default(), out).unwrap();
            if let Some((first, values)) = wave.scales(index).filter(|_| writes) {
                let slots = &mut scales[first as usize..first as usize + values.len()];
                assert!(slots.iter().all(|slot| slot.is_nan()), "a row begins in one unit");
                slots.iter_mut().zip(values).for_each(|(slot, &value)| *slot = value as f32);
            }
        }
        match evaluation.advance(&wave) {
            Some(next) => wave = next,
            None => return (codes, scales, evaluation.sweeps()),
        }
    }
}

#[test]
fn codes_and_scales_are_those_of_the_interpreter() {
    for (rows, columns) in [(1, 1), (7, 41), (401, 1), (3, 100_001), (300, 700), (1, 140_000)] {
        let source = Stored::new(rows, columns);
        let expected = interpret(&formula(), &[&source.0[0], &source.0[1]], columns, &[]);
        let (quotients, scales) = expected.split_at(rows * columns);
        let codes = Encoding::E4m3.encode(quotients);
        for (tile, level) in [(1, Level::Baseline), (2, Level::Avx2), (3, Level::Avx512)] {
            let (got, got_scales, sweeps) = evaluate(&source, rows, columns, tile * CHUNK, level);
            assert!(got == codes, "codes of {rows} x {columns}, {tile} chunks, {level:?}");
            assert_eq!(got_scales, scales, "{rows} x {columns}, {tile} chunks, {level:?}");
            assert_eq!(sweeps, 2, "one sweep finds the scales and one writes");
        }
    }
}

#[test]
fn the_largest_value_of_a_row_is_the_largest_code_and_zeros_stay_zeros() {
    let (rows, columns) = (9, 64);
    let (codes, scales, _) = evaluate(&Stored::new(rows, columns), rows, columns, CHUNK, Level::Baseline);
    for (row, (codes, scale)) in codes.chunks(columns).zip(scales).enumerate() {
        let largest = codes.iter().map(|code| code & 0x7f).max().unwrap();
        if row == rows / 2 {
            assert_eq!((largest, scale), (0, f32::MIN_POSITIVE));
        } else {
            assert_eq!(largest, 0x7e, "row {row}");
        }
    }
}
