//! Writes the seeds of every target into folders of their own, which a fuzzer begins with.
//!
//! `cargo run -p aludel-fuzz --bin aludel-seeds -- FOLDER`

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let Some(folder) = env::args().nth(1) else {
        return Err(io::Error::other("name the folder that the seeds are written to"));
    };
    for target in aludel_fuzz::TARGETS {
        let folder = Path::new(&folder).join(target.name);
        fs::create_dir_all(&folder)?;
        for (number, seed) in (target.seeds)().iter().enumerate() {
            fs::write(folder.join(format!("seed-{number}")), seed)?;
        }
    }
    Ok(())
}
