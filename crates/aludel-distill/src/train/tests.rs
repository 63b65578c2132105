//! Runs that are stopped, killed and gone on with, beside runs that were not.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;

use aludel_kernels::element::Element;
use aludel_kernels::nn::{Cpu, Device};
use aludel_model::{AdapterSpec, Batch, Decoder, Use, WeightType};

use super::*;
use crate::data::MicroBatch;
use crate::record::{Entry, Phase};
use crate::run::Weights;
use session::{Ending, Source};

const STEPS: u64 = 6;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/training")).join(name)
}

/// Documents made up from the number of the step. It fails at a step of its choice, as a killed process would.
struct Documents {
    next: u64,
    fails_at: u64,
}

fn micro_batch(number: u64) -> MicroBatch {
    let ids: Vec<u32> = (0..12).map(|place| ((number * 31 + place * place * 7 + 3) % 64) as u32).collect();
    let mut labels = ids[1..].to_vec();
    labels.push(aludel_kernels::loss::IGNORED);
    MicroBatch { batch: Batch::pack([&ids[..7], &ids[7..]]), labels, ..MicroBatch::default() }
}

impl Source for Documents {
    fn next_step(&mut self) -> Result<Vec<MicroBatch>, Error> {
        if self.next == self.fails_at {
            return Err(Error::Interrupted);
        }
        self.next += 1;
        Ok(vec![micro_batch(2 * self.next), micro_batch(2 * self.next + 1)])
    }

    fn position(&self) -> Result<Value, Error> {
        Ok(self.next.into())
    }
}

fn trainer(run: &Run, threads: usize) -> Trainer<Cpu> {
    let device = Arc::new(Cpu::new(threads.try_into().ok()).unwrap());
    let weights = match run.train.weights {
        Weights::Float32 => WeightType::Float32,
        Weights::Bfloat16 => WeightType::BFloat16,
    };
    let mut student =
        Decoder::open(&golden("student"), Arc::clone(&device), Use::Trainable(weights)).unwrap();
    if run.train.lora.is_some() {
        let targets = vec!["all-linear".to_owned()];
        let spec = AdapterSpec { rank: 2, alpha: 4.0, rank_stabilised: false, targets, seed: 0 };
        student.add_adapters(&spec).unwrap();
    }
    let teacher = match run.teacher.as_ref().unwrap().to_str().unwrap() {
        "wider" => {
            let text = std::fs::read_to_string(golden("teacher/config.json")).unwrap();
            let text = text.replace("\"hidden_size\": 16", "\"hidden_size\": 24");
            let config = aludel_checkpoint::Config::parse(&text, Path::new("config.json")).unwrap();
            Decoder::fresh(config, device, WeightType::Float32, 5).unwrap()
        }
        _ => Decoder::open(&golden("teacher"), device, Use::Frozen).unwrap(),
    };
    Trainer::new(student, Some(teacher), run, STEPS).unwrap()
}

/// How one part of a run goes.
#[derive(Clone, Copy)]
struct Part {
    resume: bool,
    /// It is asked to stop when it has taken this step.
    stops_at: u64,
    /// It dies before it takes the step after this one.
    dies_at: u64,
    /// What it fails by is an error, and not the death of the process.
    rescued: bool,
    threads: usize,
}

/// Everything that was trained, by name.
type Weights32 = Vec<(String, Vec<f32>)>;

const WHOLE: Part = Part { resume: false, stops_at: u64::MAX, dies_at: u64::MAX, rescued: false, threads: 2 };

/// Carries out a part of a run; returns how it ended and everything that was trained.
fn carry_out(run: &Run, part: Part) -> (Result<Ending, Error>, Weights32) {
    let beginning = if part.resume { Beginning::Resuming } else { Beginning::Fresh };
    let folder = RunFolder::open(&run.output, beginning).unwrap();
    let mut trainer = trainer(run, part.threads);
    let last = folder.states().steps().unwrap().last().copied();
    let progress = last.map(|step| folder.states().read(step).unwrap());
    let (record, standing, next) = match &progress {
        None => (Record::create(folder.path()).unwrap(), Standing::default(), 0),
        Some(progress) => {
            let device = trainer.shared_device();
            folder.states().restore(progress.step, device.as_ref(), trainer.items_mut()).unwrap();
            trainer.resume(progress.step, progress.updates, progress.annealing).unwrap();
            let record = Record::resume(folder.path(), &progress.record).unwrap();
            (record, Standing::of(progress), progress.data.as_u64().unwrap())
        }
    };
    let cancel = AtomicBool::new(false);
    let on_event = |event: Event| {
        if let Event::Step(event) = event {
            cancel.store(event.step == part.stops_at, Relaxed);
        }
    };
    let mut session = Session {
        run,
        settings: run.to_json().unwrap(),
        inputs: Value::Null,
        trainer,
        source: Documents { next, fails_at: part.dies_at },
        validation: vec![micro_batch(100), micro_batch(101)],
        steps: STEPS,
        stored: Element::F32,
        states: folder.states(),
        record,
        standing,
        position: Value::Null,
        cancel: &cancel,
        on_event: &on_event,
    };
    let ending = session.run();
    if let (Err(failure), true) = (&ending, part.rescued) {
        session.rescue(failure);
    }
    let device = session.trainer.shared_device();
    let weights = session.trainer.student().parameters().trainable().map(|parameter| {
        let values = device.read(&parameter.buffer, 0..device.len(&parameter.buffer)).unwrap();
        (parameter.name.clone(), values)
    });
    let trained = weights.collect();
    (ending, trained)
}

/// Measurements without those of time and memory.
fn measured(run: &Run) -> Vec<Entry> {
    let folder = folder::path_for(&run.output);
    let mut entries = record::read_metrics(&record::metrics_path(&folder)).unwrap();
    for entry in &mut entries {
        entry.time = 0.0;
        entry.values.shift_remove("tokens_per_second");
        entry.values.shift_remove("memory_bytes");
    }
    entries
}

/// A run with these lines, in a folder of its own.
fn run_of(lines: &str, train: &str) -> (tempfile::TempDir, Run) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let text = format!(
        "student: s\ndata: {{train: [a.txt], validation: b.txt}}\n{lines}\noutput: {}\ntrain: {{steps: {STEPS}, batch_size: 2, micro_batch: 1, \
         learning_rate: 0.01, weight_decay: 0.1, evaluate_every: 2, {train}}}\n",
        output.display()
    );
    (folder, Run::parse(&text).unwrap())
}

/// A run that is stopped, killed and gone on with has the bits of one that was not, whatever its threads.
fn check_resumes(lines: &str, train: &str) {
    let (_keep, whole) = run_of(lines, train);
    let (ending, expected) = carry_out(&whole, WHOLE);
    assert_eq!(ending.unwrap(), Ending::Complete);
    let entries = measured(&whole);
    assert_eq!(entries.len() as u64, STEPS + STEPS / 2 + 1);
    let evaluated: Vec<&Entry> = entries.iter().filter(|entry| entry.phase == Phase::Validation).collect();
    assert!(
        evaluated.windows(2).all(|pair| pair[0].values != pair[1].values),
        "nothing was learned: {entries:?}"
    );

    let (_keep, stopped) = run_of(lines, train);
    let (ending, _) = carry_out(&stopped, Part { stops_at: 3, ..WHOLE });
    assert_eq!(ending.unwrap(), Ending::Interrupted);
    let (ending, trained) = carry_out(&stopped, Part { resume: true, threads: 1, ..WHOLE });
    assert_eq!(ending.unwrap(), Ending::Complete);
    assert_eq!(trained, expected);
    assert_eq!(measured(&stopped), entries);

    let (_keep, killed) = run_of(lines, &format!("save_every: 2, {train}"));
    assert!(carry_out(&killed, Part { dies_at: 3, ..WHOLE }).0.is_err());
    assert!(carry_out(&killed, Part { resume: true, dies_at: 5, ..WHOLE }).0.is_err());
    let (ending, trained) = carry_out(&killed, Part { resume: true, ..WHOLE });
    assert_eq!(ending.unwrap(), Ending::Complete);
    assert_eq!(trained, expected);
    assert_eq!(measured(&killed), entries);
}

#[test]
fn a_failure_that_leaves_the_process_alive_loses_no_step() {
    let lines = "teacher: t\nobjective: forward_kl";
    let (_keep, whole) = run_of(lines, "");
    let (_, expected) = carry_out(&whole, WHOLE);
    let (_keep, run) = run_of(lines, "");
    assert!(carry_out(&run, Part { dies_at: 4, rescued: true, ..WHOLE }).0.is_err());
    let states = RunFolder::open(&run.output, Beginning::Resuming).unwrap().states().clone();
    assert_eq!(states.steps().unwrap(), [4]);
    let (ending, trained) = carry_out(&run, Part { resume: true, ..WHOLE });
    assert_eq!(ending.unwrap(), Ending::Complete);
    assert_eq!(trained, expected);
}

#[test]
fn full_training_resumes_to_the_bit() {
    check_resumes("teacher: t\nobjective: [forward_kl, {loss: cross_entropy, weight: 0.5}]", "");
}

#[test]
fn taid_with_rounded_weights_and_short_moments_resumes_to_the_bit() {
    check_resumes(
        "teacher: t\nobjective: soft_cross_entropy\ntaid: published",
        "weights: bfloat16, moments: int8, checkpointing: block",
    );
}

/// The teacher's weight falls from 0.9 to 0.5 on half a cosine: step `i` of `N` is taken at `i / N`.
#[test]
fn a_mixture_moves_with_the_steps() {
    let (_keep, run) =
        run_of("teacher: t\nobjective: forward_kl\ntaid: {variant: mixture, difficulty: 0}", "");
    carry_out(&run, WHOLE).0.unwrap();
    let entries = measured(&run);
    let trained = entries.iter().filter(|entry| entry.phase == Phase::Train);
    for (taken, entry) in trained.enumerate() {
        let want = 0.7 + 0.2 * (std::f64::consts::PI * taken as f64 / STEPS as f64).cos();
        assert!((entry.values["taid_a"] - want).abs() < 1e-6, "{taken}: {entry:?}");
    }
}

#[test]
fn adapters_resume_to_the_bit() {
    check_resumes("teacher: t\nobjective: reverse_kl", "lora: {rank: 2, alpha: 4}");
}

#[test]
fn projections_of_hidden_states_resume_to_the_bit() {
    check_resumes(
        "teacher: wider\nobjective: [jsd, {loss: hidden_mse, layers: every}, {loss: hidden_cosine, layers: last}]",
        "",
    );
}

#[test]
fn a_run_ends_early_when_its_evaluations_no_longer_improve() {
    let (_keep, mut run) = run_of(
        "teacher: t\nobjective: forward_kl",
        "early_stopping: {patience: 1, minimum_improvement: 10}, keep: 1",
    );
    run.train.evaluate_every = Some(1);
    let (ending, _) = carry_out(&run, WHOLE);
    assert_eq!(ending.unwrap(), Ending::StoppedEarly);
    let evaluated: Vec<u64> = measured(&run)
        .iter()
        .filter(|entry| entry.phase == Phase::Validation)
        .map(|entry| entry.step)
        .collect();
    assert_eq!(evaluated, [0, 1, 2]);
    let states = RunFolder::open(&run.output, Beginning::Resuming).unwrap().states().clone();
    assert_eq!(states.steps().unwrap(), [1]);
    assert_eq!(states.read(1).unwrap().best.unwrap().step, 1);
    // Gone on with, it comes to the same end.
    let (ending, _) = carry_out(&run, Part { resume: true, ..WHOLE });
    assert_eq!(ending.unwrap(), Ending::StoppedEarly);
}

#[test]
fn the_newest_checkpoints_and_the_best_are_kept() {
    let (_keep, run) = run_of(
        "teacher: t\nobjective: forward_kl",
        "save_every: 1, keep: 2, early_stopping: {patience: 9, minimum_improvement: 10}",
    );
    carry_out(&run, WHOLE).0.unwrap();
    let states = RunFolder::open(&run.output, Beginning::Resuming).unwrap().states().clone();
    assert_eq!(states.steps().unwrap(), [2, 5, 6]);
}

#[test]
fn a_diverged_step_is_an_error_and_leaves_the_last_checkpoint() {
    let (_keep, mut run) =
        run_of("teacher: t\nobjective: forward_kl", "save_every: 1, warmup: 0, clip: none");
    run.train.learning_rate = 1e30;
    let (ending, _) = carry_out(&run, WHOLE);
    let message = ending.unwrap_err().to_string();
    assert!(message.contains("step 2 diverged"), "{message}");
    let states = RunFolder::open(&run.output, Beginning::Resuming).unwrap().states().clone();
    assert_eq!(states.steps().unwrap(), [1]);
}

#[test]
fn a_checkpoint_with_other_arrays_is_refused() {
    let (_keep, run) = run_of("teacher: t\nobjective: forward_kl", "save_every: 3");
    carry_out(&run, WHOLE).0.unwrap();
    let states = RunFolder::open(&run.output, Beginning::Resuming).unwrap().states().clone();
    let (_keep, other) = run_of("teacher: t\nobjective: forward_kl", "moments: int8");
    let mut trainer = trainer(&other, 1);
    let device = trainer.shared_device();
    let error = states.restore(3, device.as_ref(), trainer.items_mut()).unwrap_err();
    assert!(error.to_string().contains("is missing"), "{error}");
    let weights = states.path(3).join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    for damaged in [&bytes[..bytes.len() - 4], &bytes[..9], b"", b"\xff\xff\xff\xff\xff\xff\xff\xff{}"] {
        std::fs::write(&weights, damaged).unwrap();
        assert!(states.restore(3, device.as_ref(), trainer.items_mut()).is_err());
    }
    std::fs::write(states.path(3).join("state.json"), "{\"version\": 2}").unwrap();
    assert!(states.read(3).unwrap_err().to_string().contains("another version of this program"));
}
