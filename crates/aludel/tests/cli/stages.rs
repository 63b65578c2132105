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
    sandbox
        .aludel(&["merge", "r.yml", "x", "-I", "between", "--resume"])
        .assert()
        .code(3)
        .stdout_eq("")
        .stderr_eq(str![[r#"
error: --resume goes on with one merge, and --intermediate-dir makes several
  hint: give the folders of the results that are there already as models, and leave out their recipes
aludel: 1 problem, nothing was written

"#]]);
    let reports = sandbox.json(&["merge", "r.yml", "other", "-I", "between", "--force", "--json"]);
    let outputs: Vec<_> = reports.as_array().unwrap().iter().map(|report| &report["output"]).collect();
    assert_eq!(outputs, ["between/mixed", "other"]);
}
