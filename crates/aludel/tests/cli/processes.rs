//! Trainings by several processes, as launchers start them.

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};

use snapbox::str;

use crate::distill::short;
use crate::sandbox::Sandbox;

/// A port that nobody listens at.
pub(crate) fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Makes a command process `rank` of two.
pub(crate) fn place(command: &mut Command, rank: usize, port: u16) {
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string()).env("WORLD_SIZE", "2");
}

/// Process `rank` of two.
fn process(sandbox: &Sandbox, arguments: &[&str], rank: usize, port: u16) -> Command {
    let mut command = sandbox.process(&[&["distill"], arguments].concat());
    place(&mut command, rank, port);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn both(sandbox: &Sandbox, arguments: &[&str]) -> [Child; 2] {
    let port = port();
    [0, 1].map(|rank| process(sandbox, arguments, rank, port).spawn().unwrap())
}

fn outputs(children: [Child; 2]) -> [Output; 2] {
    children.map(|child| child.wait_with_output().unwrap())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs both to their end.
fn succeed(sandbox: &Sandbox, arguments: &[&str]) {
    for output in outputs(both(sandbox, arguments)) {
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
}

/// Losses and gradient norms of steps, and losses of evaluations, in their order.
pub(crate) const COMPARED: [&str; 3] = ["loss", "gradient_norm", "kl"];

/// What a run measured of these names, in its order.
pub(crate) fn measured(sandbox: &Sandbox, names: &[&str]) -> Vec<f64> {
    let text = fs::read_to_string(sandbox.path("out.run/metrics.jsonl")).unwrap();
    let entries = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    entries
        .flat_map(|entry| names.iter().map(|&name| entry[name].as_f64()).collect::<Vec<_>>())
        .flatten()
        .collect()
}

#[track_caller]
fn assert_near(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() <= 1e-4 * want.abs(), "{got} for {want}");
    }
}

/// A run of twelve steps of two micro-batches each.
fn shared(train: &str) -> Sandbox {
    short(&format!(", micro_batch: 1{train}"))
}

#[test]
fn two_processes_take_the_steps_of_one() {
    let alone = shared("");
    alone.aludel(&["distill", "run.yml", "-q"]).assert().code(0);
    let together = shared("");
    let [first, other] = outputs(both(&together, &["run.yml"]));
    assert!(
        first.status.success() && other.status.success(),
        "{}{}",
        text(&first.stderr),
        text(&other.stderr)
    );
    assert!(text(&first.stderr).contains("trained 12 steps into out"), "{}", text(&first.stderr));
    assert_eq!((text(&other.stdout), text(&other.stderr)), (String::new(), String::new()));
    let want = measured(&alone, &COMPARED);
    assert_eq!(want.len(), 2 * 12 + 2 * 4, "{want:?}");
    assert_near(&measured(&together, &COMPARED), &want);
    assert_eq!(together.names("out"), alone.names("out"));
    let run = fs::read_to_string(together.path("out.run/run.json")).unwrap();
    assert!(run.contains("processes"), "{run}");
}

#[test]
fn a_run_of_two_processes_goes_on_with_one_and_one_of_one_with_two() {
    let whole = shared("");
    whole.aludel(&["distill", "run.yml", "-q"]).assert().code(0);
    // Six steps, then six more by another number of processes.
    let halves = |begin: &dyn Fn(&Sandbox), end: &dyn Fn(&Sandbox)| {
        let sandbox = shared(", save_every: 6");
        begin(&sandbox);
        let checkpoints = sandbox.path("out.run/checkpoints");
        fs::remove_dir_all(checkpoints.join("step-00000012")).unwrap();
        fs::remove_dir_all(sandbox.path("out")).unwrap();
        end(&sandbox);
        assert_near(&measured(&sandbox, &COMPARED), &measured(&whole, &COMPARED));
    };
    let one = |sandbox: &Sandbox| {
        sandbox.aludel(&["distill", "run.yml", "--resume", "-q"]).assert().code(0);
    };
    let two = |sandbox: &Sandbox| succeed(sandbox, &["run.yml", "--resume", "-q"]);
    halves(&two, &one);
    halves(&one, &two);
}

/// The student that a sandbox's run has written.
fn student(sandbox: &Sandbox) -> Vec<u8> {
    fs::read(sandbox.path("out/model.safetensors")).unwrap()
}

/// Everything that the checkpoint of a step holds.
fn checkpoint(sandbox: &Sandbox, step: u64) -> Vec<u8> {
    fs::read(sandbox.path(&format!("out.run/checkpoints/step-{step:08}/model.safetensors"))).unwrap()
}

#[test]
fn who_holds_the_optimizers_state_changes_no_bit_of_student_or_checkpoint() {
    for types in ["", ", weights: bfloat16, moments: int8", ", weights: bfloat16"] {
        let settings = format!(", save_every: 12{types}");
        let [each, shared] = ["", ", zero: 1"].map(|zero| {
            let sandbox = shared(&format!("{settings}{zero}"));
            succeed(&sandbox, &["run.yml", "-q"]);
            sandbox
        });
        assert!(student(&each) == student(&shared), "{types}: the student differs");
        assert!(checkpoint(&each, 12) == checkpoint(&shared, 12), "{types}: the checkpoint differs");
        assert_eq!(measured(&each, &COMPARED), measured(&shared, &COMPARED));
    }
}

#[test]
fn a_checkpoint_goes_on_with_and_without_shares_to_the_same_bits() {
    let settings = ", save_every: 6, weights: bfloat16, moments: int8";
    let whole = shared(settings);
    succeed(&whole, &["run.yml", "-q"]);
    for (first, second) in [("", ", zero: 1"), (", zero: 1", ""), (", zero: 1", ", zero: 1")] {
        let sandbox = shared(&format!("{settings}{first}"));
        succeed(&sandbox, &["run.yml", "-q"]);
        fs::remove_dir_all(sandbox.path("out.run/checkpoints/step-00000012")).unwrap();
        fs::remove_dir_all(sandbox.path("out")).unwrap();
        let run = fs::read_to_string(sandbox.path("run.yml")).unwrap();
        let [before, now] = [first, second].map(|zero| format!("{settings}{zero}"));
        sandbox.write("run.yml", run.replace(&before, &now));
        succeed(&sandbox, &["run.yml", "--resume", "-q"]);
        assert!(student(&sandbox) == student(&whole), "{first:?} and then {second:?}");
    }
    // One process takes up what two have shared, and holds all of it.
    let sandbox = shared(&format!("{settings}, zero: 1"));
    succeed(&sandbox, &["run.yml", "-q"]);
    fs::remove_dir_all(sandbox.path("out.run/checkpoints/step-00000012")).unwrap();
    fs::remove_dir_all(sandbox.path("out")).unwrap();
    sandbox.aludel(&["distill", "run.yml", "--resume", "-q"]).assert().code(0);
    assert_near(&measured(&sandbox, &COMPARED), &measured(&whole, &COMPARED));
}

#[test]
fn the_weights_of_the_best_evaluation_come_from_a_checkpoint_of_shares() {
    let settings = ", early_stopping: {patience: 1, minimum_improvement: 10}, weights: bfloat16";
    let [each, shared] = ["", ", zero: 1"].map(|zero| {
        let sandbox = shared(&format!("{settings}{zero}"));
        succeed(&sandbox, &["run.yml", "-q"]);
        sandbox
    });
    assert!(student(&each) == student(&shared));
}

#[test]
fn a_dry_run_of_several_processes_says_once_what_one_of_them_takes() {
    let moments = |train: &str| {
        let sandbox = shared(train);
        let port = port();
        let children = [0, 1]
            .map(|rank| process(&sandbox, &["run.yml", "--dry-run", "--json"], rank, port).spawn().unwrap());
        let [first, other] = outputs(children);
        assert_eq!((text(&other.stdout), text(&other.stderr)), (String::new(), String::new()));
        let forecast: serde_json::Value = serde_json::from_slice(&first.stdout).unwrap();
        forecast["memory"]["moments"].as_u64().unwrap()
    };
    let (each, share) = (moments(""), moments(", zero: 1"));
    assert_eq!(each, 8 * 125_248);
    assert!(share >= each / 2 && share < each * 6 / 10, "{share} of {each}");
}

#[test]
fn processes_of_different_runs_do_not_train_together() {
    let sandbox = shared("");
    let run = fs::read_to_string(sandbox.path("run.yml")).unwrap();
    sandbox.write("other.yml", run.replace("3e-3", "2e-3"));
    let port = port();
    let children = [("run.yml", 0), ("other.yml", 1)]
        .map(|(run, rank)| process(&sandbox, &[run, "-q"], rank, port).spawn().unwrap());
    let [first, other] = outputs(children);
    snapbox::assert_data_eq!(
        text(&first.stderr),
        str![[r#"
error: training with several processes: process 1 cannot take part: it is of another run, or of another number of processes

"#]]
    );
    snapbox::assert_data_eq!(
        text(&other.stderr),
        str![[r#"
error: training with several processes: the first process refuses this one: it is of another run, or of another number of processes

"#]]
    );
    assert!(!sandbox.path("out").exists());
}

#[test]
fn more_processes_than_micro_batches_are_refused_before_anything_is_loaded() {
    let sandbox = short(", micro_batch: 2");
    for output in outputs(both(&sandbox, &["run.yml", "-q"])) {
        snapbox::assert_data_eq!(
            text(&output.stderr),
            str![[r#"
error: a step has 1 micro-batch, and 2 processes share them
  hint: raise `batch_size`, lower `micro_batch`, or start fewer processes
aludel: 1 problem, nothing was written

"#]]
        );
        assert_eq!(output.status.code(), Some(3));
    }
}

#[test]
fn a_process_that_is_killed_ends_the_run_with_a_checkpoint() {
    let sandbox = shared("");
    let [first, mut other] = both(&sandbox, &["run.yml", "-q"]);
    let lines =
        || fs::read_to_string(sandbox.path("out.run/metrics.jsonl")).map_or(0, |text| text.lines().count());
    while lines() < 4 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    other.kill().unwrap();
    other.wait().unwrap();
    let output = first.wait_with_output().unwrap();
    let talk = text(&output.stderr);
    assert!(!output.status.success());
    assert!(talk.contains("error: training with several processes: process 1 has gone"), "{talk}");
    assert!(!sandbox.path("out").exists());
    assert_eq!(sandbox.names("out.run/checkpoints").len(), 1);
    succeed(&sandbox, &["run.yml", "--resume", "-q"]);
    let whole = shared("");
    whole.aludel(&["distill", "run.yml", "-q"]).assert().code(0);
    assert_near(&measured(&sandbox, &COMPARED), &measured(&whole, &COMPARED));
}
