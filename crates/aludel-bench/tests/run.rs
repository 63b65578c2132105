//! Runs the whole tool on tiny models, with a script in place of both merge tools.

#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that does not work")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake-merge.sh");

/// A repository with one definition, and a README that asks for its table.
struct Repository(TempDir);

impl Repository {
    fn new() -> Self {
        let repository = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(repository.path("benches/definitions")).unwrap();
        let definition = format!(
            "title = 'Two copies'\nruns = 3\ncommand = 'sh {SCRIPT} ours {{recipe}} {{out}}'\n\
             floor = ['cat {{inputs}}', 'cp {{first}} {{copy}}']\n\
             [reference]\nname = 'copier 1'\ncommand = 'sh {SCRIPT} theirs {{recipe}} {{out}}'\nruns = 2\n\
             [[cases]]\nname = 'copy'\nmodel = 'llama-tiny'\ninputs = ['a', 'b']\ndigests = 'warm'\nrecipe = 'copy'\n\
             agreement = {{ max_abs = 0.0, differing = 0.0, change = 0.0 }}\nbars = {{ cpu = 0.0001, plan_within = 0.15 }}\n"
        );
        fs::write(repository.path("benches/definitions/copies.toml"), definition).unwrap();
        fs::write(repository.path("README.md"), "<!-- bench:copies -->\n<!-- /bench -->\n").unwrap();
        repository
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.0.path().join(path)
    }

    fn bench(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aludel-bench"));
        command.current_dir(self.0.path()).args(arguments).envs(environment.iter().copied()).output().unwrap()
    }

    fn run(&self, environment: &[(&str, &str)]) -> Output {
        self.bench(&["run", "copies", "--work", "work", "--aludel", SCRIPT, "--reference"], environment)
    }

    fn record(&self) -> (String, Value) {
        let entry = self.path("benches/record").read_dir().unwrap().next().unwrap().unwrap();
        let text = fs::read_to_string(entry.path()).unwrap();
        (text.clone(), serde_json::from_str(&text).unwrap())
    }
}

fn messages(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn weights(folder: &Path, role: &str) -> Vec<u8> {
    fs::read(folder.join(role).join("model.safetensors")).unwrap()
}

#[test]
fn the_same_models_are_made_each_time_and_only_once() {
    let repository = Repository::new();
    for folder in ["one", "two"] {
        assert!(repository.bench(&["make", "llama-tiny", folder], &[]).status.success());
    }
    for role in ["base", "a", "b", "c"] {
        assert_eq!(weights(&repository.path("one"), role), weights(&repository.path("two"), role));
    }
    let again = repository.bench(&["make", "llama-tiny", "one"], &[]);
    assert_eq!(messages(&again), "", "models that are there are left alone");
    let other = repository.bench(&["make", "llama-tiny", "one", "--seed", "2"], &[]);
    assert!(messages(&other).contains("making llama-tiny"), "another seed gives other models");
    assert_ne!(weights(&repository.path("one"), "a"), weights(&repository.path("two"), "a"));
}

#[test]
fn tools_take_turns_and_each_run_is_recorded() {
    let repository = Repository::new();
    let output = repository.run(&[]);
    assert!(output.status.success(), "{}", messages(&output));
    let order = fs::read_to_string(repository.path("work/llama-tiny/order.txt")).unwrap();
    let expected =
        ["ours", "ours", "theirs", "ours", "theirs", "ours"].map(|who| format!("{who} copy\n")).concat();
    assert_eq!(
        order, expected,
        "one run that is not counted, then three rounds of which two have a reference"
    );
    let (text, record) = repository.record();
    let case = &record["cases"][0];
    let runs = ["ours", "reference", "floor"].map(|who| case[who].as_array().unwrap().len());
    assert_eq!(runs, [3, 2, 3]);
    assert_eq!((&case["tensors"], &case["distance"]["differing"]), (&21.into(), &0.0.into()));
    assert_eq!(case["ours"][0]["planned_peak_bytes"], 123_000_000);
    assert!(case["ours"][0]["wall"].as_f64().unwrap() > 0.0);
    assert_eq!(record["reference"], "copier 1");
    for path in [repository.0.path().to_str().unwrap(), env!("CARGO_MANIFEST_DIR")] {
        assert!(!text.contains(path), "a record names no path of its machine");
    }
    for left in ["out", "out-reference", "copy.safetensors"] {
        assert!(!repository.path("work/llama-tiny").join(left).exists(), "{left}");
    }
}

#[test]
fn a_record_is_rendered_and_a_stale_document_is_found() {
    let repository = Repository::new();
    let render = |arguments: &[&str]| repository.bench(&[&["render"], arguments].concat(), &[]);
    assert!(!render(&["--check"]).status.success(), "the block still lacks its note");
    assert!(render(&[]).status.success());
    assert!(fs::read_to_string(repository.path("README.md")).unwrap().contains("Not measured yet."));
    assert!(repository.run(&[]).status.success());
    let stale = render(&["--check"]);
    assert!(!stale.status.success() && messages(&stale).contains("README.md"), "{}", messages(&stale));
    assert!(render(&[]).status.success() && render(&["--check"]).status.success());
    let readme = fs::read_to_string(repository.path("README.md")).unwrap();
    assert!(readme.contains("| copy |") && readme.contains("Two copies. "), "{readme}");
    assert!(readme.contains("--reference 'sh fake-merge.sh theirs {recipe} {out}'"), "{readme}");
}

/// A time is believed only for a right answer.
#[test]
fn a_wrong_answer_ends_the_run_without_a_record() {
    for (environment, complaint) in [
        (("THEIRS", "b"), "do not agree"),
        (("VARY", "4"), "different weights"),
        (("HASHING", "2"), "7 bytes of inputs were hashed"),
        (("OURS", "missing"), "failed"),
    ] {
        let repository = Repository::new();
        let output = repository.run(&[environment]);
        assert!(!output.status.success() && messages(&output).contains(complaint), "{}", messages(&output));
        assert!(!repository.path("benches/record").exists());
    }
}

const CAPTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake-capture.sh");

#[test]
fn captures_take_turns_with_passes_alone_and_are_held_against_the_teacher() {
    let repository = Repository::new();
    let definition = "title = 'Caches'\nruns = 2\ncommand = '{aludel} cache capture {recipe} {out}'\n\
        floor = ['{aludel} cache capture {recipe} {copy} --dry-run {options}']\nverify = '{aludel} cache verify {out}'\n\
        [[cases]]\nname = 'few'\njob = 'capture'\nmodel = 'smol'\ninputs = ['base']\ndigests = 'warm'\n\
        options = '--k 4'\nrecipe = 'run'\nbars = { pass = 1.1, bytes_a_token = 40 }\n";
    fs::write(repository.path("benches/definitions/copies.toml"), definition).unwrap();
    let run = |environment: &[(&str, &str)]| {
        repository.bench(&["run", "copies", "--work", "work", "--aludel", CAPTURE], environment)
    };
    let output = run(&[]);
    assert!(messages(&output).contains("no `smol/base`"), "{}", messages(&output));
    assert!(repository.bench(&["make", "llama-tiny", "work/smol"], &[]).status.success());
    let output = run(&[]);
    assert!(output.status.success(), "{}", messages(&output));
    let order = fs::read_to_string(repository.path("work/smol/order.txt")).unwrap();
    let (capture, dry) = ("cache capture few.yml out --k 4\n", "--dry-run --k 4\n");
    let dry = format!("cache capture few.yml copy.safetensors {dry}");
    assert_eq!(order, [capture, capture, &dry, capture, &dry].concat());
    let (_, record) = repository.record();
    let case = &record["cases"][0];
    assert_eq!((&case["summary"]["pass"]["median"], &case["cache"]["bytes"]), (&1.5.into(), &4500.into()));
    assert_eq!(case["cache"]["nearness"]["stored"]["kl"], 0.5);
    assert!(repository.bench(&["render"], &[]).status.success());
    let readme = fs::read_to_string(repository.path("README.md")).unwrap();
    assert!(
        readme.contains("| 1.50 (1.50 to 1.50); at most 1.1: **missed** | 45.0; at most 40: **missed** |"),
        "{readme}"
    );
    fs::remove_file(repository.path("work/smol/order.txt")).unwrap();
    let output = run(&[("VARY", "4")]);
    assert!(messages(&output).contains("different caches"), "{}", messages(&output));
}
