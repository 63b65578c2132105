//! Merges that succeed, and what is left when one fails.

use std::fs;

use snapbox::str;

use crate::sandbox::Sandbox;
use crate::weights::{read_values, write_model};

const LINEAR: &str = "\
merge_method: linear
models:
  - {model: models/a, parameters: {weight: 1}}
  - {model: models/b, parameters: {weight: 3}}
";

fn linear() -> Sandbox {
    let sandbox = Sandbox::new(&["a", "b"]);
    sandbox.write("r.yml", LINEAR);
    sandbox
}

#[test]
fn a_merge_leaves_a_whole_model_folder_and_says_so_on_standard_error() {
    let sandbox = linear();
    let merge = sandbox.aludel(&["merge", "r.yml", "out"]);
    merge.assert().code(0).stdout_eq("").stderr_eq(str![[r#"
merging 2 models by linear into out: 15.6 kB to read, 10.7 kB to write
merged 2 models into out (10.7 kB) in [..]: [..]/s read, [..]/s written, peak memory [..]

"#]]);
    assert_eq!(sandbox.names("."), ["models", "out", "r.yml"]);
    assert_eq!(sandbox.names("out"), ["README.md", "config.json", "model.safetensors", "recipe.yml"]);
    assert_eq!(fs::read_to_string(sandbox.path("out/recipe.yml")).unwrap(), LINEAR);
}

#[test]
fn the_output_agrees_with_the_golden() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/cases/ties-three-models");
    let sandbox = Sandbox::new(&["base", "a", "b", "c"]);
    sandbox.write("r.yml", fs::read(format!("{golden}/recipe.yml")).unwrap());
    sandbox.aludel(&["merge", "r.yml", "out", "-q"]).assert().code(0).stdout_eq("").stderr_eq("");
    let written = read_values(&sandbox.path("out/model.safetensors"));
    let expected = read_values(format!("{golden}/expected.safetensors").as_ref());
    assert!(written.keys().eq(expected.keys()));
    for (name, values) in &written {
        let expected = &expected[name];
        let square = expected.iter().map(|value| value * value).sum::<f32>() / expected.len() as f32;
        let close = |(got, want): (&f32, &f32)| (got - want).abs() <= 1e-6 * want.abs().max(square.sqrt());
        assert!(values.iter().zip(expected).all(close), "{name}: {values:?} is not {expected:?}");
    }
}

#[test]
fn json_is_the_report_and_nothing_else_on_standard_output() {
    let report = linear().json(&["merge", "r.yml", "out", "--json", "--threads", "1", "-q"]);
    assert_eq!(report["output"], "out");
    assert_eq!(report["method"], "linear");
    assert_eq!(report["threads"], 1);
    assert_eq!(report["tensors"], 30);
    assert!(report["phases"]["weights"].is_f64());
}

#[test]
fn a_recipe_may_come_from_standard_input() {
    let sandbox = linear();
    sandbox.aludel(&["merge", "-", "out", "-q"]).stdin(LINEAR).assert().code(0).stdout_eq("").stderr_eq("");
    assert_eq!(fs::read_to_string(sandbox.path("out/recipe.yml")).unwrap(), LINEAR);
}

#[test]
fn shards_are_as_large_as_asked_for() {
    let sandbox = linear();
    sandbox.aludel(&["merge", "r.yml", "out", "-q", "--out-shard-size", "4kB"]).assert().code(0);
    let weights: Vec<String> =
        sandbox.names("out").into_iter().filter(|name| name.starts_with("model")).collect();
    let expected = [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ];
    assert_eq!(weights, expected);
}

#[test]
fn what_exists_stays_unless_forced() {
    let sandbox = linear();
    sandbox.write("out/mine.txt", "keep me");
    let merge = sandbox.aludel(&["merge", "r.yml", "out"]);
    merge.assert().code(3).stdout_eq("").stderr_eq(str![[r#"
error: out exists: it is not empty; name another folder or replace this one with `--force`
aludel: 1 problem, nothing was written

"#]]);
    assert_eq!(sandbox.contents("out"), [("mine.txt".to_owned(), b"keep me".to_vec())]);
    sandbox.aludel(&["merge", "r.yml", "out", "--force", "-q"]).assert().code(0);
    assert!(!sandbox.names("out").contains(&"mine.txt".to_owned()));
    assert_eq!(sandbox.names("."), ["models", "out", "r.yml"]);
}

#[test]
fn a_file_in_the_output_s_place_is_never_replaced() {
    let sandbox = linear();
    sandbox.write("out", "a file");
    sandbox.aludel(&["merge", "r.yml", "out", "--force"]).assert().code(3);
    assert_eq!(fs::read_to_string(sandbox.path("out")).unwrap(), "a file");
}

/// Two models of which the second has a NaN in its second tensor.
fn with_nan() -> Sandbox {
    let sandbox = Sandbox::new(&[]);
    let tensors: &[(&str, &str, &[u64])] = &[("first", "F32", &[2]), ("second", "F32", &[3])];
    let data = |values: [f32; 5]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    write_model(&sandbox, "models/a", tensors, &data([1.0; 5]));
    write_model(&sandbox, "models/b", tensors, &data([1.0, 1.0, 1.0, f32::NAN, 1.0]));
    sandbox.write("r.yml", LINEAR);
    sandbox
}

#[test]
fn a_nan_is_refused_by_name_and_leaves_nothing() {
    let sandbox = with_nan();
    let merge = sandbox.aludel(&["merge", "r.yml", "out"]);
    merge.assert().code(1).stdout_eq("").stderr_eq(str![[r#"
merging 2 models by linear into out: 40 B to read, 212 B to write
error: tensor `second` of `models/b` has NaN at flat index 1: repair the model, or pass --allow-nan to compute with it

"#]]);
    assert_eq!(sandbox.names("."), ["models", "r.yml"]);
}

#[test]
fn a_nan_is_computed_with_when_allowed() {
    let sandbox = with_nan();
    sandbox.aludel(&["merge", "r.yml", "out", "-q", "--allow-nan"]).assert().code(0);
    let bytes = fs::read(sandbox.path("out/model.safetensors")).unwrap();
    let values: Vec<f32> = bytes[bytes.len() - 20..]
        .chunks_exact(4)
        .map(|four| f32::from_le_bytes(four.try_into().unwrap()))
        .collect();
    assert_eq!(
        values.iter().map(|value| value.is_nan()).collect::<Vec<_>>(),
        [false, false, false, true, false]
    );
}

#[test]
fn a_failure_is_json_too() {
    let sandbox = with_nan();
    let failure = sandbox.json(&["merge", "r.yml", "out", "--json"]);
    assert_eq!(failure["error"]["exit_code"], 1);
    let message = failure["error"]["message"].as_str().unwrap();
    assert!(message.contains("tensor `second` of `models/b` has NaN at flat index 1"), "{message}");
}

#[test]
fn a_name_from_a_file_cannot_steer_the_terminal() {
    let sandbox = Sandbox::new(&[]);
    let tensors: &[(&str, &str, &[u64])] = &[("\u{1b}[2Jx\nerror: y", "F32", &[1])];
    for model in ["models/a", "models/b"] {
        write_model(&sandbox, model, tensors, &f32::NAN.to_le_bytes());
    }
    sandbox.write("r.yml", LINEAR);
    let output = sandbox.process(&["merge", "r.yml", "out", "-q"]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains(r"\u{1b}[2Jx\nerror: y"), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
}

#[test]
fn messages_are_coloured_when_asked_for() {
    let sandbox = with_nan();
    let text = |color: &str| {
        let output = sandbox.process(&["merge", "r.yml", "out", "-q", "--color", color]).output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(
        text("always").starts_with("\u{1b}[1m\u{1b}[31merror:\u{1b}[0m tensor `second`"),
        "{}",
        text("always")
    );
    assert!(text("never").starts_with("error: tensor `second`"), "{}", text("never"));
    assert_eq!(text("auto"), text("never"));
}
