//! Says why the program ends where a mapped file cannot be read any more.
//!
//! A disk that fails, or a file that another program has cut short, shows itself by a signal to whoever reads the map: no error could be
//! returned, and nobody can go on. Without this the signal ends the program without a word.
#![expect(
    unsafe_code,
    reason = "a handler of signals runs between any two instructions, which the compiler cannot see"
)]

use std::os::fd::AsFd;

use signal_hook::consts::SIGBUS;
use signal_hook::low_level;

/// What is said.
const MESSAGE: &str = "\nerror: a file could not be read any further: its disk fails, or another program has cut it short; what a merge has done is kept: \
     `--resume` goes on with it\n";

/// The exit code of what failed while running.
const FAILED: i32 = 1;

/// Has the program say so and end, from now on. Best effort: where no handler can be had, everything stays as it was.
pub fn tell_of_unreadable_files() {
    let end = || {
        let _ = rustix::io::write(std::io::stderr().as_fd(), MESSAGE.as_bytes());
        low_level::exit(FAILED)
    };
    // SAFETY: the handler makes two system calls, both of which may be made at any time; it takes no lock, allocates nothing and does
    // not come back.
    let _ = unsafe { low_level::register(SIGBUS, end) };
}
