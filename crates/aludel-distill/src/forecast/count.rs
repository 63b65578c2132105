//! Counts what a run will hold at its peak, by taking one of its steps where nothing is computed.
//!
//! In: a run and the device that it is for. Out: [`Memory`]. The models are opened by their headers and one full micro-batch goes through the code of a
//! real step on a [`Tally`], so that every buffer counts that a step asks for. What a device's kernels and libraries take for themselves does not.

use std::sync::Arc;

use aludel_kernels::element::Element;
use aludel_kernels::loss::LossDevice;
use aludel_kernels::nn::{Like, Tally};
use aludel_model::{Batch, Decoder};

use super::{Memory, count};
use crate::data::{Aligned, MicroBatch};
use crate::error::Error;
use crate::optimizer::Held;
use crate::prepare::{decoders, has_teachers_tokenizer};
use crate::run::{Loss, Objective, ObjectiveTerm, Run};
use crate::step::Trainer;

/// What a run holds.
pub(crate) struct Counted {
    /// By what it is for; without what the process holds before.
    pub(crate) memory: Memory,
    /// Parameters of the student.
    pub(crate) parameters: u64,
    /// Those that are trained.
    pub(crate) trained: u64,
}

/// Counts what one of so many processes holds, the one with the largest share.
pub(crate) fn counted<D: LossDevice>(device: &D, run: &Run, processes: usize) -> Result<Counted, Error> {
    let like = Like {
        activation: device.activation(),
        logit_memory: device.logit_memory(),
        has_memory: device.free_memory().is_some(),
        missing: device.missing(),
    };
    let tally = Arc::new(Tally::new(like));
    let (student, teacher) = decoders(&tally, run)?;
    let stored = |decoder: &Decoder<Tally>| bytes(&tally, decoder);
    let teachers = match &teacher {
        Some(teacher) if like.has_memory => tally.now().saturating_sub(stored(&student)).min(stored(teacher)),
        Some(teacher) => stored(teacher),
        None => 0,
    };
    let weights = stored(&student);
    let (parameters, trained) = (count(&student, false), count(&student, true));
    let rows = run.train.micro_batch * run.data.sequence_length;
    let logits = logits(rows, &student, teacher.as_ref(), like);
    let (has_masters, before) = (has_masters(&tally, &student), tally.now());
    let run = of_labels(run);
    let held = if run.train.zero > 0 { Held::Most(processes) } else { Held::All };
    let mut trainer = Trainer::build(student, teacher, &run, 1, None, held)?;
    let ready = tally.now();
    let gradients = 4 * trained;
    let state = (ready - before).saturating_sub(gradients);
    // A master for every two moments, of which eight bits take a quarter.
    let masters = match (has_masters && !run.train.offload.optimizer, run.train.moments) {
        (false, _) => 0,
        (true, crate::run::Moments::Float32) => state / 3,
        (true, crate::run::Moments::Int8) => (state as f64 * 4.0 / (6.0 + 8.0 / 256.0)) as u64,
    };
    trainer.step(&[micro_batch(&run, rows)], &|| false)?;
    let passing = tally.most().saturating_sub(ready);
    let logits = logits.min(passing);
    Ok(Counted {
        memory: Memory {
            weights: weights + masters,
            gradients,
            moments: state - masters,
            teacher: teachers,
            activations: passing - logits,
            logits,
            process: 0,
            aside: tally.aside(),
        },
        parameters,
        trained,
    })
}

/// A run that learns from what a teacher said before, as one that learns from labels: logits have the same memory.
fn of_labels(run: &Run) -> Run {
    if run.cache.is_none() {
        return run.clone();
    }
    let terms = vec![ObjectiveTerm { loss: Loss::CrossEntropy, weight: 1.0 }];
    Run { cache: None, taid: None, objective: Objective { terms }, ..run.clone() }
}

/// Sequences that are full.
fn micro_batch(run: &Run, rows: usize) -> MicroBatch {
    let sequence = vec![0; run.data.sequence_length];
    let sequences = (0..run.train.micro_batch).map(|_| sequence.as_slice());
    let micro = MicroBatch { batch: Batch::pack(sequences), labels: vec![0; rows], ..MicroBatch::default() };
    let is_aligned = run.objective.is_sorted() && has_teachers_tokenizer(run);
    let partners = (0..rows).map(Some).collect();
    let aligned = is_aligned.then(|| Box::new(Aligned { teacher: micro.clone(), partners }));
    MicroBatch { aligned, ..micro }
}

fn bytes(tally: &Tally, decoder: &Decoder<Tally>) -> u64 {
    use aludel_kernels::nn::Device;
    let of = |p: &aludel_model::Parameter<Tally>| (p.elements() * tally.element(&p.buffer).size()) as u64;
    decoder.parameters().iter().map(of).sum()
}

fn has_masters(tally: &Tally, student: &Decoder<Tally>) -> bool {
    use aludel_kernels::nn::Device;
    student.parameters().trainable().any(|p| tally.element(&p.buffer) != Element::F32)
}

/// Bytes of logits: as many rows as fit the memory that is set aside for them.
fn logits(rows: usize, student: &Decoder<Tally>, teacher: Option<&Decoder<Tally>>, like: Like) -> u64 {
    let of = |decoder: &Decoder<Tally>| {
        let config = decoder.config();
        (config.vocabulary + 2 * config.hidden) as u64 * like.activation.size() as u64
    };
    let of_row = of(student) + teacher.map_or(0, of);
    (rows as u64 * of_row).min((like.logit_memory as u64).max(of_row))
}
