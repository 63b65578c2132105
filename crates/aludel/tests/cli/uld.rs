//! Trainings from a teacher with other tokens: live, from every kind of cache, and what is refused.

use std::fs;

use serde_json::{Value, json};
use snapbox::str;

use crate::distill::short;
use crate::sandbox::Sandbox;

/// A run whose student reads single bytes and its teacher tokens of several, over rows that fit a sequence of either.
pub(crate) fn sandbox() -> Sandbox {
    let sandbox = short("");
    let rows = fs::read_to_string(sandbox.path("examples/data/genesis-train.jsonl")).unwrap();
    let text: String = rows
        .lines()
        .map(|row| serde_json::from_str::<Value>(row).unwrap()["text"].as_str().unwrap().to_owned())
        .collect();
    let rows: Vec<String> =
        text.split_inclusive(". ").filter(|row| row.len() < 250).map(str::to_owned).collect();
    let lines = |rows: &[String]| -> String {
        rows.iter().map(|row| json!({ "text": row }).to_string() + "\n").collect()
    };
    sandbox.write("train.jsonl", lines(&rows[8..]));
    sandbox.write("heldout.jsonl", lines(&rows[..8]));

    let read = |name: &str| -> Value {
        let path = sandbox.path("examples/models/scripture").join(name);
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    };
    let mut tokenizer = read("tokenizer.json");
    let vocabulary = tokenizer["model"]["vocab"].as_object().unwrap().keys();
    let bytes = vocabulary.filter(|token| token.chars().count() == 1);
    let mut ids: serde_json::Map<_, _> =
        bytes.rev().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    assert_eq!(ids.len(), 256);
    ids.insert("<|endoftext|>".to_owned(), 256.into());
    tokenizer["model"]["vocab"] = ids.into();
    tokenizer["model"]["merges"] = json!([]);
    tokenizer["added_tokens"][0]["id"] = 256.into();
    let mut config = read("config.json");
    for (key, value) in
        [("vocab_size", 257), ("num_hidden_layers", 2), ("bos_token_id", 256), ("eos_token_id", 256)]
    {
        config[key] = value.into();
    }
    sandbox.write("bytes/tokenizer.json", tokenizer.to_string());
    sandbox.write("bytes/tokenizer_config.json", json!({"eos_token": "<|endoftext|>"}).to_string());
    sandbox.write("bytes/config.json", config.to_string());
    write(
        &sandbox,
        "run.yml",
        "examples/models/scripture",
        "[uld, {loss: cross_entropy, weight: 0.5}]",
        "out",
    );
    sandbox
}

fn write(sandbox: &Sandbox, name: &str, teacher: &str, objective: &str, output: &str) {
    let text = format!(
        "teacher: {teacher}\nstudent: {{config: bytes, seed: 1}}\noutput: {output}\nobjective: {objective}\ndata:\n  \
         train: train.jsonl\n  validation: heldout.jsonl\n  sequence_length: 256\ntrain: {{steps: 30, batch_size: 2, \
         learning_rate: 3e-3, evaluate_every: 10}}\n"
    );
    sandbox.write(name, text);
}

/// A value of every record of a phase.
fn series(sandbox: &Sandbox, output: &str, phase: &str, value: &str) -> Vec<f64> {
    let text = fs::read_to_string(sandbox.path(&format!("{output}.run/metrics.jsonl"))).unwrap();
    let entries = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    entries.filter(|entry| entry["phase"] == phase).map(|entry| entry[value].as_f64().unwrap()).collect()
}

#[test]
fn a_teacher_with_other_tokens_teaches_live_and_from_caches() {
    let sandbox = sandbox();
    sandbox.aludel(&["distill", "run.yml", "-q"]).assert().code(0).stderr_eq("");
    let uld = series(&sandbox, "out", "validation", "uld");
    let cross_entropy = series(&sandbox, "out", "validation", "cross_entropy");
    assert!(uld.len() == 4 && uld[3] < 0.75 * uld[0], "{uld:?}");
    assert!(cross_entropy[3] < 0.7 * cross_entropy[0], "{cross_entropy:?}");
    // It is no measure of a student that has other tokens than its teacher.
    let record = fs::read_to_string(sandbox.path("out.run/metrics.jsonl")).unwrap();
    assert!(!record.contains("\"kl\"") && !record.contains("\"top1\""));
    let live = series(&sandbox, "out", "train", "loss");
    let teacher = "{cache: cache, tokenizer: examples/models/scripture}";
    write(&sandbox, "cached.yml", teacher, "[uld, {loss: cross_entropy, weight: 0.5}]", "out-cached");
    for (flags, tolerance) in [
        (&["--mode", "hidden"][..], 1e-3),
        (&["--mode", "int8"], 1e-2),
        (&["--mode", "top_k", "--k", "512"], 1e-2),
        (&["--mode", "top_k", "--k", "64"], 3e-2),
    ] {
        let capture = [&["cache", "capture", "run.yml", "cache", "-q"], flags].concat();
        sandbox.aludel(&capture).assert().code(0).stderr_eq("");
        sandbox.aludel(&["distill", "cached.yml", "--force", "-q"]).assert().code(0).stderr_eq("");
        let cached = series(&sandbox, "out-cached", "train", "loss");
        let off = live.iter().zip(&cached).map(|(x, y)| (x - y).abs() / x).fold(0.0, f64::max);
        assert!(cached.len() == 30 && off < tolerance, "{flags:?}: {off}, {live:?} {cached:?}");
        fs::remove_dir_all(sandbox.path("cache")).unwrap();
    }
    // The teacher's own rows, whoever learns from them: a run of the teacher alone captures the same cache.
    sandbox.aludel(&["cache", "capture", "run.yml", "cache", "-q", "--k", "8"]).assert().code(0);
    write(&sandbox, "own.yml", "examples/models/scripture", "forward_kl", "out-own");
    let own = fs::read_to_string(sandbox.path("own.yml")).unwrap();
    sandbox.write("own.yml", own.replace("{config: bytes, seed: 1}", "{from_teacher: {every: 2}}"));
    sandbox.aludel(&["cache", "capture", "own.yml", "own-cache", "-q", "--k", "8"]).assert().code(0);
    assert!(sandbox.contents("cache") == sandbox.contents("own-cache"));
    let verified = sandbox.json(&["cache", "verify", "cache", "--run", "run.yml", "--json"]);
    assert!(verified["stored"]["top1"].as_f64().unwrap() > 0.95, "{verified}");
}

#[test]
fn a_run_with_other_tokens_is_refused_by_name_of_the_loss_that_takes_them() {
    let sandbox = sandbox();
    write(&sandbox, "kl.yml", "examples/models/scripture", "forward_kl", "out");
    sandbox.aludel(&["distill", "kl.yml"]).assert().code(3).stdout_eq("").stderr_eq(str![[r#"
error: [..]
  hint: compare sorted probabilities, which needs no tokens in common (`loss: uld`), or take models of one family
aludel: 1 problem, nothing was written

"#]]);
    let refused = |teacher: &str, objective: &str| {
        write(&sandbox, "other.yml", teacher, objective, "out");
        let output = sandbox.process(&["distill", "other.yml"]).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{objective}");
        String::from_utf8(output.stderr).unwrap()
    };
    sandbox.aludel(&["cache", "capture", "run.yml", "cache", "-q", "--k", "8"]).assert().code(0);
    sandbox.aludel(&["cache", "capture", "run.yml", "draws", "-q", "--mode", "sampled"]).assert().code(0);
    for (teacher, objective, reason) in [
        ("{cache: cache, tokenizer: bytes}", "uld", "does not fit: "),
        (
            "{cache: cache, tokenizer: examples/models/scripture}",
            "{loss: uld, temperature: 2}",
            "temperature 2",
        ),
        ("{cache: draws, tokenizer: examples/models/scripture}", "uld", "draws have no order"),
        ("{cache: cache}", "uld", "needs the tokenizer"),
    ] {
        let said = refused(teacher, objective);
        assert!(said.contains(reason), "{reason}: {said}");
    }
}
