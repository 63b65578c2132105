//! Merges in parts, each by a process of its own, and the folder that is made of them.

use snapbox::str;

use crate::sandbox::Sandbox;

const TIES: &str = "\
merge_method: dare_ties
base_model: models/base
models:
  - {model: models/a, parameters: {weight: 0.5, density: 0.5}}
  - {model: models/b, parameters: {weight: 0.5, density: 0.5}}
dtype: bfloat16
";

fn models() -> Sandbox {
    let sandbox = Sandbox::new(&["base", "a", "b"]);
    sandbox.write("r.yml", TIES);
    sandbox
}

fn part(sandbox: &Sandbox, part: &str) {
    sandbox.aludel(&["merge", "r.yml", "out", "--shard-size", "1000", "-q", "--part", part]).assert().code(0);
}

fn join(sandbox: &Sandbox) -> snapbox::cmd::Command {
    sandbox.aludel(&["join", "out", "--threads", "2"])
}

#[test]
fn the_parts_of_an_output_join_to_the_output() {
    let sandbox = models();
    sandbox.aludel(&["merge", "r.yml", "whole", "--shard-size", "1000", "-q"]).assert().code(0);
    for number in [3, 1, 2] {
        join(&sandbox).assert().code(3);
        part(&sandbox, &format!("{number}/3"));
    }
    assert_eq!(sandbox.names("out.parts"), ["1-of-3", "2-of-3", "3-of-3"]);
    join(&sandbox).assert().code(0).stdout_eq("").stderr_eq(str![[r#"
joined 3 parts into out: 5 file(s), 7.1 kB, in [..]

"#]]);
    assert_eq!(sandbox.contents("out"), sandbox.contents("whole"));
    assert_eq!(sandbox.names("."), ["models", "out", "r.yml", "whole"]);
}

/// Weights and their scales are in one file, so that whoever writes one writes both.
#[test]
fn the_parts_of_an_output_in_fp8_join_to_the_output() {
    let sandbox = models();
    let fp8 = ["--shard-size", "100", "-q", "--output", "fp8"];
    let merge = |target: &str, more: &[&str]| {
        sandbox.aludel(&[&["merge", "r.yml", target], &fp8[..], more].concat()).assert().code(0);
    };
    merge("whole", &[]);
    for number in 1..=5 {
        merge("out", &["--part", &format!("{number}/5")]);
    }
    sandbox.aludel(&["join", "out", "-q"]).assert().code(0);
    assert_eq!(sandbox.contents("out"), sandbox.contents("whole"));
    let refused = ["merge", "r.yml", "delta", "--output", "sparse-delta", "--part", "1/2"];
    sandbox.aludel(&refused).assert().code(3).stderr_eq(str![[r#"
error: a sparse delta is written in one piece
  hint: leave `--part` or `--output sparse-delta` out
aludel: 1 problem, nothing was written

"#]]);
}

#[test]
fn parts_that_are_missing_or_of_another_merge_are_told() {
    let sandbox = models();
    join(&sandbox).assert().code(3).stderr_eq(str![[r#"
error: out.parts has no part of an output
  hint: write parts first: `aludel merge RECIPE OUT --part 1/4`, and so on
aludel: 1 problem, nothing was written

"#]]);
    part(&sandbox, "2/4");
    join(&sandbox).assert().code(3).stderr_eq(str![[r#"
error: 3 of 4 parts are missing: 1, 3, 4
  hint: write them, or wait for those that write them
aludel: 1 problem, nothing was written

"#]]);
    part(&sandbox, "1/2");
    join(&sandbox).assert().code(3).stderr_eq(str![[r#"
error: out.parts/1-of-2 and out.parts/2-of-4 are not parts of one output: another recipe, other models or settings, or another number of parts
  hint: write the one anew that is of an earlier merge, with --force
aludel: 1 problem, nothing was written

"#]]);
    sandbox
        .aludel(&["merge", "r.yml", "out", "--shard-size", "4000", "--part", "1/9"])
        .assert()
        .code(3)
        .stderr_eq(str![[r#"
error: the output has 1 file(s), too few for 9 parts
  hint: have smaller files: `--shard-size 379`, say
aludel: 1 problem, nothing was written

"#]]);
}

#[test]
fn a_file_of_a_part_that_is_not_as_it_was_written_is_named_and_nothing_is_lost() {
    let sandbox = models();
    part(&sandbox, "1/2");
    part(&sandbox, "2/2");
    let name =
        sandbox.names("out.parts/2-of-2").into_iter().find(|name| name.ends_with(".safetensors")).unwrap();
    let path = sandbox.path("out.parts/2-of-2").join(&name);
    let whole = std::fs::read(&path).unwrap();
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&path, damaged).unwrap();
    join(&sandbox).assert().code(1).stderr_eq(str![[r#"
error: out.parts/2-of-2/model-00003-of-00005.safetensors is damaged: it is not what was written; write its part anew, with --force

"#]]);
    assert_eq!(sandbox.names("."), ["models", "out.parts", "r.yml"]);
    std::fs::write(&path, whole).unwrap();
    join(&sandbox).assert().code(0);
    assert_eq!(sandbox.names("."), ["models", "out", "r.yml"]);
    sandbox.aludel(&["merge", "r.yml", "out", "--part", "1/2"]).assert().code(3).stderr_eq(str![[r#"
error: out exists: it is not empty; name another folder or replace this one with `--force`

"#]]);
}
