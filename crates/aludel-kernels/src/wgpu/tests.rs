//! Holds printed kernels to the validator of the language, and what they compute to the interpreter and to the CPU's executor.
//!
//! Where there is no adapter nothing is executed, unless `ALUDEL_REQUIRE_VULKAN` says that there must be one.

use std::sync::Arc;

use naga::front::wgsl;
use naga::valid::{Capabilities, ValidationFlags, Validator};

use super::device::{Device, tests::first};
use super::dialect::{Wgsl, resolving};
use crate::cpu::Geometry;
use crate::element::Element;
use crate::formula::{Axis, Expr, Formula, Graph, interpret};
use crate::gpu::{Backend, Batch, Tensor, Verdict, on_the_cpu, texts};
use crate::random::{StreamKey, philox, uniform};

const TYPES: [Element; 3] = [Element::F32, Element::F16, Element::BF16];

/// The device in both ways to reach its memory; none where there is none.
fn devices() -> Vec<Arc<Device>> {
    let opened = [true, false].into_iter().filter_map(first).collect::<Vec<_>>();
    if opened.is_empty() {
        let is_required = std::env::var_os("ALUDEL_REQUIRE_VULKAN").is_some_and(|value| value == "1");
        assert!(!is_required, "ALUDEL_REQUIRE_VULKAN is set, and no driver shows an adapter");
        eprintln!("NOT TESTED: no driver shows an adapter");
    }
    opened
}

fn tensor(formula: Formula, elements: u64, input: Element, output: Element) -> Tensor {
    Tensor {
        inputs: vec![input; formula.inputs()],
        streams: (0..formula.streams() as u64).map(|stream| StreamKey(stream + 7)).collect(),
        formula: Arc::new(formula),
        geometry: Geometry::new(elements, elements),
        output,
    }
}

/// Computes tensors in one batch.
fn computed(device: &Arc<Device>, cases: &[(Tensor, Vec<Vec<u8>>)]) -> Vec<(Verdict, Vec<u8>)> {
    let tensors: Vec<Tensor> = cases.iter().map(|(tensor, _)| tensor.clone()).collect();
    let batch = Batch::new(device, tensors, None).unwrap();
    let mut lane = device.lane(4 << 20).unwrap();
    for (at, (_, inputs)) in cases.iter().enumerate() {
        for (input, bytes) in inputs.iter().enumerate() {
            // In pieces, as a merge has them.
            for (start, piece) in (0..).step_by(4096).zip(bytes.chunks(4096)) {
                let fill = |to: &mut [u8]| to.copy_from_slice(piece);
                batch.upload(&mut lane, (at, input), start, piece.len(), fill).unwrap();
            }
        }
    }
    let verdicts = batch.compute().unwrap();
    let outputs = cases.iter().enumerate().map(|(at, (tensor, _))| {
        let length = tensor.geometry.elements as usize * tensor.output.size();
        batch.download(&mut lane, at, 0, length, <[u8]>::to_vec).unwrap()
    });
    verdicts.into_iter().zip(outputs).collect()
}

/// Holds tensors in one batch to the CPU, bit for bit; their outputs.
fn check(device: &Arc<Device>, cases: &[(Tensor, Vec<Vec<u8>>)]) -> Vec<Vec<u8>> {
    let all = computed(device, cases);
    for ((tensor, inputs), (verdict, output)) in cases.iter().zip(&all) {
        let what =
            format!("{} of {} elements, {:?}", tensor.formula, tensor.geometry.elements, tensor.output);
        assert_eq!(*verdict, Verdict::Done, "{what}");
        let expected = on_the_cpu(tensor, inputs);
        let differs = output.iter().zip(&expected).position(|(a, b)| a != b);
        assert_eq!(differs, None, "first byte that differs: {what}");
    }
    all.into_iter().map(|(_, output)| output).collect()
}

/// Models' weights: a base's, moved by little.
fn weights(tensor: &Tensor, element: Element) -> Vec<Vec<u8>> {
    let value = |key: u64, i: u64| uniform(StreamKey(key), i) - 0.5;
    let weight =
        |input: u64, i: u64| value(0, i) * 0.1 + if input == 0 { 0.0 } else { value(input, i) * 0.01 };
    let elements = tensor.geometry.elements;
    let values = |input: usize| (0..elements).map(|i| weight(input as u64, i)).collect::<Vec<f32>>();
    (0..tensor.inputs.len()).map(|input| element.encode(&values(input))).collect()
}

fn linear(graph: &Graph) -> Expr<'_> {
    (graph.input(0) * 0.3 + graph.input(1) * 0.7) / 1.1
}

fn task_arithmetic(graph: &Graph) -> Expr<'_> {
    let base = graph.input(0);
    base + (graph.input(1) - base) * 0.6 + (graph.input(2) - base) * 0.4
}

/// Of two models, each with its share of magnitudes kept.
fn ties(graph: &Graph, [first, second]: [u64; 2]) -> Expr<'_> {
    let (base, zero) = (graph.input(0), graph.constant(0.0));
    let part = |input, count: u64, weight: f64| {
        let d = graph.input(input) - base;
        d * d.top(count) * weight
    };
    let (x, y) = (part(1, first, 0.5), part(2, second, 0.3));
    let is_positive = zero.less_or_equal(x + y);
    let agree = [x, y].map(|x| is_positive.select(zero.less(x), x.less(0.0)));
    let divisor = agree[0] * 0.5 + agree[1] * 0.3;
    base + (x * agree[0] + y * agree[1]) / divisor.equal(0.0).select(1.0, divisor)
}

fn dare(graph: &Graph) -> Expr<'_> {
    let base = graph.input(0);
    let part = |input| {
        let d = graph.input(input) - base;
        d * graph.random(input - 1).less(0.3) * (1.0 / 0.3)
    };
    base + part(1) * 0.6 + part(2) * 0.4
}

/// What slerp and model_stock are made of.
fn angles(graph: &Graph) -> Expr<'_> {
    let (x, y) = (graph.input(0), graph.input(1));
    let cosine = x.dot(y, Axis::Tensor) / (x.norm(Axis::Tensor) * y.norm(Axis::Tensor));
    let rest = (x - y).abs().sum(Axis::Tensor) * 1e-3 + x.largest(Axis::Tensor) - y.greatest(Axis::Tensor);
    x * cosine + y * rest
}

fn formulas(elements: u64) -> Vec<Formula> {
    let share = |of: f64| (elements as f64 * of) as u64;
    let made = |expression: &dyn for<'g> Fn(&'g Graph) -> Expr<'g>| {
        let graph = Graph::new();
        graph.finish(expression(&graph)).unwrap()
    };
    vec![
        made(&linear),
        made(&task_arithmetic),
        made(&|graph| ties(graph, [share(0.4), share(0.7)])),
        // Nothing and everything is kept.
        made(&|graph| ties(graph, [0, elements])),
        made(&dare),
        made(&angles),
        made(&|graph| {
            let d = graph.input(1) - graph.input(0);
            graph.input(0) + d * d.kth(share(0.5)).less(d.abs())
        }),
    ]
}

#[test]
fn texts_are_valid() {
    let mut all = vec![resolving()];
    for (formula, (input, output)) in formulas(1271)
        .iter()
        .flat_map(|formula| TYPES.into_iter().zip(TYPES.into_iter().rev()).map(move |types| (formula, types)))
    {
        let inputs = vec![input; formula.inputs()];
        let texts = texts::<Wgsl>(formula, &inputs, output, ()).unwrap();
        let of_passes = texts.passes.iter().flat_map(|pass| pass.selecting.iter().chain(&pass.reducing));
        all.extend(of_passes.chain([&texts.writing]).map(|text| text.source.clone()));
    }
    for text in all {
        let module = wgsl::parse_str(&text).unwrap_or_else(|error| panic!("{}", error.emit_to_string(&text)));
        let mut validator = Validator::new(ValidationFlags::all(), Capabilities::empty());
        let checked = validator.validate(&module);
        checked.unwrap_or_else(|error| panic!("{}", error.emit_to_string(&text)));
    }
}

#[test]
fn formulas_come_out_as_on_the_cpu_and_as_interpreted() {
    for device in devices() {
        for elements in [1, 3, 41, 401, 1271, 70_001] {
            let mut cases = Vec::new();
            for (formula, element) in formulas(elements)
                .into_iter()
                .flat_map(|formula| TYPES.map(|element| (formula.clone(), element)))
            {
                let tensor = tensor(formula, elements, element, element);
                let inputs = weights(&tensor, element);
                cases.push((tensor, inputs));
            }
            // All of them at once: formulas and types differ.
            let outputs = check(&device, &cases);
            for ((tensor, inputs), output) in cases.iter().zip(outputs) {
                let decoded: Vec<Vec<f32>> =
                    inputs.iter().zip(&tensor.inputs).map(|(bytes, element)| element.decode(bytes)).collect();
                let inputs: Vec<&[f32]> = decoded.iter().map(Vec::as_slice).collect();
                let expected = interpret(&tensor.formula, &inputs, elements as usize, &tensor.streams);
                let sums = tensor.formula.nodes().iter().any(|op| op.is_reduction() && !op.is_selection());
                if !sums {
                    assert_eq!(output, tensor.output.encode(&expected), "{}", tensor.formula);
                    continue;
                }
                // The interpreter adds in another order.
                let precision = if tensor.output == Element::F32 { 1e-6 } else { 1e-2 };
                for (got, expected) in tensor.output.decode(&output).into_iter().zip(expected) {
                    assert!(
                        (got - expected).abs() <= precision * expected.abs().max(1e-3),
                        "{}",
                        tensor.formula
                    );
                }
            }
        }
    }
}

/// Numbers of all bits, of exponents that no operation below leaves the range with.
fn any_bits(key: u64, elements: u64) -> Vec<u8> {
    let bits = |i: u64| {
        let [a, b, ..] = philox([i as u32, key as u32, 5, 0], [3, 4]);
        // Mantissas with long runs of ones and zeros are the hard ones.
        let mantissa = match b % 4 {
            0 => a,
            1 => a & 0xff,
            2 => a | 0x7fff00,
            _ => a & 0x7f0000,
        };
        a & 0x8000_0000 | (107 + b / 4 % 40) << 23 | mantissa & 0x7f_ffff
    };
    (0..elements).flat_map(|i| bits(i).to_le_bytes()).collect()
}

#[test]
fn operations_round_as_the_cpu_does() {
    let elements = 200_003;
    for device in devices() {
        let made = |expression: &dyn for<'g> Fn(&'g Graph) -> Expr<'g>| {
            let graph = Graph::new();
            let formula = graph.finish(expression(&graph)).unwrap();
            let inputs = (0..formula.inputs() as u64).map(|input| any_bits(input, elements)).collect();
            (tensor(formula, elements, Element::F32, Element::F32), inputs)
        };
        let cases = [
            made(&|graph| graph.input(0) + graph.input(1)),
            made(&|graph| graph.input(0) - graph.input(1)),
            made(&|graph| graph.input(0) * graph.input(1)),
            made(&|graph| graph.input(0) / graph.input(1)),
            made(&|graph| graph.input(0).abs().sqrt()),
            // What a compiler would like to fuse.
            made(&|graph| graph.input(0) * graph.input(1) + graph.input(2)),
            made(&|graph| graph.input(0) * graph.input(1) - graph.input(2) * graph.input(0)),
            made(&|graph| (graph.input(0) + graph.input(1)) - graph.input(0)),
            made(&|graph| graph.input(0).min(graph.input(1)) + graph.input(0).max(graph.input(2))),
        ];
        check(&device, &cases);
    }
}

#[test]
fn elements_are_stored_as_the_cpu_stores_them() {
    for device in devices() {
        let mut cases = Vec::new();
        // All halves that are finite, and numbers around the middle between two of them and between two of bf16.
        let halves: Vec<u8> =
            (0..=u16::MAX).filter(|half| half & 0x7c00 != 0x7c00).flat_map(u16::to_le_bytes).collect();
        let near: Vec<u8> = (0..=u16::MAX)
            .map(|half| f32::from(half::f16::from_bits(half)))
            .filter(|value| value.is_finite() && *value != 0.0)
            .flat_map(|value| {
                [-0x1001i32, -0x1000, -0xfff, -1, 0, 1, 0xfff, 0x1000, 0x1001]
                    .map(|by| f32::from_bits(value.to_bits().wrapping_add_signed(by)))
            })
            .chain([0.0, -0.0, 65_519.996, 65_520.0, 1e6, -3e38, 2.9e-8, 2.98e-8, 3e-8, 1e-30])
            .flat_map(f32::to_le_bytes)
            .collect();
        for output in TYPES {
            for (element, bytes) in [(Element::F16, &halves), (Element::F32, &near)] {
                let graph = Graph::new();
                let formula = graph.finish(graph.input(0)).unwrap();
                let elements = (bytes.len() / element.size()) as u64;
                cases.push((tensor(formula, elements, element, output), vec![bytes.clone()]));
            }
        }
        check(&device, &cases);
    }
}

#[test]
fn sums_have_all_bits_of_f64() {
    let elements = 150_001;
    for device in devices() {
        let inputs: Vec<Vec<u8>> = (0..2).map(|input| any_bits(input, elements)).collect();
        let decoded: Vec<Vec<f32>> = inputs.iter().map(|bytes| Element::F32.decode(bytes)).collect();
        let wide = |at: usize| decoded[at].iter().map(|&x| f64::from(x));
        let (sum, sizes) = (wide(0).sum::<f64>(), wide(0).map(f64::abs).sum::<f64>());
        let dot: f64 = wide(0).zip(wide(1)).map(|(x, y)| x * y).sum();
        // What is left of a sum less nearly all of it has the sum's last bits.
        let left = |about: f64| f64::from(about as f32);
        let graph = Graph::new();
        let (x, y) = (graph.input(0), graph.input(1));
        let rests = (x.sum(Axis::Tensor) - left(sum)) * (1e6 / sum.abs())
            + (x.abs().sum(Axis::Tensor) - left(sizes)) * (1e6 / sizes)
            + (x.dot(y, Axis::Tensor) - left(dot)) * (1e6 / dot.abs());
        let formula = graph.finish(x * 0.0 + y * 0.0 + rests).unwrap();
        check(&device, &[(tensor(formula, elements, Element::F32, Element::F32), inputs)]);
    }
}

#[test]
fn what_no_device_is_trusted_with_is_left_to_the_cpu() {
    let graph = Graph::new();
    let formula = graph.finish(task_arithmetic(&graph)).unwrap();
    for device in devices() {
        for (value, expected) in [
            (f32::NAN, Verdict::NonFinite),
            (f32::NEG_INFINITY, Verdict::NonFinite),
            (1e-40, Verdict::OutOfRange),
            // What is left of it on the way is below the least normal number.
            (2e-38, Verdict::OutOfRange),
            (3.4e38, Verdict::OutOfRange),
            (1e-30, Verdict::Done),
            (0.0, Verdict::Done),
        ] {
            let elements = 66_003;
            let tensor = tensor(formula.clone(), elements, Element::F32, Element::F32);
            let mut inputs = weights(&tensor, Element::F32);
            for (input, bytes) in inputs.iter_mut().enumerate() {
                let at = bytes.len() - 4;
                let value = if input == 0 { -value } else { value };
                bytes[at..].copy_from_slice(&value.to_le_bytes());
            }
            let verdicts: Vec<Verdict> =
                computed(&device, &[(tensor, inputs)]).into_iter().map(|(verdict, _)| verdict).collect();
            assert_eq!(verdicts, [expected], "{value}");
        }
    }
}

#[test]
fn memory_is_used_again() {
    for device in devices() {
        let graph = Graph::new();
        let formula = graph.finish(linear(&graph)).unwrap();
        let mut lane = device.lane(1 << 20).unwrap();
        let mut earlier = None;
        for elements in [1271, 401, 70_001, 41] {
            let tensor = tensor(formula.clone(), elements, Element::BF16, Element::BF16);
            let inputs = weights(&tensor, Element::BF16);
            let batch = Batch::new(&device, vec![tensor.clone(); 3], earlier.take()).unwrap();
            for at in 0..3 {
                for (input, bytes) in inputs.iter().enumerate() {
                    let fill = |to: &mut [u8]| to.copy_from_slice(bytes);
                    batch.upload(&mut lane, (at, input), 0, bytes.len(), fill).unwrap();
                }
            }
            assert_eq!(batch.compute().unwrap(), [Verdict::Done; 3]);
            let expected = on_the_cpu(&tensor, &inputs);
            for at in 0..3 {
                let is_equal = |bytes: &[u8]| bytes == expected;
                assert!(batch.download(&mut lane, at, 0, expected.len(), is_equal).unwrap());
            }
            earlier = Some(batch);
        }
    }
}

#[test]
fn exponentials_are_the_cpus() {
    let graph = Graph::new();
    let formula = graph.finish(graph.input(0).exp()).unwrap();
    assert!(texts::<Wgsl>(&formula, &[Element::F32], Element::F32, ()).is_none());
    for device in devices() {
        let tensor = tensor(formula.clone(), 41, Element::F32, Element::F32);
        assert_eq!(device.obstacle(&tensor), Some("it has exponentials or logarithms, which take f64"));
    }
}
