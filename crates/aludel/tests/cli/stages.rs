//! Recipes of several documents, merged with the results in between on disk.

use snapbox::str;

use crate::sandbox::Sandbox;

const CHAIN: &str = "\
name: mixed
merge_method: linear
models:
  - {model: models/a, parameters: {weight: 0.5}}
  - {model: models/b, parameters: {weight: 0.5}}
dtype: bfloat16
---
merge_method: slerp
base_model: models/a
models:
  - model: mixed
parameters: {t: 0.5}
dtype: bfloat16
";

fn chain() -> Sandbox {
    let sandbox = Sandbox::new(&["a", "b"]);
    sandbox.write("r.yml", CHAIN);
    sandbox
}

#[test]
fn a_plan_of_runs_writes_nothing() {
    let sandbox = chain();
    sandbox
        .aludel(&["plan", "r.yml", "out", "-I", "between", "--threads", "2"])
        .assert()
        .code(0)
        .stderr_eq("")
        .stdout_eq(str![[r#"
result   mixed, in between/mixed
method   linear
model    models/a (30 tensors, 10.7 kB)
model    models/b (30 tensors, 10.7 kB)
output   30 tensors in 1 file(s), 0 side file(s)
passes   1 over 30 tensors
read     15.6 kB in all passes
write    6.8 kB
memory   [..] at the most, 2 threads, tiles of 262144 elements
method   slerp
model    models/a (30 tensors, 10.7 kB)
model    mixed (30 tensors, 6.8 kB)
output   30 tensors in 1 file(s), 0 side file(s)
passes   2 over 30 tensors
read     23.3 kB in all passes
write    6.8 kB
memory   [..] at the most, 2 threads, tiles of 262144 elements

"#]]);
    assert_eq!(sandbox.names("."), ["models", "r.yml"]);
}

#[test]
fn results_in_between_are_model_folders() {
    let sandbox = chain();
    sandbox
        .aludel(&["merge", "r.yml", "out", "--intermediate-dir", "between", "--threads", "2"])
        .assert()
        .code(0)
        .stdout_eq("")
        .stderr_eq(str![[r#"
merging 2 models by linear into between/mixed: 15.6 kB to read, 6.8 kB to write
merged 2 models into between/mixed (6.8 kB) in [..]
merging 2 models by slerp into out: 23.3 kB to read, 6.8 kB to write
merged 2 models into out (6.8 kB) in [..]

"#]]);
    assert_eq!(sandbox.names("between/mixed"), sandbox.names("out"));
    sandbox.aludel(&["merge", "r.yml", "other", "-I", "between"]).assert().code(3).stdout_eq("").stderr_eq(
        str![[r#"
error: between/mixed exists: it is not empty; name another folder or replace this one with `--force`
aludel: 1 problem, nothing was written

"#]],
    );
    let reports = sandbox.json(&["merge", "r.yml", "other", "-I", "between", "--force", "--json"]);
    let outputs: Vec<_> = reports.as_array().unwrap().iter().map(|report| &report["output"]).collect();
    assert_eq!(outputs, ["between/mixed", "other"]);
}

/// What is there of an earlier run is gone on with where it is of the same recipe, and in the way where it is not.
#[test]
fn results_in_between_are_not_made_twice() {
    let sandbox = chain();
    sandbox.aludel(&["merge", "r.yml", "whole", "-I", "whole-between", "-q"]).assert().code(0);
    assert_eq!(sandbox.names("whole-between"), ["mixed"]);
    // A NaN in what only the second merge reads ends the run after its first one.
    let weights = |folder: &str| std::fs::read(sandbox.path(folder).join("model.safetensors")).unwrap();
    let sound = weights("models/a");
    let mut damaged = sound.clone();
    let end = damaged.len();
    damaged[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    sandbox.write("models/c/model.safetensors", damaged);
    std::fs::copy(sandbox.path("models/a/config.json"), sandbox.path("models/c/config.json")).unwrap();
    let chain = CHAIN.replace("base_model: models/a", "base_model: models/c");
    sandbox.write("r.yml", &chain);
    sandbox.aludel(&["merge", "r.yml", "out", "-I", "between", "-q"]).assert().code(1);
    assert_eq!(sandbox.names("between"), [".mixed.finished", "mixed"]);
    sandbox.write("models/c/model.safetensors", sound);
    let other = chain.replace("weight: 0.5}}\ndtype", "weight: 0.6}}\ndtype");
    assert_ne!(other, chain);
    sandbox.write("other.yml", other);
    sandbox.aludel(&["merge", "other.yml", "out", "-I", "between", "--resume"]).assert().code(3).stderr_eq(
        str![[r#"
error: between/mixed exists: it is not empty; name another folder or replace this one with `--force`

"#]],
    );
    sandbox
        .aludel(&["merge", "r.yml", "out", "-I", "between", "--resume", "--threads", "2"])
        .assert()
        .code(0)
        .stderr_eq(str![[r#"
between/mixed is there from an earlier run
merging 2 models by slerp into out: 23.3 kB to read, 6.8 kB to write
merged 2 models into out (6.8 kB) in [..]

"#]]);
    assert_eq!(sandbox.names("between"), ["mixed"]);
    assert!(weights("out") == weights("whole"));
}
