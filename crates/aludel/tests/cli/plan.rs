//! Plans: for people, for programs, and as what a merge then does.

use snapbox::str;

use crate::sandbox::Sandbox;
use crate::weights::read_header;

const SLERP: &str = "\
merge_method: slerp
base_model: models/a
models:
  - model: models/a
  - model: models/b
parameters:
  t: 0.25
dtype: bfloat16
";

fn slerp() -> Sandbox {
    let sandbox = Sandbox::new(&["a", "b"]);
    sandbox.write("r.yml", SLERP);
    sandbox
}

#[test]
fn a_plan_is_data_and_writes_nothing() {
    let sandbox = slerp();
    sandbox.aludel(&["plan", "r.yml", "out", "--threads", "2"]).assert().code(0).stderr_eq("").stdout_eq(
        str![[r#"
method   slerp
model    models/a (30 tensors, 10.7 kB)
model    models/b (30 tensors, 10.7 kB)
output   30 tensors in 1 file(s), 0 side file(s)
passes   2 over 30 tensors
read     31.1 kB in all passes
write    6.8 kB
memory   [..] at the most, 2 threads, tiles of 262144 elements

"#]],
    );
    assert_eq!(sandbox.names("."), ["models", "r.yml"]);
}

#[test]
fn a_verbose_plan_has_the_formula_of_every_tensor() {
    let output = slerp().process(&["plan", "r.yml", "-v"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for tensor in ["model.embed_tokens.weight [16, 8] BF16: ", "model.norm.weight [8] BF16: "] {
        assert!(text.contains(tensor), "{text}");
    }
    assert_eq!(text.matches("\n      out = ").count(), 30);
}

#[test]
fn the_merge_writes_exactly_the_tensors_of_the_plan() {
    let sandbox = slerp();
    let plan = sandbox.json(&["plan", "r.yml", "--json"]);
    let planned: Vec<(String, String, Vec<u64>)> = plan["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| {
            let shape = step["shape"].as_array().unwrap().iter().map(|side| side.as_u64().unwrap()).collect();
            (step["tensor"].as_str().unwrap().to_owned(), step["dtype"].as_str().unwrap().to_owned(), shape)
        })
        .collect();
    sandbox.aludel(&["merge", "r.yml", "out", "-q"]).assert().code(0);
    assert_eq!(planned.len(), 30);
    assert_eq!(read_header(&sandbox.path("out/model.safetensors")), planned);
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let sandbox = slerp();
    for arguments in [["plan", "r.yml", "-v"], ["plan", "r.yml", "--json"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = sandbox.process(&arguments).stdout(writer).output().unwrap();
        assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
    }
}

#[test]
fn too_little_memory_is_a_problem_with_a_remedy() {
    let sandbox = slerp();
    let plan = sandbox.aludel(&["plan", "r.yml", "--memory", "1kB"]);
    plan.assert().code(3).stdout_eq("").stderr_eq(str![[r#"
error: the merge needs 1 MiB of memory, and may take 0 MiB
  hint: give it `--memory 1MiB` or more
aludel: 1 problem, nothing was written

"#]]);
}
