//! What a person sees: the bar on a terminal.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::signals::{large, send};

#[test]
fn a_terminal_shows_a_bar_with_bytes_rate_and_time_left() {
    let sandbox = large(8, 256 << 20);
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let far_end = OpenOptions::new()
        .read(true)
        .write(true)
        .open(Path::new(std::ffi::OsStr::from_bytes(name.as_bytes())))
        .unwrap();
    let mut command = sandbox.process(&["merge", "r.yml", "out"]);
    let mut child = command.env("TERM", "xterm").stderr(far_end).spawn().unwrap();
    drop(command); // It holds the far end, and reading ends when nobody does.
    let mut screen = std::fs::File::from(terminal);
    let mut text = Vec::new();
    let mut interrupted = false;
    let mut piece = [0; 4096];
    // The far end's closing is an error on Linux and an end of file elsewhere.
    while let Ok(length @ 1..) = screen.read(&mut piece) {
        text.extend_from_slice(&piece[..length]);
        if !interrupted && text.windows(4).any(|four| four == b"left") {
            send(&child, Signal::INT);
            interrupted = true;
        }
    }
    let text = String::from_utf8(text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{text}");
    let bar = text.split('\r').find(|line| line.contains("left")).unwrap();
    let parts: Vec<&str> = ["merging ", " of 8.59 GB, ", "B/s, ", " left"]
        .into_iter()
        .filter(|part| !bar.contains(part))
        .collect();
    assert!(parts.is_empty(), "{parts:?} not in {bar}");
    assert!(text.contains("interrupted, nothing was written"), "{text}");
}
