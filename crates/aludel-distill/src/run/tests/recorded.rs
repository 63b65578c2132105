//! What a record holds, and how a resumed run is compared with it.

use serde_json::json;

use crate::run::Run;

const RUN: &str = "teacher: t\nstudent: s\noutput: out\ndata: {train: a.jsonl, validation: 0.1}\n";

fn run(more: &str) -> Run {
    Run::parse(&format!("{RUN}{more}")).unwrap()
}

#[test]
fn a_record_has_every_default() {
    let json =
        run("objective: [jsd, {loss: cross_entropy, weight: 0.1}]\ntaid: published\n").to_json().unwrap();
    assert_eq!(json["student"], json!({"model": "s"}));
    assert_eq!(json["data"]["validation"], json!({"share": 0.1}));
    assert_eq!(
        json["objective"],
        json!([
            {"loss": "jsd", "beta": 0.5, "temperature": 1.0, "scale_by_t2": true, "weight": 1.0},
            {"loss": "cross_entropy", "weight": 0.1},
        ])
    );
    assert_eq!(
        json["taid"],
        json!({"variant": "published", "t_start": 0.4, "t_end": 1.0, "alpha": 5e-4, "beta": 0.99})
    );
    assert_eq!(json["train"]["length"], json!({"epochs": 1}));
    assert_eq!(json["train"]["warmup"], json!({"share": 0.03}));
}

#[test]
fn a_run_differs_by_what_the_weights_depend_on() {
    let first = run("train: {steps: 10, seed: 1, keep: 1}\n");
    let recorded = first.to_json().unwrap();
    let same = run("train: {seed: 1, steps: 1e1, keep: 9, save_every: 5, evaluate_every: 2}\n");
    assert_eq!(same.differences(&recorded).unwrap(), []);
    assert_eq!(same.digest().unwrap(), first.digest().unwrap());

    let other = run("train: {steps: 10, seed: 2, lora: {rank: 4}}\ntaid: mixture\n");
    let differences: Vec<String> =
        other.differences(&recorded).unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(
        differences,
        [
            "taid.variant is \"mixture\" and was absent",
            "taid.start is 0.9 and was absent",
            "taid.end is 0.5 and was absent",
            "taid.difficulty is 0.2 and was absent",
            "train.lora.rank is 4 and was absent",
            "train.lora.alpha is 8.0 and was absent",
            "train.lora.targets is \"all_linear\" and was absent",
            "train.seed is 2 and was 1",
        ]
    );
    assert_ne!(other.digest().unwrap(), first.digest().unwrap());
    let back = first.differences(&other.to_json().unwrap()).unwrap();
    assert_eq!(back.last().unwrap().to_string(), "train.lora.targets is absent and was \"all_linear\"");
}

#[test]
fn a_digest_is_64_hexadecimal_digits() {
    let digest = run("").digest().unwrap();
    assert!(digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()), "{digest}");
}
