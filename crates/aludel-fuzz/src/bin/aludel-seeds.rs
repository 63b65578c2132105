//! Writes the seeds and the corpus of every reader into folders, which a fuzzer begins with; or makes the corpus of such folders.
//!
//! `cargo run -p aludel-fuzz --bin aludel-seeds -- [--pack] FOLDER`

use std::path::Path;
use std::{env, io};

use aludel_fuzz::corpus;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--pack", folder] => corpus::pack(Path::new(folder)),
        [folder] if !folder.starts_with('-') => corpus::unpack(Path::new(folder)),
        _ => Err(io::Error::other("give the folder that is written to, or --pack and the one that is read")),
    }
}
