//! Feeds the reader that the variable `ALUDEL_READER` names: one program for all of them, as most of what is built is what they share.
//!
//! With `ALUDEL_SEEDS` it writes the seeds and the corpus of all into that folder instead.
#![no_main]

use std::path::Path;
use std::process::exit;
use std::sync::LazyLock;

use aludel_fuzz::{TARGETS, Target, corpus};

static READER: LazyLock<&Target> = LazyLock::new(|| chosen().unwrap_or_else(|refusal| refuse(&refusal)));

fn chosen() -> Result<&'static Target, String> {
    let names = || TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ");
    let name = std::env::var("ALUDEL_READER")
        .map_err(|_| format!("ALUDEL_READER is to name a reader, one of {}", names()))?;
    let found = TARGETS.iter().find(|target| target.name == name);
    found.ok_or_else(|| format!("ALUDEL_READER: `{name}` is no reader; there are {}", names()))
}

fn refuse(refusal: &str) -> ! {
    eprintln!("{refusal}");
    exit(2)
}

fn begin() {
    if let Some(folder) = std::env::var_os("ALUDEL_SEEDS") {
        corpus::unpack(Path::new(&folder)).unwrap_or_else(|error| refuse(&format!("ALUDEL_SEEDS: {error}")));
        exit(0);
    }
    LazyLock::force(&READER);
    // What a library panics at is caught by its caller: the hook would end the process before.
    std::panic::set_hook(Box::new(|_| {}));
}

libfuzzer_sys::fuzz_target!(init: begin(), |bytes: &[u8]| (READER.run)(bytes));
