//! Replays ten steps of training that torch took on the same data from the same weights (`tests/golden/training`).

use std::path::PathBuf;
use std::sync::Arc;

use aludel_distill::data::MicroBatch;
use aludel_distill::run::Run;
use aludel_distill::step::{StepReport, Trainer};
use aludel_kernels::loss::{IGNORED, Target};
use aludel_kernels::nn::Cpu;
use aludel_model::{Batch, Decoder, Use, WeightType};
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/training")).join(name)
}

fn losses() -> Value {
    serde_json::from_str(&std::fs::read_to_string(golden("losses.json")).unwrap()).unwrap()
}

/// A run with the settings of the golden and this objective.
fn run(settings: &Value, objective: &str) -> Run {
    let number = |key: &str| settings[key].to_string();
    let text = format!(
        "teacher: teacher\nstudent: student\ndata: {{train: [none.txt]}}\n{objective}\noutput: out\ntrain:\n  \
         steps: {}\n  warmup: {}\n  batch_size: {}\n  micro_batch: 1\n  learning_rate: {}\n  weight_decay: {}\n  \
         betas: {}\n  epsilon: {}\n  clip: {}\n",
        number("steps"),
        number("warmup"),
        number("micro_batches"),
        number("learning_rate"),
        number("weight_decay"),
        number("betas"),
        number("epsilon"),
        number("clip"),
    );
    Run::parse(&text).unwrap()
}

fn documents(golden: &Value) -> Vec<MicroBatch> {
    let document = |document: &Value| {
        let ids: Vec<u32> = serde_json::from_value(document["ids"].clone()).unwrap();
        let learned: Vec<bool> = serde_json::from_value(document["learned"].clone()).unwrap();
        let label = |next: usize| if *learned.get(next).unwrap_or(&false) { ids[next] } else { IGNORED };
        let labels = (1..=ids.len()).map(label).collect();
        MicroBatch { batch: Batch::pack([ids.as_slice()]), labels, ..MicroBatch::default() }
    };
    golden["documents"].as_array().unwrap().iter().map(document).collect()
}

fn train(losses: &Value, objective: &str) -> (Trainer<Cpu>, Vec<StepReport>) {
    let device = Arc::new(Cpu::new(None).unwrap());
    let student =
        Decoder::open(&golden("student"), Arc::clone(&device), Use::Trainable(WeightType::Float32)).unwrap();
    let teacher = Decoder::open(&golden("teacher"), device, Use::Frozen).unwrap();
    let run = run(&losses["settings"], objective);
    let mut trainer = Trainer::new(student, Some(teacher), &run, 10).unwrap();
    let documents = documents(losses);
    let steps = (0..10)
        .map(|step| trainer.step(&documents[step % 2 * 3..][..3], &|| false).unwrap().unwrap())
        .collect();
    (trainer, steps)
}

fn assert_close(what: &str, got: f64, want: f64, relative: f64) {
    assert!((got - want).abs() <= relative * want.abs(), "{what}: {got} is not {want}");
}

/// Losses, rates and norms of every step, and weights after the last, agree with torch's.
fn check(name: &str, objective: &str) {
    let golden = losses();
    let (trainer, steps) = train(&golden, objective);
    let expected = &golden["runs"][name];
    for (place, (step, expected)) in steps.iter().zip(expected["steps"].as_array().unwrap()).enumerate() {
        let number = |key: &str| expected[key].as_f64().unwrap();
        let what = |key: &str| format!("{name}, step {place}, {key}");
        assert_close(&what("loss"), step.loss, number("loss"), 1e-5);
        assert_close(&what("gradient_norm"), step.gradient_norm, number("gradient_norm"), 1e-4);
        assert_close(&what("learning_rate"), step.learning_rate, number("learning_rate"), 1e-12);
        if let Target::InterpolatedLogits { t } = step.target {
            assert_close(&what("t"), f64::from(t), number("t"), 1e-6);
        }
    }
    for (tensor, values) in expected["final"].as_object().unwrap() {
        let parameter = trainer.student().parameters().named(tensor).unwrap();
        let got =
            aludel_kernels::nn::Device::read(trainer.student().device().as_ref(), &parameter.buffer, 0..4)
                .unwrap();
        for (got, want) in got.iter().zip(values.as_array().unwrap()) {
            let want = want.as_f64().unwrap();
            assert!(
                (f64::from(*got) - want).abs() <= 2e-4 * want.abs().max(0.05),
                "{name}, {tensor}: {got} is not {want}"
            );
        }
    }
}

#[test]
fn cross_entropy_trains_as_in_torch() {
    check("cross_entropy", "objective: cross_entropy");
}

#[test]
fn forward_kl_at_a_temperature_trains_as_in_torch() {
    check("forward_kl", "objective: {loss: forward_kl, temperature: 2.0}");
}

#[test]
fn jensen_shannon_trains_as_in_torch() {
    check("jsd", "objective: {loss: jsd, beta: 0.3}");
}

#[test]
fn taid_trains_as_in_torch() {
    check("taid", "objective: soft_cross_entropy\ntaid: published");
}
