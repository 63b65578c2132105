//! Makes a model folder of the parts that several runs have written.
//!
//! In: the target that the parts are of. Out: the folder. Every byte of every weight file is read and held against the checksum that its
//! run took when it wrote it; files are linked, not copied, and the parts are removed when the folder is in place.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use aludel_checkpoint::{Error, OutputFolder, check_target, crc_of_file};
use serde::Serialize;

use super::MergeError;
use super::part::{PART_FILE, PartFile, PartRecord};
use crate::problem::{Problem, Problems};
use crate::threads::Threads;

/// How parts are joined.
pub struct JoinOptions<'a> {
    /// Whether a folder that exists gives way.
    pub replace: bool,
    /// Whether the output is on disk before it gets its name.
    pub sync: bool,
    /// Threads that read.
    pub threads: usize,
    /// Set from outside to stop: everything is then as it was.
    pub cancel: &'a AtomicBool,
    /// Called at the beginning, and about ten times a second, with the bytes that are checked and those in all.
    pub on_progress: &'a (dyn Fn(u64, u64) + Sync),
}

/// What was joined.
#[derive(Clone, Debug, Serialize)]
pub struct Joined {
    /// The folder that was made.
    pub output: PathBuf,
    /// How many parts it had.
    pub parts: usize,
    /// Weight files.
    pub files: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// From start to end.
    pub seconds: f64,
}

/// The folder that the parts of a target are written to: each into a folder of its own, such as `out.parts/2-of-8`.
pub fn parts_of(target: &Path) -> PathBuf {
    let mut name = OsString::from(target);
    name.push(".parts");
    PathBuf::from(name)
}

/// Joins the parts of a target.
///
/// # Errors
/// [`MergeError::Problems`] where parts are missing or not of one output, or a file is not as it was written; the parts are then as
/// they were.
pub fn join(target: &Path, options: &JoinOptions<'_>) -> Result<Joined, MergeError> {
    let start = Instant::now();
    check_target(target, options.replace)?;
    let place = parts_of(target);
    let parts = all_parts(&place)?;
    let files: Vec<(PathBuf, &PartFile)> = parts
        .iter()
        .flat_map(|(folder, record)| record.files.iter().map(|file| (folder.join(&file.name), file)))
        .collect();
    check_files(&files, options)?;
    let mut folder = OutputFolder::create(target, options.replace)?;
    if !options.sync {
        folder.skip_sync();
    }
    for (path, file) in &files {
        folder.link_from(path, &file.name)?;
    }
    let (first, record) = &parts[0];
    let mut card = record.card.clone();
    parts.iter().for_each(|(_, record)| card.take(&record.card));
    let is_weights = |name: &str| record.files.iter().any(|file| file.name == name);
    folder.copy_all_from(first, &|name| name != PART_FILE && !is_weights(name))?;
    folder.write("README.md", card.render().as_bytes())?;
    let output = folder.finish()?;
    remove(&place)?;
    Ok(Joined {
        output,
        parts: parts.len(),
        files: files.len(),
        bytes: total(&files),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// All parts of one output, in their order.
fn all_parts(place: &Path) -> Result<Vec<(PathBuf, PartRecord)>, MergeError> {
    let mut problems = Problems::new();
    let mut parts: BTreeMap<usize, (PathBuf, PartRecord)> = BTreeMap::new();
    for folder in folders(place)? {
        let path = folder.join(PART_FILE);
        if !path.is_file() {
            continue; // A part that is being written has another name.
        }
        let text = fs::read_to_string(&path).map_err(|error| io("read", &path, error))?;
        match PartRecord::parse(&text) {
            Ok(record) => {
                if let Some((other, _)) = parts.insert(record.part.number, (folder.clone(), record)) {
                    problems.push(
                        Problem::general(format!(
                            "{} and {} are one part",
                            other.display(),
                            folder.display()
                        ))
                        .with_hint("remove the one that is of an earlier merge"),
                    );
                }
            }
            Err(fault) => problems.push(
                Problem::general(format!("{} is damaged: {fault}", path.display()))
                    .with_hint("write the part anew"),
            ),
        }
    }
    if !problems.is_empty() {
        return Err(problems.into());
    }
    let Some((_, (first_folder, first))) = parts.first_key_value() else {
        let message = format!("{} has no part of an output", place.display());
        return Err(told(message, "write parts first: `aludel merge RECIPE OUT --part 1/4`, and so on"));
    };
    for (folder, record) in parts.values() {
        if (record.part.of, &record.identity) != (first.part.of, &first.identity) {
            let message = format!(
                "{} and {} are not parts of one output: another recipe, other models or settings, or another number of parts",
                first_folder.display(),
                folder.display()
            );
            return Err(told(message, "write the one anew that is of an earlier merge, with --force"));
        }
    }
    let missing = first.part.of.saturating_sub(parts.len());
    if missing > 0 {
        // A damaged record may say any number.
        let absent = (1..=first.part.of).filter(|number| !parts.contains_key(number)).take(MOST_NAMED);
        let named = absent.map(|number| number.to_string()).collect::<Vec<_>>().join(", ");
        let more = if missing > MOST_NAMED { ", ..." } else { "" };
        let message = format!("{missing} of {} parts are missing: {named}{more}", first.part.of);
        return Err(told(message, "write them, or wait for those that write them"));
    }
    Ok(parts.into_values().collect())
}

/// Numbers of missing parts that are told.
const MOST_NAMED: usize = 64;

/// The folders of parts, those that are being written left out.
fn folders(place: &Path) -> Result<Vec<PathBuf>, MergeError> {
    if !place.is_dir() {
        return Ok(Vec::new());
    }
    let mut folders = Vec::new();
    for entry in place.read_dir().map_err(|error| io("list", place, error))? {
        let entry = entry.map_err(|error| io("list", place, error))?;
        if entry.path().is_dir() && !entry.file_name().as_encoded_bytes().starts_with(b".") {
            folders.push(entry.path());
        }
    }
    folders.sort();
    Ok(folders)
}

/// Bytes of all files, as their records say; those may say anything.
fn total(files: &[(PathBuf, &PartFile)]) -> u64 {
    files.iter().fold(0, |total, (_, file)| total.saturating_add(file.bytes))
}

/// Reads all files, on several threads, and holds them against their checksums.
fn check_files(files: &[(PathBuf, &PartFile)], options: &JoinOptions<'_>) -> Result<(), MergeError> {
    let all = total(files);
    let checked = AtomicU64::new(0);
    let check = |(path, file): &(PathBuf, &PartFile)| -> Result<(), Error> {
        let mut count = |bytes| {
            checked.fetch_add(bytes, Relaxed);
            if options.cancel.load(Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        if crc_of_file(path, &mut count)? == file.crc32c {
            return Ok(());
        }
        let detail = "it is not what was written; write its part anew, with --force".into();
        Err(Error::Damaged { file: path.clone(), detail })
    };
    let threads = Threads {
        count: options.threads,
        cancel: options.cancel,
        on_progress: &|| (options.on_progress)(checked.load(Relaxed), all),
    };
    threads.share(files.len() as u64, |file, ()| Ok(check(&files[file as usize])?))
}

fn remove(place: &Path) -> Result<(), MergeError> {
    fs::remove_dir_all(place).map_err(|error| io("remove the joined", place, error))
}

fn told(message: String, hint: &str) -> MergeError {
    Problems::from(Problem::general(message).with_hint(hint)).into()
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> MergeError {
    Error::Io { action, path: path.to_path_buf(), source }.into()
}
