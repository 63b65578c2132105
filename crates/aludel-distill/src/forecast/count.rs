//! Counts what a run will hold at its peak, by taking one of its steps where nothing is computed.
//!
//! In: a run and the device that it is for. Out: [`Memory`]. The models are opened by their headers and one full micro-batch goes through the code of a
//! real step on a [`Tally`], so that every buffer counts that a step asks for. What a device's kernels and libraries take for themselves does not.

use std::sync::Arc;

use aludel_kernels::element::Element;
use aludel_kernels::loss::LossDevice;
use aludel_kernels::nn::{Device, Like, Tally};
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
    of_models(&tally, like, run, (student, teacher), processes)
}

/// The same of models that are there.
fn of_models(
    tally: &Tally,
    like: Like,
    run: &Run,
    (student, teacher): (Decoder<Tally>, Option<Decoder<Tally>>),
    processes: usize,
) -> Result<Counted, Error> {
    let stored = |decoder: &Decoder<Tally>| bytes(tally, decoder);
    let teachers = match &teacher {
        Some(teacher) if like.has_memory => tally.now().saturating_sub(stored(&student)).min(stored(teacher)),
        Some(teacher) => stored(teacher),
        None => 0,
    };
    let weights = stored(&student);
    let (parameters, trained) = (count(&student, false), count(&student, true));
    let rows = run.train.micro_batch * run.data.sequence_length;
    let logits = logits(rows, &student, teacher.as_ref(), like);
    let (has_masters, before) = (has_masters(tally, &student), tally.now());
    let run = of_labels(run);
    let held = if run.train.zero > 0 { Held::Most(processes) } else { Held::All };
    let mut trainer = Trainer::build(student, teacher, &run, 1, None, held)?;
    let ready = tally.now();
    let of_gradient = |buffer| (tally.len(buffer) * tally.element(buffer).size()) as u64;
    let gradients = trainer.gradients.iter().map(of_gradient).sum();
    let state = (ready - before).saturating_sub(gradients);
    // Two bytes of a master beside eight of moments, or beside two and their scales.
    let masters = match (has_masters && !run.train.offload.optimizer, run.train.moments) {
        (false, _) => 0,
        (true, crate::run::Moments::Float32) => state / 5,
        (true, crate::run::Moments::Int8) => (state as f64 * 2.0 / (4.0 + 8.0 / 256.0)) as u64,
    };
    // Gradients that are added to have their memory while a second micro-batch goes forward.
    let adds = run.train.batch_size > run.train.micro_batch * processes;
    let micros = vec![micro_batch(&run, rows); 1 + usize::from(adds)];
    trainer.step(&micros, &|| false)?;
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
    let of = |p: &aludel_model::Parameter<Tally>| (p.elements() * tally.element(&p.buffer).size()) as u64;
    decoder.parameters().iter().map(of).sum()
}

fn has_masters(tally: &Tally, student: &Decoder<Tally>) -> bool {
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

#[cfg(test)]
mod tests {
    use aludel_checkpoint::Config;
    use aludel_model::WeightType;

    use super::*;

    const GPU: Like =
        Like { activation: Element::BF16, logit_memory: LOGIT_MEMORY, has_memory: true, missing: &[] };

    /// That of a GPU.
    const LOGIT_MEMORY: usize = 1100 << 20;

    fn llama(layers: usize, hidden: usize, heads: usize, inner: usize) -> Config {
        let text = format!(
            r#"{{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": {hidden}, "intermediate_size": {inner},
            "num_hidden_layers": {layers}, "num_attention_heads": {heads}, "num_key_value_heads": 8, "vocab_size": 128256,
            "hidden_act": "silu", "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
            "tie_word_embeddings": false, "torch_dtype": "bfloat16"}}"#
        );
        Config::parse(&text, std::path::Path::new("config.json")).unwrap()
    }

    /// A student of 1.5 B parameters, and a teacher of 3.2 B where there is one.
    fn count_of(train: &str, length: usize, is_taught: bool) -> Memory {
        let objective =
            if is_taught { "teacher: t\nobjective: {loss: jsd}" } else { "objective: cross_entropy" };
        let text = format!(
            "{objective}\nstudent: s\ndata: {{train: a.txt, sequence_length: {length}}}\noutput: out\ntrain: {{weights: bfloat16{train}}}\n"
        );
        let run = Run::parse(&text).unwrap();
        let tally = Arc::new(Tally::new(GPU));
        let fresh = |config| Decoder::fresh(config, Arc::clone(&tally), WeightType::BFloat16, 1).unwrap();
        let student = fresh(llama(16, 2048, 32, 8192));
        let teacher = is_taught.then(|| fresh(llama(28, 3072, 24, 8192)));
        of_models(&tally, GPU, &run, (student, teacher), 2).unwrap().memory
    }

    /// What steps of these shapes had at the most on an H100 (docs/gpu.md), in GB.
    #[test]
    fn counts_are_what_a_gpu_had() {
        for (train, length, is_taught, had) in [
            (", batch_size: 4, micro_batch: 4", 1024, false, 24.1),
            (", micro_batch: 8", 2048, false, 33.8),
            (", micro_batch: 8", 2048, true, 41.3),
            (", batch_size: 4, micro_batch: 4, gradients: bfloat16", 1024, false, 23.2),
            (", batch_size: 4, micro_batch: 4, gradients: bfloat16, moments: int8", 1024, false, 14.2),
            (", micro_batch: 8, gradients: bfloat16", 2048, false, 33.4),
        ] {
            let memory = count_of(train, length, is_taught);
            let counted = memory.total() as f64 * 1e-9;
            assert!((counted / had - 1.0).abs() < 0.05, "{counted:.2} GB for {had}: {memory}");
        }
    }

    /// Activations have the memory of gradients that are yet to be made, but not of those that are added to.
    #[test]
    fn gradients_are_counted_beside_activations_where_they_are_added_to() {
        let one = count_of(", micro_batch: 4, batch_size: 4", 1024, false);
        let two = count_of(", micro_batch: 4, batch_size: 16", 1024, false);
        let more = (two.total() - one.total()) as f64 / one.gradients as f64;
        assert!(more > 0.5 && more < 1.0, "{one}\n{two}");
    }

    #[test]
    fn what_is_shared_out_or_put_aside_is_not_counted_on_the_device() {
        let all = count_of(", micro_batch: 1", 512, false);
        let trained = all.gradients / 4;
        assert_eq!((all.moments, all.aside), (8 * trained, 0));
        assert_eq!(all.weights, 4 * trained);
        let shared = count_of(", micro_batch: 1, zero: 1", 512, false);
        assert!(shared.moments >= 4 * trained && shared.moments < 5 * trained, "{shared}");
        let aside = count_of(", micro_batch: 1, offload: optimizer", 512, false);
        assert_eq!((aside.weights, aside.moments, aside.aside), (2 * trained, 0, 12 * trained));
        let both = count_of(", micro_batch: 1, offload: optimizer, moments: int8", 512, false);
        let scales = both.aside - 6 * trained;
        assert!(scales > trained / 40 && scales < trained / 20, "{both}");
    }
}
