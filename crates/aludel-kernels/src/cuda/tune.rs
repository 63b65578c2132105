//! Finds how kernels share their work out best on a device, and remembers it.
//!
//! In: a device. Out: for each candidate [`Shape`] how fast it is beside the device's own copies, and whether it computes what the CPU does; the
//! fastest of those that do is remembered for later runs. No shape changes a bit of a result, and one that did would not win.

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::CudaError;
use super::device::{Device, Lane};
use super::dialect::{Shape, Shapes};
use super::driver::Facts;
use crate::cpu::Geometry;
use crate::element::Element;
use crate::formula::{Expr, Formula, Graph};
use crate::gpu::{Backend, Batch, KernelStore, Tensor, Verdict, on_the_cpu};
use crate::random::{StreamKey, uniform};

/// What a candidate achieved.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// What ran: `linear map`, `ties map` or `ties with selection`.
    pub kernel: &'static str,
    /// How its work was shared out.
    pub shape: Shape,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes that are read and written at least, per second.
    pub bytes_per_second: f64,
    /// That beside what copies within the device's memory reach.
    pub share_of_copy: f64,
    /// Whether every bit of its output is the CPU's.
    pub is_equal: bool,
}

/// What tuning has found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tuned {
    /// The fastest shapes.
    pub shapes: Shapes,
    /// Bytes read and written by copies within the device's memory, per second.
    pub copied_per_second: f64,
}

/// Elements of a tensor that is timed: a layer of a model of seven billion parameters.
const ELEMENTS: u64 = 4096 * 4096;

/// Tensors that are timed together.
const TENSORS: usize = 32;

/// Elements of the tensor whose output is compared: odd, and large enough to be sampled.
const COMPARED: u64 = 300_041;

/// Models that are merged.
const MODELS: u16 = 3;

const THREADS: [u32; 3] = [128, 256, 512];
const VECTORS: [u32; 3] = [4, 8, 16];
const PARTS: [u32; 2] = [1, 4];

/// What an earlier tuning has found on such a device.
pub(super) fn remembered(store: &dyn KernelStore, facts: &Facts) -> Option<Tuned> {
    let tuned: Tuned = serde_json::from_slice(&store.load(&name(facts))?).ok()?;
    let is_known = |shape: &Shape| candidates().any(|known| known == *shape);
    [tuned.shapes.write, tuned.shapes.select].iter().all(is_known).then_some(tuned)
}

fn name(facts: &Facts) -> String {
    facts.file_of("tuned")
}

fn candidates() -> impl Iterator<Item = Shape> {
    THREADS.into_iter().flat_map(|threads| {
        VECTORS
            .into_iter()
            .flat_map(move |vector| PARTS.into_iter().map(move |parts| Shape { threads, vector, parts }))
    })
}

impl Device {
    /// What an earlier tuning has found on such a device.
    pub fn tuned(&self) -> Option<Tuned> {
        remembered(self.kernels.store(), self.facts())
    }

    /// Tries all shapes, remembers the fastest that compute what the CPU does, and tells of each as it is known.
    ///
    /// # Errors
    /// [`CudaError`] where the device fails, or has less than a few gigabytes of free memory.
    pub fn tune(self: &Arc<Self>, on_finding: &mut dyn FnMut(&Finding)) -> Result<Tuned, CudaError> {
        let mut trials = Trials::new(self)?;
        let mut shapes = Shapes::default();
        let mut best = 0.0;
        for shape in candidates() {
            let trial = Shapes { write: shape, ..shapes };
            let linear = trials.run("linear map", &linear(), trial, false)?;
            let ties = trials.run("ties map", &ties(ELEMENTS), trial, false)?;
            on_finding(&linear);
            on_finding(&ties);
            let both = linear.share_of_copy + ties.share_of_copy;
            if linear.is_equal && ties.is_equal && both > best {
                (best, shapes.write) = (both, shape);
            }
        }
        best = 0.0;
        for shape in candidates().filter(|shape| shape.parts == 1) {
            let trial = Shapes { select: shape, ..shapes };
            let found = trials.run("ties with selection", &ties(ELEMENTS), trial, true)?;
            on_finding(&found);
            if found.is_equal && found.share_of_copy > best {
                (best, shapes.select) = (found.share_of_copy, shape);
            }
        }
        let tuned = Tuned { shapes, copied_per_second: trials.copied_per_second };
        if let Ok(text) = serde_json::to_vec(&tuned) {
            self.kernels.store().save(&name(self.facts()), &text);
        }
        Ok(tuned)
    }
}

/// Runs candidates in one memory.
struct Trials {
    device: Arc<Device>,
    lane: Lane,
    earlier: Option<Batch<Device>>,
    copied_per_second: f64,
    timed: Vec<Vec<u8>>,
    compared: Vec<Vec<u8>>,
}

impl Trials {
    fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        let timed: Vec<Vec<u8>> = (0..=MODELS).map(|model| weights(model, ELEMENTS)).collect();
        let compared = (0..=MODELS).map(|model| weights(model, COMPARED)).collect();
        let lane = device.lane(timed[0].len())?;
        let device = Arc::clone(device);
        let mut trials = Self { device, lane, earlier: None, copied_per_second: 0.0, timed, compared };
        trials.copied_per_second = trials.copies()?;
        Ok(trials)
    }

    /// Bytes per second of copies within the memory, each byte counted as read and as written.
    fn copies(&mut self) -> Result<f64, CudaError> {
        let batch = self.batch(&ties(ELEMENTS), Shapes::default(), TENSORS, ELEMENTS)?;
        let arena = batch.memory();
        let half = arena.data.bytes() / 2 / 4096 * 4096;
        let copy = || arena.stream.copy(&arena.data, 0, half, half as usize);
        let seconds = timed(copy, || arena.stream.synchronize())?;
        self.earlier = Some(batch);
        Ok(2.0 * half as f64 / seconds)
    }

    /// Times a formula with these shapes, the last pass alone or everything, and compares its output.
    fn run(
        &mut self,
        kernel: &'static str,
        formula: &Arc<Formula>,
        shapes: Shapes,
        is_whole: bool,
    ) -> Result<Finding, CudaError> {
        let is_equal = self.is_equal(formula, shapes)?;
        let batch = self.batch(formula, shapes, TENSORS, ELEMENTS)?;
        for tensor in 0..TENSORS {
            for input in 0..formula.inputs() {
                let bytes = &self.timed[input];
                let place = (tensor, input);
                batch.upload(&mut self.lane, place, 0, bytes.len(), |to| to.copy_from_slice(bytes))?;
            }
        }
        // The map alone is timed with the cuts of a whole run in place.
        let _ = batch.compute()?;
        let group = &batch.groups()[0];
        let seconds = if is_whole {
            let whole = || {
                batch.begin()?;
                batch.run(group, &mut batch.values(group, &[]))
            };
            timed(whole, || batch.memory().stream.synchronize())?
        } else {
            timed(|| batch.write(group), || batch.memory().stream.synchronize())?
        };
        let prepared = &group.prepared[0];
        let (shape, registers) = match prepared.passes.iter().flat_map(|pass| &pass.selecting).next() {
            Some(selecting) if is_whole => (shapes.select, selecting.sweep.kernel.registers()),
            _ => (shapes.write, prepared.writing.kernel.registers()),
        };
        self.earlier = Some(batch);
        let bytes = TENSORS as u64 * ELEMENTS * 2 * (formula.inputs() as u64 + 1);
        let bytes_per_second = bytes as f64 / seconds;
        let share_of_copy = bytes_per_second / self.copied_per_second;
        Ok(Finding { kernel, shape, registers, bytes_per_second, share_of_copy, is_equal })
    }

    /// Whether a tensor comes out as on the CPU.
    fn is_equal(&mut self, formula: &Arc<Formula>, shapes: Shapes) -> Result<bool, CudaError> {
        let formula =
            if formula.nodes().iter().any(|op| op.is_selection()) { &ties(COMPARED) } else { formula };
        let batch = self.batch(formula, shapes, 1, COMPARED)?;
        for input in 0..formula.inputs() {
            let bytes = &self.compared[input];
            batch.upload(&mut self.lane, (0, input), 0, bytes.len(), |to| to.copy_from_slice(bytes))?;
        }
        let is_done = batch.compute()? == [Verdict::Done];
        let expected = on_the_cpu(&tensor_of(formula, COMPARED), &self.compared);
        let is_equal = batch.download(&mut self.lane, 0, 0, expected.len(), |bytes| bytes == expected)?;
        self.earlier = Some(batch);
        Ok(is_done && is_equal)
    }

    fn batch(
        &mut self,
        formula: &Arc<Formula>,
        shapes: Shapes,
        count: usize,
        elements: u64,
    ) -> Result<Batch<Device>, CudaError> {
        let tensors = vec![tensor_of(formula, elements); count];
        Batch::shaped(&self.device, tensors, self.earlier.take(), shapes)
    }
}

fn tensor_of(formula: &Arc<Formula>, elements: u64) -> Tensor {
    Tensor {
        formula: Arc::clone(formula),
        geometry: Geometry::new(elements, elements),
        streams: Vec::new(),
        inputs: vec![Element::BF16; formula.inputs()],
        output: Element::BF16,
    }
}

/// Seconds that a piece of work takes, after it has run once.
fn timed(
    work: impl Fn() -> Result<(), CudaError>,
    wait: impl Fn() -> Result<(), CudaError>,
) -> Result<f64, CudaError> {
    const TIMES: u32 = 5;
    work()?;
    wait()?;
    let start = Instant::now();
    for _ in 0..TIMES {
        work()?;
    }
    wait()?;
    Ok(start.elapsed().as_secs_f64() / f64::from(TIMES))
}

/// The weights of a model in bf16: the base's spread by small amounts, so that many task vectors are equal, as they are in models.
fn weights(model: u16, elements: u64) -> Vec<u8> {
    let value = |key: u64, i: u64| uniform(StreamKey(key), i) - 0.5;
    let weight = |i: u64| value(0, i) * 0.1 + if model == 0 { 0.0 } else { value(model.into(), i) * 0.004 };
    let values: Vec<f32> = (0..elements).map(weight).collect();
    Element::BF16.encode(&values)
}

/// The mean of three models.
fn linear() -> Arc<Formula> {
    let graph = Graph::new();
    let sum = (1..MODELS).fold(graph.input(0) * 0.5, |sum, model| sum + graph.input(model) * 0.25);
    verified(graph.finish(sum / 1.25))
}

/// TIES of three models and their base, half of each task vector kept.
fn ties(elements: u64) -> Arc<Formula> {
    let graph = Graph::new();
    let (base, zero) = (graph.input(0), graph.constant(0.0));
    let part = |model| {
        let d = graph.input(model) - base;
        d * d.top(elements / 2) * 0.5
    };
    let parts: Vec<Expr<'_>> = (1..=MODELS).map(part).collect();
    let Some(votes) = parts.iter().copied().reduce(|sum, part| sum + part) else {
        return linear();
    };
    let is_positive = zero.less_or_equal(votes);
    let agreements: Vec<Expr<'_>> =
        parts.iter().map(|&part| is_positive.select(zero.less(part), part.less(0.0))).collect();
    let mixed = parts.iter().zip(&agreements).map(|(&part, &agrees)| part * agrees);
    let weights = agreements.iter().map(|&agrees| agrees * 0.5);
    match (mixed.reduce(|sum, part| sum + part), weights.reduce(|sum, weight| sum + weight)) {
        (Some(mixed), Some(divisor)) => {
            verified(graph.finish(base + mixed / divisor.equal(0.0).select(1.0, divisor)))
        }
        _ => linear(),
    }
}

fn verified(formula: Result<Formula, crate::formula::FormulaError>) -> Arc<Formula> {
    match formula {
        Ok(formula) => Arc::new(formula),
        Err(error) => unreachable!("a formula that is written here has a meaning: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_timed_has_kernels_and_a_result() {
        for formula in [linear(), ties(COMPARED)] {
            assert_eq!(crate::gpu::obstacle(&formula), None);
            let inputs: Vec<Vec<u8>> = (0..=MODELS).map(|model| weights(model, COMPARED)).collect();
            let out = Element::BF16.decode(&on_the_cpu(&tensor_of(&formula, COMPARED), &inputs));
            let base = Element::BF16.decode(&inputs[0]);
            let apart = out.iter().zip(&base).filter(|(out, base)| out != base).count();
            assert!(apart > out.len() / 10 && out.iter().all(|value| value.is_finite()));
        }
        assert_eq!(ties(COMPARED).inputs(), 4);
        assert_eq!(linear().inputs(), 3);
    }

    #[test]
    fn only_shapes_that_are_candidates_are_believed() {
        struct Remembers(Vec<u8>);
        impl KernelStore for Remembers {
            fn load(&self, name: &str) -> Option<Vec<u8>> {
                (name == "tuned-A-GPU-sm_90.json").then(|| self.0.clone())
            }
            fn save(&self, _: &str, _: &[u8]) {}
        }
        let facts =
            Facts { name: "A GPU".into(), architecture: "sm_90".into(), memory: 0, multiprocessors: 0 };
        let of = |threads| {
            let write = Shape { threads, ..Shapes::default().write };
            let tuned = Tuned { shapes: Shapes { write, ..Shapes::default() }, copied_per_second: 1.0 };
            remembered(&Remembers(serde_json::to_vec(&tuned).unwrap()), &facts)
        };
        assert_eq!(of(512).map(|tuned| tuned.shapes.write.threads), Some(512));
        assert_eq!(of(0), None);
        assert_eq!(remembered(&Remembers(b"{".to_vec()), &facts), None);
    }
}
