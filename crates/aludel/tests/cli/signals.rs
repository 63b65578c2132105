//! Interrupted runs: the exit code that shells expect, and what they leave behind.

use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::sandbox::Sandbox;
use crate::weights::write_sparse_model;

const LINEAR: &str = "\
merge_method: linear
models:
  - {model: models/a, parameters: {weight: 1}}
  - {model: models/b, parameters: {weight: 1}}
";

/// A recipe over two models that take no room on disk and seconds to merge and to hash.
pub(crate) fn large(files: usize, elements: u64) -> Sandbox {
    let sandbox = Sandbox::new(&[]);
    write_sparse_model(&sandbox, "models/a", files, elements);
    write_sparse_model(&sandbox, "models/b", files, elements);
    sandbox.write("r.yml", LINEAR);
    sandbox
}

/// Starts a merge and waits until its staging folder is there.
fn start(sandbox: &Sandbox) -> Child {
    let mut command = sandbox.process(&["merge", "r.yml", "out", "--json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while !sandbox.names(".").iter().any(|name| name.starts_with(".out.partial-")) {
        assert_eq!(child.try_wait().unwrap(), None, "the merge ended before it could be interrupted");
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

pub(crate) fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn the_first_signal_ends_the_run_and_keeps_what_is_done() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let sandbox = large(8, 256 << 20);
        let child = start(&sandbox);
        send(&child, signal);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code));
        let talk = String::from_utf8(output.stderr).unwrap();
        let kept = sandbox.names(".").into_iter().find(|name| name.starts_with(".out.partial-"));
        match &kept {
            Some(kept) => assert!(
                talk.ends_with(&format!(
                    "error: interrupted, what was done is kept in {}: `--resume` goes on with it\n",
                    sandbox.path(kept).canonicalize().unwrap().display()
                )),
                "{talk}"
            ),
            None => assert!(talk.ends_with("error: interrupted, nothing was written\n"), "{talk}"),
        }
        let failure: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(failure["error"]["exit_code"], code);
        let rest: Vec<_> =
            sandbox.names(".").into_iter().filter(|name| Some(name) != kept.as_ref()).collect();
        assert_eq!(rest, ["models", "r.yml"]);
    }
}

/// The first signal may still be unheeded, in the middle of a large file's hash, when the second comes. Whichever ends the
/// run, the next run on the target finds nothing that hinders it and leaves nothing but its output.
#[test]
fn a_second_signal_ends_the_run_at_once() {
    let sandbox = large(1, 4 << 30);
    let mut child = start(&sandbox);
    send(&child, Signal::INT);
    std::thread::sleep(Duration::from_millis(20));
    if child.try_wait().unwrap().is_none() {
        send(&child, Signal::INT);
    }
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!sandbox.path("out").exists());
    for model in ["models/a", "models/b"] {
        std::fs::remove_dir_all(sandbox.path(model)).unwrap();
        write_sparse_model(&sandbox, model, 1, 1024);
    }
    sandbox.aludel(&["merge", "r.yml", "out", "-q"]).assert().code(0);
    assert_eq!(sandbox.names("."), ["models", "out", "r.yml"]);
}
