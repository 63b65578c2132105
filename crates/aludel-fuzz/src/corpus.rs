//! Keeps what a fuzzer found: an archive for each reader in `fuzz/corpus`, and folders while it runs.
//!
//! In: folders of inputs, one for each reader. Out: archives that depend on those inputs alone, and folders again. The smallest inputs are
//! kept where there are too many.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use zip::write::{SimpleFileOptions, ZipWriter};
use zip::{CompressionMethod, DateTime, ZipArchive};

use crate::{TARGETS, Target};

/// Bytes of inputs that are kept for one reader: all are tried by every run of the tests.
const MOST_BYTES: usize = 16 << 10;

impl Target {
    /// The inputs that a fuzzer found to reach code that the seeds do not; the smallest first.
    ///
    /// # Errors
    /// Where the archive cannot be read; without one there are none.
    pub fn corpus(&self) -> io::Result<Vec<Vec<u8>>> {
        let file = match File::open(self.archive()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            file => file?,
        };
        let mut archive = ZipArchive::new(BufReader::new(file))?;
        let count = archive.len();
        let read = |number| {
            let mut input = Vec::new();
            archive.by_index(number)?.read_to_end(&mut input)?;
            Ok(input)
        };
        (0..count).map(read).collect()
    }

    fn archive(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(self.name).with_extension("zip")
    }

    /// Seeds and corpus.
    fn inputs(&self) -> io::Result<Vec<Vec<u8>>> {
        Ok([(self.seeds)(), self.corpus()?].concat())
    }
}

/// Writes seeds and corpus of every reader into a folder of its name.
///
/// # Errors
/// Where an archive cannot be read or a file not be written.
pub fn unpack(folder: &Path) -> io::Result<()> {
    for target in TARGETS {
        let folder = folder.join(target.name);
        fs::create_dir_all(&folder)?;
        for (number, input) in target.inputs()?.iter().enumerate() {
            fs::write(folder.join(format!("{number:04}")), input)?;
        }
    }
    Ok(())
}

/// Makes the archives of what lies in the folders of readers, seeds left out. A reader without a folder keeps its archive.
///
/// # Errors
/// Where a file cannot be read or an archive not be written.
pub fn pack(folder: &Path) -> io::Result<()> {
    for target in TARGETS {
        let folder = folder.join(target.name);
        if folder.is_dir() {
            write(&target.archive(), &chosen(target, &folder)?)?;
        }
    }
    Ok(())
}

/// What is kept of a folder: by length, then by content.
fn chosen(target: &Target, folder: &Path) -> io::Result<Vec<Vec<u8>>> {
    let seeds = (target.seeds)();
    let mut found = BTreeSet::new();
    for entry in folder.read_dir()? {
        let input = fs::read(entry?.path())?;
        if !seeds.contains(&input) {
            found.insert((input.len(), input));
        }
    }
    let mut room = MOST_BYTES;
    let fits = |(length, input): (usize, Vec<u8>)| {
        room = room.checked_sub(length + OVERHEAD)?;
        Some(input)
    };
    Ok(found.into_iter().map_while(fits).collect())
}

/// What an archive takes for an input beside its bytes.
const OVERHEAD: usize = 100;

fn write(path: &Path, inputs: &[Vec<u8>]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut archive = ZipWriter::new(File::create(path)?);
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default());
    for (number, input) in inputs.iter().enumerate() {
        archive.start_file(format!("{number:04}"), options)?;
        archive.write_all(input)?;
    }
    archive.finish()?;
    Ok(())
}
