//! Holds trainings whose steps are submitted as graphs to the same without, on CUDA in software.

use std::path::Path;
use std::sync::Arc;

use aludel_checkpoint::Config;
use aludel_distill::data::MicroBatch;
use aludel_distill::run::Run;
use aludel_distill::step::Trainer;
use aludel_kernels::gpu::NoStore;
use aludel_kernels::nn::{Cuda, Device};

use aludel_model::{Decoder, WeightType};

use crate::batches::learned;
use crate::started;

const RESULTS: &str = "results: ";
const SUBMITTED: &str = "submitted: ";

fn config(folder: &Path, hidden: usize) -> Config {
    let path = folder.join(format!("{hidden}.json"));
    let text = format!(
        r#"{{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": {hidden}, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64, "hidden_act": "silu",
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16"}}"#
    );
    std::fs::write(&path, text).unwrap();
    Config::read(&path).unwrap()
}

/// As many rows every time, of documents that are cut elsewhere.
fn micro_batch(step: usize) -> MicroBatch {
    let cut = 5 + step % 4;
    let document = |seed: usize, length: usize| -> Vec<u32> {
        (0..length).map(|at| ((at * 31 + seed * 17 + at * at) % 64) as u32).collect()
    };
    learned(&[document(step, cut), document(step + 3, 24 - cut)])
}

/// Says the bits of what a training comes to, and how it was submitted.
#[test]
#[ignore = "needs a CUDA device: the other test starts it where they have one in software"]
fn a_training_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let cuda = Arc::new(Cuda::open(0, Box::new(NoStore)).unwrap());
    let model = |hidden, seed| {
        Decoder::fresh(config(folder.path(), hidden), Arc::clone(&cuda), WeightType::BFloat16, seed).unwrap()
    };
    let text = "teacher: teacher\nobjective:\n  - {loss: jsd, beta: 0.5}\n  - {loss: cross_entropy}\nstudent: student\n\
                data: {train: [none.txt]}\noutput: out\ntrain: {steps: 14, weights: bfloat16, learning_rate: 1e-3}\n";
    let run = Run::parse(text).unwrap();
    let mut trainer = Trainer::new(model(32, 1), Some(model(48, 2)), &run, 14).unwrap();
    let mut bits = Vec::new();
    for step in 0..14 {
        let micro = [micro_batch(2 * step), micro_batch(2 * step + 1)];
        bits.push(trainer.step(&micro, &|| false).unwrap().unwrap().loss.to_bits());
    }
    for parameter in trainer.student().parameters().iter() {
        let values = cuda.read(&parameter.buffer, 0..parameter.elements()).unwrap();
        bits.extend(values.iter().map(|value| u64::from(value.to_bits())));
    }
    let submitted = cuda.submitted();
    let [by_graphs, graphs, updates] = [submitted.by_graphs, submitted.graphs, submitted.updates];
    println!("\n{SUBMITTED}{by_graphs} {graphs} {updates} {}\n{RESULTS}{bits:?}", submitted.operations);
}

/// How operations were submitted, and the results. A device may refuse to make graphs (1), to tell them what differs (2) or to launch them (3).
fn told(graphs: &str, refuses: &str) -> Option<([u64; 4], String)> {
    let settings = [("ALUDEL_GRAPHS", graphs), ("SOFT_CUDA_REFUSES_GRAPHS", refuses), ("ALUDEL_TUNE", "0")];
    let said = started("graphs::a_training_is_told", &settings)?;
    let line = |begins: &str| said.lines().find_map(|line| line.strip_prefix(begins)).unwrap().to_owned();
    let numbers: Vec<u64> = line(SUBMITTED).split(' ').map(|number| number.parse().unwrap()).collect();
    Some((numbers.try_into().unwrap(), line(RESULTS)))
}

#[test]
fn steps_as_graphs_have_the_bits_of_steps_without() {
    let Some(([by_graphs, graphs, updates, operations], results)) = told("1", "0") else { return };
    let ([none, _, _, as_many], without) = told("0", "0").unwrap();
    assert_eq!((none, as_many), (0, operations));
    assert_eq!(results, without);
    // The first four steps of fourteen find out what comes again.
    assert!(2 * by_graphs >= operations, "{by_graphs} of {operations} operations by {graphs} graphs");
    // Documents are cut elsewhere each time, and rates differ.
    assert!(updates > 0 && graphs > 0, "{updates} updates of {graphs} graphs");
}

#[test]
fn what_a_device_refuses_of_graphs_is_done_without() {
    let Some((_, results)) = told("1", "0") else { return };
    for refuses in ["1", "2", "3"] {
        let ([by_graphs, graphs, updates, _], others) = told("1", refuses).unwrap();
        assert_eq!(others, results, "{refuses}");
        assert_eq!(by_graphs > 0, refuses == "2", "{refuses}");
        assert_eq!((graphs > 0, updates > 0), (refuses != "1", refuses == "3"), "{refuses}");
    }
}
