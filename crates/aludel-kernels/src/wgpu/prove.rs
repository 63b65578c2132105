//! Holds a device to the CPU before it is trusted: a batch whose output is known must come out right to the bit.
//!
//! A driver's compiler may round, fuse or reorder other than it should, and there are more drivers than anybody can test. What is computed has every
//! operation that kernels are printed of but random numbers, on numbers of all sizes and close to ties, in all types.

use std::sync::Arc;

use super::WgpuError;
use super::device::Device;
use crate::cpu::Geometry;
use crate::element::Element;
use crate::formula::{Axis, Formula, FormulaError, Graph};
use crate::gpu::{Backend, Batch, Tensor, Verdict, on_the_cpu};
use crate::random::{StreamKey, uniform};

/// More than one chunk, and no whole vector at the end.
const ELEMENTS: u64 = 66_001;

/// Computes, and compares.
pub(super) fn prove(device: &Arc<Device>) -> Result<(), WgpuError> {
    let formula = Arc::new(formula().map_err(|_| WgpuError::Formula)?);
    let cases = [
        ([Element::F32, Element::F32, Element::BF16], Element::F32),
        ([Element::F16, Element::BF16, Element::F16], Element::F16),
        ([Element::BF16; 3], Element::BF16),
    ];
    let tensor = |(inputs, output): ([Element; 3], Element)| Tensor {
        formula: Arc::clone(&formula),
        geometry: Geometry::new(ELEMENTS, ELEMENTS),
        streams: vec![StreamKey(29)],
        inputs: inputs.to_vec(),
        output,
    };
    let tensors: Vec<Tensor> = cases.into_iter().map(tensor).collect();
    let inputs: Vec<Vec<Vec<u8>>> = tensors.iter().map(stored).collect();
    let batch = Batch::new(device, tensors, None)?;
    let mut lane = device.lane(ELEMENTS as usize * 4)?;
    for (at, inputs) in inputs.iter().enumerate() {
        for (input, bytes) in inputs.iter().enumerate() {
            batch.upload(&mut lane, (at, input), 0, bytes.len(), |to| to.copy_from_slice(bytes))?;
        }
    }
    let verdicts = batch.compute()?;
    for (at, (tensor, inputs)) in batch.tensors().iter().zip(&inputs).enumerate() {
        let expected = on_the_cpu(tensor, inputs);
        let is_equal = batch.download(&mut lane, at, 0, expected.len(), |bytes| bytes == expected)?;
        if verdicts[at] != Verdict::Done || !is_equal {
            return Err(WgpuError::Differs { name: device.facts().name.clone() });
        }
    }
    Ok(())
}

/// A formula of all that kernels are printed of.
fn formula() -> Result<Formula, FormulaError> {
    let graph = Graph::new();
    let (base, x, y) = (graph.input(0), graph.input(1), graph.input(2));
    let (d, e) = (x - base, y - base);
    let kept = d * d.top(ELEMENTS / 3) * 0.7;
    let drawn = e * graph.random(0).less(0.4) * 2.5;
    let ratio = d.norm(Axis::Tensor) / e.abs().sum(Axis::Tensor) + d.dot(e, Axis::Tensor) * 1e-6;
    let spread = d.largest(Axis::Tensor) - e.greatest(Axis::Tensor);
    let fused = d * e + base * 0.3;
    let divided = (x * 3.0 + 1.0) / (y.abs() + 0.7);
    let rooted = (x.abs() + 0.001).sqrt() * fused.less(0.0).select(-1.0, 1.0);
    graph.finish(base + kept * ratio + drawn + fused * 0.25 + divided * 0.125 + rooted * spread)
}

/// Inputs whose sizes span what models have, and half of which share few values.
fn stored(tensor: &Tensor) -> Vec<Vec<u8>> {
    let value = |input: usize, i: u64| {
        let (number, size) = (uniform(StreamKey(input as u64), i) - 0.5, uniform(StreamKey(99), i));
        let coarse = (number * 64.0).round() / 512.0;
        if i.is_multiple_of(2) { number * (size * 12.0 - 9.0).exp2() } else { coarse }
    };
    let inputs = tensor.inputs.iter().enumerate();
    let stored = inputs.map(|(input, element)| {
        let values: Vec<f32> = (0..ELEMENTS).map(|i| value(input, i)).collect();
        element.encode(&values)
    });
    stored.collect()
}
