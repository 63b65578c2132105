//! Holds printed passes against recorded ones: `SNAPSHOTS=overwrite` records them anew.

use std::path::Path;

use super::*;
use crate::cuda::CudaC;
use crate::formula::{Axis, Expr, Graph};
use crate::wgpu::Wgsl;

/// What is printed for a formula in every dialect: its last pass, or the one that selects or sums before it.
fn check(name: &str, program: &Program, formula: &Formula, inputs: &[Element]) -> [Option<Emitted>; 2] {
    [
        emit::<CudaC>(program, formula, inputs, &program.inputs).map(|it| recorded(it, "cuda", name, "cu")),
        emit::<Wgsl>(program, formula, inputs, &program.inputs).map(|it| recorded(it, "wgpu", name, "wgsl")),
    ]
}

fn recorded(emitted: Emitted, folder: &str, name: &str, ending: &str) -> Emitted {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/{folder}/golden/{name}.{ending}"));
    if std::env::var_os("SNAPSHOTS").is_some_and(|value| value == "overwrite") {
        std::fs::write(&path, &emitted.text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(emitted.text, expected, "{name}.{ending}: `SNAPSHOTS=overwrite` records it anew");
    emitted
}

/// TIES of two models, with weights.
fn ties(graph: &Graph) -> Expr<'_> {
    let (base, zero) = (graph.input(0), graph.constant(0.0));
    let part = |input, weight: f64| {
        let d = graph.input(input) - base;
        d * d.top(3) * weight
    };
    let (x, y) = (part(1, 0.5), part(2, 0.3));
    let is_positive = zero.less_or_equal(x + y);
    let agree = [x, y].map(|x| is_positive.select(zero.less(x), x.less(0.0)));
    let divisor = agree[0] * 0.5 + agree[1] * 0.3;
    base + (x * agree[0] + y * agree[1]) / divisor.equal(0.0).select(1.0, divisor)
}

#[test]
fn a_weighted_sum_is_printed_as_recorded() {
    let graph = Graph::new();
    let formula = graph.finish((graph.input(0) * 0.25 + graph.input(1) * 0.75) / 2.0).unwrap();
    for emitted in check("linear", &Program::writing(&formula), &formula, &[Element::BF16, Element::F32]) {
        let emitted = emitted.unwrap();
        assert_eq!((emitted.outputs, emitted.is_elementary), (1, false));
    }
}

#[test]
fn ties_are_printed_as_recorded() {
    let graph = Graph::new();
    let formula = graph.finish(ties(&graph)).unwrap();
    let inputs = [Element::BF16; 3];
    assert!(check("ties", &Program::writing(&formula), &formula, &inputs).iter().all(Option::is_some));
    let selecting = Program::reducing(&formula, &selections(&formula));
    for emitted in check("ties_select", &selecting, &formula, &inputs) {
        let emitted = emitted.unwrap();
        assert_eq!((emitted.outputs, emitted.reductions.len()), (2, 0));
    }
}

#[test]
fn masks_and_sums_are_printed_as_recorded() {
    let graph = Graph::new();
    let (base, x) = (graph.input(0), graph.input(1));
    let d = x - base;
    let kept = d * graph.random(3).less(0.3);
    let ratio = d.abs().sum(Axis::Tensor) / kept.norm(Axis::Tensor);
    let formula = graph.finish(base + kept * ratio + d.exp_m1() * 0.01).unwrap();
    let inputs = [Element::F16; 2];
    // WGSL has no f64, and so no exponentials.
    let [cuda, wgsl] = check("dare", &Program::writing(&formula), &formula, &inputs);
    assert!(cuda.unwrap().is_elementary && wgsl.is_none());
    let sums: Vec<NodeId> = formula.ids().filter(|&id| formula.op(id).is_reduction()).collect();
    let expected =
        [Reduced { fold: Fold::Magnitudes, x: 0, y: None }, Reduced { fold: Fold::Sum, x: 1, y: Some(1) }];
    for emitted in check("dare_reduce", &Program::reducing(&formula, &sums), &formula, &inputs) {
        assert_eq!(emitted.unwrap().reductions, expected);
    }
    let formula = graph.finish((base + kept * ratio).sqrt()).unwrap();
    let [_, wgsl] = check("dare_root", &Program::writing(&formula), &formula, &inputs);
    assert!(wgsl.is_some_and(|emitted| !emitted.is_elementary));
}

#[test]
fn tensors_that_differ_in_numbers_share_a_text() {
    let text = |weight: f64, count: u64| {
        let graph = Graph::new();
        let d = graph.input(1) - graph.input(0);
        let formula = graph.finish(graph.input(0) + d * d.top(count) * weight).unwrap();
        emit::<Wgsl>(&Program::writing(&formula), &formula, &[Element::BF16; 2], &[]).unwrap().text
    };
    assert_eq!(text(0.5, 7), text(0.25, 1_000_000));
}

#[test]
fn what_needs_whole_rows_is_left_to_the_cpu() {
    let graph = Graph::new();
    let x = graph.input(0);
    assert_eq!(obstacle(&graph.finish(x * x.sum(Axis::Tensor)).unwrap()), None);
    let of_rows = graph.finish(x * x.norm(Axis::Row)).unwrap();
    assert_eq!(obstacle(&of_rows), Some("it reduces over rows or columns"));
    let graph = Graph::new();
    let ranked = graph.finish(graph.input(0).rank()).unwrap();
    assert_eq!(obstacle(&ranked), Some("it ranks the elements of rows"));
    assert!(emit::<CudaC>(&Program::writing(&ranked), &ranked, &[Element::F32], &[]).is_none());
}
