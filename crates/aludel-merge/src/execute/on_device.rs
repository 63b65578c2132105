//! Merges models that stay in a device's memory, again and again.
//!
//! In: plans that differ in their parameters, and what reductions came to before. Out: for each step that the device computes a place in its
//! memory. Inputs are uploaded once; a later merge of the same models moves no weights, and runs only the sweeps whose results are not known. What the
//! device leaves, and what it never takes, is the caller's.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use aludel_kernels::element::Element;
use aludel_kernels::gpu::{Backend, Batch, Tensor, Verdict};

use super::run::Run;
use super::share::Share;
use super::statistics::Statistics;
use super::{MergeError, Progress};
use crate::plan::{Action, Bytes, Plan, StepInput};
use crate::problem::{Problem, Problems};

/// Models in a device's memory.
#[derive(Debug)]
pub(super) struct OnDevice<B: Backend> {
    device: Arc<B>,
    batches: Vec<Held<B>>,
    /// What the batches hold, in their order.
    subjects: Vec<Subject>,
    /// Names of tensors that the device has left to the CPU.
    left: HashSet<String>,
}

#[derive(Debug)]
struct Held<B: Backend> {
    /// Steps of the plan, of the batch's tensors.
    steps: Vec<usize>,
    batch: Arc<Batch<B>>,
}

/// What a tensor in memory is of: later merges of the same find it there.
#[derive(Debug, PartialEq, Eq)]
struct Subject {
    name: String,
    inputs: Vec<StepInput>,
    types: Vec<Element>,
    output: Element,
    elements: u64,
}

/// A tensor of a merge in a device's memory, until the next merge.
#[derive(Debug)]
pub struct DeviceTensor<B: Backend> {
    device: Arc<B>,
    batch: Arc<Batch<B>>,
    tensor: usize,
}

impl<B: Backend> Clone for DeviceTensor<B> {
    fn clone(&self) -> Self {
        let (device, batch) = (Arc::clone(&self.device), Arc::clone(&self.batch));
        Self { device, batch, tensor: self.tensor }
    }
}

impl<B: Backend> DeviceTensor<B> {
    /// The batch that computed it.
    pub fn batch(&self) -> &Batch<B> {
        &self.batch
    }

    /// Its position there.
    pub fn tensor(&self) -> usize {
        self.tensor
    }

    /// Its bytes, copied to the host.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn bytes(&self) -> Result<Vec<u8>, B::Error> {
        let of = &self.batch.tensors()[self.tensor];
        let length = of.geometry.elements as usize * of.output.size();
        let mut lane = self.device.lane(length.min(PIECE))?;
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let next = (length - bytes.len()).min(PIECE);
            let from = bytes.len() as u64;
            self.batch.download(&mut lane, self.tensor, from, next, |piece| bytes.extend(piece))?;
        }
        Ok(bytes)
    }
}

impl<B: Backend> OnDevice<B>
where
    MergeError: From<B::Error>,
{
    pub(super) fn new(device: Arc<B>) -> Self {
        Self { device, batches: Vec::new(), subjects: Vec::new(), left: HashSet::new() }
    }

    /// The same device, with nothing in its memory.
    pub(super) fn emptied(self) -> Self {
        Self::new(self.device)
    }

    /// Merges what the device takes; where each step's output is, none for steps that are the CPU's.
    pub(super) fn merge(
        &mut self,
        run: &Run<'_>,
        statistics: &Statistics,
    ) -> Result<Vec<Option<DeviceTensor<B>>>, MergeError> {
        let plan = run.plan;
        // What is in the device's memory already has its place there.
        let share = Share::within(plan, &*self.device, &[], u64::MAX)?;
        let subjects: Vec<Subject> =
            share.steps.iter().map(|(step, tensor, _)| Subject::of(plan, *step, tensor)).collect();
        if subjects == self.subjects {
            self.again(&share)?;
        }
        if subjects != self.subjects {
            *self = Self::new(Arc::clone(&self.device));
            self.take_in(run, &share)?;
            self.subjects = subjects;
        }
        let mut outputs: Vec<Option<DeviceTensor<B>>> = plan.steps.iter().map(|_| None).collect();
        for Held { steps, batch } in &self.batches {
            let known = |&step: &usize| match formula_of(plan, step) {
                Some(formula) if !self.left.contains(&plan.steps[step].tensor) => {
                    statistics.of(&plan.steps[step], formula)
                }
                // What the device leaves it has to see again.
                _ => Vec::new(),
            };
            let known: Vec<_> = steps.iter().map(known).collect();
            let (verdicts, found) = batch.compute_knowing(&known)?;
            for (tensor, ((&step, verdict), found)) in steps.iter().zip(verdicts).zip(found).enumerate() {
                if verdict != Verdict::Done {
                    self.left.insert(plan.steps[step].tensor.clone());
                    continue;
                }
                if let Some(formula) = formula_of(plan, step) {
                    statistics.keep(&plan.steps[step], formula, found);
                }
                let (device, batch) = (Arc::clone(&self.device), Arc::clone(batch));
                outputs[step] = Some(DeviceTensor { device, batch, tensor });
            }
        }
        Ok(outputs)
    }

    /// Takes up the formulas of another merge of what is in memory; where somebody still holds an output, nothing is.
    fn again(&mut self, share: &Share) -> Result<(), MergeError> {
        // Of what fails on the way nothing is held.
        let subjects = std::mem::take(&mut self.subjects);
        let mut tensors = share.steps.iter().map(|(_, tensor, _)| tensor.clone());
        for Held { steps, batch } in std::mem::take(&mut self.batches) {
            let Some(batch) = Arc::into_inner(batch) else {
                *self = Self::new(Arc::clone(&self.device));
                return Ok(());
            };
            let batch = Arc::new(batch.again(tensors.by_ref().take(steps.len()).collect())?);
            self.batches.push(Held { steps, batch });
        }
        self.subjects = subjects;
        Ok(())
    }

    /// Uploads the inputs of all steps.
    fn take_in(&mut self, run: &Run<'_>, share: &Share) -> Result<(), MergeError> {
        let needed: u64 = share.steps.iter().map(|(.., bytes)| bytes).sum();
        let free = self.device.room(1)?;
        if needed > free {
            let message = format!(
                "the models and a merge of them take {} of {}'s memory, and {} are free",
                Bytes(needed),
                self.device.name(),
                Bytes(free)
            );
            let problem =
                Problem::general(message).with_hint("`--device cpu` keeps them in the host's memory");
            return Err(Problems::from(problem).into());
        }
        let mut first = 0;
        while first < share.steps.len() {
            let mut bytes = 0u64;
            let fits = |(.., own): &&(usize, Tensor, u64)| {
                bytes += own;
                bytes <= BATCH
            };
            let count = share.steps[first..].iter().take_while(fits).count().max(1);
            let of_batch = &share.steps[first..first + count];
            let tensors = of_batch.iter().map(|(_, tensor, _)| tensor.clone()).collect();
            let batch = Arc::new(Batch::new(&self.device, tensors, None)?);
            self.batches.push(Held { steps: of_batch.iter().map(|(step, ..)| *step).collect(), batch });
            first += count;
        }
        self.upload(run)
    }

    fn upload(&self, run: &Run<'_>) -> Result<(), MergeError> {
        let mut pieces: Vec<(usize, usize, usize, Range<u64>)> = Vec::new();
        let mut all = 0;
        for (at, held) in self.batches.iter().enumerate() {
            for (number, tensor) in held.batch.tensors().iter().enumerate() {
                for (input, element) in tensor.inputs.iter().enumerate() {
                    let bytes = tensor.geometry.elements * element.size() as u64;
                    let starts = (0..bytes).step_by(PIECE);
                    let of_input = starts.map(|start| start..bytes.min(start + PIECE as u64));
                    pieces.extend(of_input.map(|piece| (at, number, input, piece)));
                    all += bytes;
                }
            }
        }
        let (next, read) = (AtomicUsize::new(0), AtomicU64::new(0));
        let failure = Mutex::new(None);
        let work = || -> Result<(), MergeError> {
            let mut lane = self.device.lane(PIECE)?;
            while let Some((batch, number, input, bytes)) = pieces.get(next.fetch_add(1, Relaxed)) {
                if run.options.cancel.load(Relaxed) {
                    return Err(MergeError::Interrupted);
                }
                let held = &self.batches[*batch];
                let source = run.source(held.steps[*number], 0);
                let length = (bytes.end - bytes.start) as usize;
                held.batch.upload(&mut lane, (*number, *input), bytes.start, length, |to| {
                    source.copy_bytes(*input, bytes.clone(), to);
                })?;
                let bytes_read = read.fetch_add(length as u64, Relaxed) + length as u64;
                let (bytes_hashed, bytes_to_hash) = (0, 0);
                (run.options.on_progress)(Progress {
                    bytes_read,
                    bytes_to_read: all,
                    bytes_hashed,
                    bytes_to_hash,
                });
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            for _ in 0..run.plan.work.threads.clamp(1, LANES) {
                scope.spawn(|| {
                    if let Err(error) = work() {
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        next.store(pieces.len(), Relaxed);
                    }
                });
            }
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

impl Subject {
    fn of(plan: &Plan, step: usize, tensor: &Tensor) -> Self {
        let step = &plan.steps[step];
        Self {
            name: step.tensor.clone(),
            inputs: step.inputs.clone(),
            types: tensor.inputs.clone(),
            output: tensor.output,
            elements: tensor.geometry.elements,
        }
    }
}

fn formula_of(plan: &Plan, step: usize) -> Option<&aludel_kernels::formula::Formula> {
    match plan.steps[step].action {
        Action::Compute { formula, .. } => Some(&plan.formulas[formula].formula),
        Action::Copy | Action::Scales => None,
    }
}

/// Bytes of a batch at the most, where a tensor is no larger.
const BATCH: u64 = 8 << 30;

/// Bytes that are moved at once.
const PIECE: usize = 8 << 20;

/// Threads that upload at the most.
const LANES: usize = 8;
