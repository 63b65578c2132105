//! What a person sees: the bar on a terminal.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::sandbox::Sandbox;
use crate::signals::{large, send};

/// What a terminal shows of a command that is interrupted once it shows `sign`, and its exit code.
fn watch(sandbox: &Sandbox, arguments: &[&str], sign: &str) -> (String, Option<i32>) {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let far_end = OpenOptions::new()
        .read(true)
        .write(true)
        .open(Path::new(std::ffi::OsStr::from_bytes(name.as_bytes())))
        .unwrap();
    let mut command = sandbox.process(arguments);
    let mut child = command.env("TERM", "xterm").stderr(far_end).spawn().unwrap();
    drop(command); // It holds the far end, and reading ends when nobody does.
    let mut screen = std::fs::File::from(terminal);
    let mut text = Vec::new();
    let mut interrupted = false;
    let mut piece = [0; 4096];
    // The far end's closing is an error on Linux and an end of file elsewhere.
    while let Ok(length @ 1..) = screen.read(&mut piece) {
        text.extend_from_slice(&piece[..length]);
        if !interrupted && text.windows(sign.len()).any(|window| window == sign.as_bytes()) {
            send(&child, Signal::INT);
            interrupted = true;
        }
    }
    (String::from_utf8(text).unwrap(), child.wait().unwrap().code())
}

/// Checks that the first bar of this label with the time left has these parts.
fn check_bar(text: &str, label: &str, parts: &[&str]) {
    let bar = text.split('\r').find(|line| line.contains(label) && line.contains("left")).unwrap();
    let missing: Vec<&&str> = parts.iter().filter(|part| !bar.contains(**part)).collect();
    assert!(missing.is_empty(), "{missing:?} not in {bar}");
}

#[test]
fn a_terminal_shows_a_bar_with_bytes_rate_and_time_left() {
    let sandbox = large(8, 256 << 20);
    let (text, code) = watch(&sandbox, &["merge", "r.yml", "out"], "left");
    assert_eq!(code, Some(130), "{text}");
    check_bar(&text, "merging ", &[" of 8.59 GB, ", "B/s, ", " left"]);
    assert!(text.contains("interrupted, nothing was written"), "{text}");
}

#[test]
fn a_training_shows_step_loss_rate_speed_and_time_left() {
    let sandbox = crate::distill::short("");
    let text = std::fs::read_to_string(sandbox.path("run.yml")).unwrap();
    sandbox
        .write("run.yml", text.replace("steps: 12", "steps: 100000").replace("evaluate_every: 5", "keep: 1"));
    let (text, code) = watch(&sandbox, &["distill", "run.yml"], "tokens/s");
    assert_eq!(code, Some(130), "{text}");
    check_bar(&text, "training ", &["step ", " of 100000, loss ", ", rate ", " tokens/s, ", " left"]);
    assert!(text.contains("interrupted, with a checkpoint after step "), "{text}");
}
