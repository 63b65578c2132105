//! Runs that are accepted, and what they mean.

use std::path::PathBuf;

use aludel_kernels::loss::{Divergence, Mixture, TaidSettings, Term};
use aludel_model::chat::Moment;

use crate::run::{
    BadRows, Checkpointing, Columns, Data, EarlyStopping, KeptLayers, Layers, Length, LongDocuments, Lora,
    LoraTargets, Loss, LossOn, Moments, Offload, Open, Packing, Run, Schedule, Student, Taid, Train,
    Validation, Warmup, Weights,
};

const RUN: &str = "teacher: t\nstudent: s\noutput: out\ndata: {train: a.jsonl, validation: b.txt}\n";

fn run(more: &str) -> Run {
    Run::parse(&format!("{RUN}{more}")).unwrap()
}

#[test]
fn a_short_run_has_defaults() {
    let run = Run::parse("student: s\noutput: out\ndata: {train: [a.jsonl, b.parquet]}\n").unwrap();
    assert_eq!(run.teacher, None);
    assert_eq!(run.student, Student::Model("s".into()));
    assert_eq!(
        run.data,
        Data {
            train: vec!["a.jsonl".into(), "b.parquet".into()],
            validation: None,
            columns: Columns::default(),
            sequence_length: 1024,
            packing: Packing::Fill,
            loss_on: LossOn::Completions,
            chat_template: None,
            date: Moment::day(2024, 7, 26).unwrap(),
            long_documents: LongDocuments::Split,
            bad_rows: BadRows::Refuse,
            shuffle: true,
        }
    );
    assert_eq!(run.train, Train::default());
    assert_eq!((run.objective.labels().unwrap().weight, run.objective.divergences()), (1.0, Vec::new()));
    assert_eq!(run.taid, None);
    let kl = Term { divergence: Divergence::ForwardKl, weight: 1.0, temperature: 1.0, scale_by_t2: true };
    let with_teacher = super::accepted::run("");
    assert_eq!((with_teacher.objective.labels(), with_teacher.objective.divergences()), (None, vec![kl]));
}

#[test]
fn every_setting_of_the_training_is_read() {
    let train = run("\
train:
  steps: 1_000
  batch_size: 16
  micro_batch: 4
  learning_rate: 2e-5
  minimum_learning_rate: 1e-6
  schedule: linear
  warmup: 100
  weight_decay: 0.1
  betas: [0.9, 0.95]
  epsilon: 1e-6
  clip: none
  weights: bfloat16
  gradients: bf16
  moments: int8
  zero: 1
  offload: [optimizer, teacher]
  lora: {rank: 8, alpha: 32, targets: [q_proj, v_proj]}
  checkpointing: every-4
  evaluate_every: 50
  save_every: 200
  keep: 3
  early_stopping: {patience: 5, minimum_improvement: 0.001}
  seed: 42
")
    .train;
    let lora = Lora {
        rank: 8,
        alpha: 32.0,
        targets: LoraTargets::Named(vec!["q_proj".to_owned(), "v_proj".to_owned()]),
    };
    assert_eq!(
        train,
        Train {
            length: Length::Steps(1000),
            batch_size: 16,
            micro_batch: 4,
            learning_rate: 2e-5,
            minimum_learning_rate: 1e-6,
            schedule: Schedule::Linear,
            warmup: Warmup::Steps(100),
            weight_decay: 0.1,
            betas: [0.9, 0.95],
            epsilon: 1e-6,
            clip: None,
            weights: Weights::Bfloat16,
            gradients: Weights::Bfloat16,
            moments: Moments::Int8,
            zero: 1,
            offload: Offload { optimizer: true, teacher: true },
            open: Open { checkpointing: false, moments: false, offload: false },
            lora: Some(lora),
            checkpointing: Checkpointing::Every(4),
            evaluate_every: Some(50),
            save_every: Some(200),
            keep: 3,
            early_stopping: Some(EarlyStopping { patience: 5, minimum_improvement: 0.001 }),
            seed: 42,
        }
    );
}

#[test]
fn a_warmup_is_a_share_or_steps() {
    for (text, warmup) in [
        ("0", Warmup::Share(0.0)),
        ("0.03", Warmup::Share(0.03)),
        ("3%", Warmup::Share(0.03)),
        ("'5 %'", Warmup::Share(0.05)),
        ("1", Warmup::Steps(1)),
        ("1e2", Warmup::Steps(100)),
    ] {
        assert_eq!(run(&format!("train: {{warmup: {text}}}")).train.warmup, warmup, "{text}");
    }
}

#[test]
fn clipping_and_checkpointing_can_be_off() {
    for (text, clip) in [("0", None), ("none", None), ("false", None), ("0.5", Some(0.5))] {
        assert_eq!(run(&format!("train: {{clip: {text}}}")).train.clip, clip, "{text}");
    }
    for (text, checkpointing) in [("none", Checkpointing::None), ("block", Checkpointing::Block)] {
        let train = run(&format!("train: {{checkpointing: {text}}}")).train;
        assert_eq!(train.checkpointing, checkpointing, "{text}");
    }
}

#[test]
fn students_come_from_a_folder_the_teacher_or_a_config() {
    for (text, student) in [
        ("a/b", Student::Model("a/b".into())),
        (
            "{from_teacher: {layers: [0, 2, 5], heads: 4, ffn: 256}}",
            Student::FromTeacher { layers: KeptLayers::These(vec![0, 2, 5]), heads: Some(4), ffn: Some(256) },
        ),
        (
            "{from_teacher: {every: 2}}",
            Student::FromTeacher { layers: KeptLayers::Every(2), heads: None, ffn: None },
        ),
        (
            "{from_teacher: {ffn: 64}}",
            Student::FromTeacher { layers: KeptLayers::All, heads: None, ffn: Some(64) },
        ),
        ("{config: c.json, seed: 7}", Student::FromConfig { config: "c.json".into(), seed: 7 }),
    ] {
        let text = format!("teacher: t\nstudent: {text}\noutput: o\ndata: {{train: a.txt}}\n");
        assert_eq!(Run::parse(&text).unwrap().student, student, "{text}");
    }
}

#[test]
fn validation_is_files_or_a_share() {
    for (text, validation) in [
        ("b.jsonl", Validation::Files(vec![PathBuf::from("b.jsonl")])),
        ("[b.jsonl, c.txt]", Validation::Files(vec!["b.jsonl".into(), "c.txt".into()])),
        ("0.01", Validation::Share(0.01)),
        ("1%", Validation::Share(0.01)),
    ] {
        let text = format!("student: s\noutput: o\ndata: {{train: a.txt, validation: {text}}}\n");
        assert_eq!(Run::parse(&text).unwrap().data.validation, Some(validation), "{text}");
    }
}

#[test]
fn a_date_is_a_day() {
    let text = "student: s\noutput: o\ndata: {train: a.txt, date: 2025-02-28}\n";
    assert_eq!(Run::parse(text).unwrap().data.date, Moment::day(2025, 2, 28).unwrap());
    let json = Run::parse(text).unwrap().to_json().unwrap();
    assert_eq!(json["data"]["date"], "2025-02-28");
    for wrong in ["2025-02-29", "2025-2", "28.2.2025", "2025-02-01-01", "now", "-1-2-3"] {
        assert!(Run::parse(&text.replace("2025-02-28", wrong)).is_err(), "{wrong}");
    }
}

#[test]
fn columns_have_names() {
    let text = "student: s\noutput: o\ndata: {train: a.txt, columns: {text: body, messages: turns}}\n";
    let columns = Columns { text: "body".into(), messages: "turns".into(), ..Columns::default() };
    assert_eq!(Run::parse(text).unwrap().data.columns, columns);
}

#[test]
fn every_loss_becomes_its_term() {
    let objective = run("\
objective:
  - {loss: forward_kl, weight: 0.5, temperature: 2}
  - {loss: reverse_kl, scale_by_t2: false}
  - {loss: jsd, beta: 0.25}
  - {loss: skewed_forward_kl, lambda: 0.2}
  - skewed_reverse_kl
  - {loss: total_variation, temperature: 3}
  - soft_cross_entropy
  - logits_mse
  - {loss: cross_entropy, weight: 0.1}
  - {loss: hidden_mse, layers: {1: 3, 0: 0}}
  - {loss: hidden_cosine, layers: last}
  - attention_transfer
")
    .objective;
    let term =
        |divergence, weight, temperature, scale_by_t2| Term { divergence, weight, temperature, scale_by_t2 };
    assert_eq!(
        objective.divergences(),
        [
            term(Divergence::ForwardKl, 0.5, 2.0, true),
            term(Divergence::ReverseKl, 1.0, 1.0, false),
            term(Divergence::JensenShannon { beta: 0.25 }, 1.0, 1.0, true),
            term(Divergence::SkewedForwardKl { lambda: 0.2 }, 1.0, 1.0, true),
            term(Divergence::SkewedReverseKl { lambda: 0.1 }, 1.0, 1.0, true),
            term(Divergence::TotalVariation, 1.0, 3.0, false),
            term(Divergence::SoftCrossEntropy, 1.0, 1.0, true),
            term(Divergence::LogitsMse, 1.0, 1.0, false),
        ]
    );
    assert_eq!(objective.labels().unwrap().weight, 0.1);
    let hidden: Vec<&Loss> = objective.hidden().map(|term| &term.loss).collect();
    assert_eq!(
        hidden,
        [
            &Loss::HiddenMse { layers: Layers::Pairs(vec![(0, 0), (1, 3)]) },
            &Loss::HiddenCosine { layers: Layers::Last },
            &Loss::AttentionTransfer { layers: Layers::Every },
        ]
    );
}

#[test]
fn both_kinds_of_taid_have_defaults() {
    let published = Taid::Published(TaidSettings { t_start: 0.4, t_end: 1.0, alpha: 5e-4, beta: 0.99 });
    assert_eq!(run("taid: published").taid, Some(published));
    assert_eq!(run("taid: {alpha: 5e-4}").taid, Some(published));
    let mixture = Taid::Mixture(Mixture { start: 0.8, end: 0.5, difficulty: 0.2 });
    assert_eq!(run("taid: {variant: mixture, start: 0.8}").taid, Some(mixture));
}

#[test]
fn what_is_shared_can_be_written_once() {
    let run =
        run("objective:\n  - &term {loss: forward_kl, temperature: 4}\n  - {<<: *term, loss: reverse_kl}\n");
    assert!(run.objective.divergences().iter().all(|term| term.temperature == 4.0));
    assert_eq!(run.objective.terms.len(), 2);
}
