//! Opens the files of a run and gives out any of their rows.
//!
//! In: the settings under `data:`. Out: a [`Corpus`]: training rows and, when a share of them is kept for validation, those.
//! Every row is read once when the files are opened, so that what is wrong with any of them is known before a step is
//! trained. Memory then holds 24 bytes for each.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use aludel_checkpoint::hexadecimal;
use sha2::{Digest, Sha256};

use super::format::Format;
use super::parquet::copy_to_lines;
use super::record::{Fault, Record};
use super::scan::{self, LARGEST_ROW, Place, Whole};
use crate::error::Error;
use crate::run::{BadRows, Columns, Data, Validation};

/// A row that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowProblem {
    /// Its file.
    pub file: PathBuf,
    /// Its line (JSON lines), row (Parquet) or passage (text), counted from 1.
    pub row: u64,
    /// What is wrong, as a clause without a full stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl fmt::Display for RowProblem {
    /// `data/train.jsonl:7: not valid JSON: ... (each line is one JSON object)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.row, self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

/// The data of a run.
#[derive(Debug)]
pub struct Corpus {
    /// What is trained on.
    pub train: Rows,
    /// What is evaluated on.
    pub validation: Option<Rows>,
    /// Rows that were left out, by the first of them.
    pub skipped: Vec<RowProblem>,
    /// How many were left out.
    pub skipped_count: u64,
    fingerprint: String,
}

/// Rows of some files, in order.
#[derive(Debug)]
pub struct Rows {
    files: Vec<Arc<SourceFile>>,
    /// Of each row, its file and where it is there.
    places: Vec<(u32, Place)>,
    columns: Columns,
}

#[derive(Debug)]
struct SourceFile {
    path: PathBuf,
    format: Format,
    /// The file, or lines copied from it.
    bytes: Mutex<File>,
    whole: Whole,
}

/// Problems that are kept; further ones are counted.
const SHOWN: usize = 20;

impl Corpus {
    /// Opens all files and reads every row once.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Damaged`]; [`Error::Rows`] with rows that cannot be used, unless they are skipped;
    /// [`Error::NoRows`] when none is left to train on.
    pub fn open(settings: &Data) -> Result<Self, Error> {
        let mut reading = Reading { settings, problems: Vec::new(), count: 0, digest: Sha256::new() };
        let share = match settings.validation {
            Some(Validation::Share(share)) => Some(share),
            _ => None,
        };
        let (train, kept) = reading.rows(&settings.train, share)?;
        let validation = match &settings.validation {
            Some(Validation::Files(files)) => Some(reading.rows(files, None)?.0),
            Some(Validation::Share(_)) => Some(kept),
            None => None,
        };
        let Reading { problems, count, digest, .. } = reading;
        if count > 0 && settings.bad_rows == BadRows::Refuse {
            return Err(Error::Rows { problems, count });
        }
        if train.is_empty() {
            return Err(Error::NoRows { what: "train" });
        }
        if validation.as_ref().is_some_and(Rows::is_empty) {
            return Err(Error::NoRows { what: "evaluate" });
        }
        let fingerprint = hexadecimal(&digest.finalize());
        Ok(Self { train, validation, skipped: problems, skipped_count: count, fingerprint })
    }

    /// SHA-256, in hexadecimal digits, over lengths and checksums of all files in order, wherever they lie. A run that is
    /// resumed on other data sees another one.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

impl Rows {
    /// How many rows there are.
    pub fn len(&self) -> u64 {
        self.places.len() as u64
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// What the row of this number, from 0, holds.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Damaged`] when the file is no longer what it was.
    ///
    /// # Panics
    /// There is no row of this number.
    pub fn read(&self, row: u64) -> Result<Record, Error> {
        let (file, place) = &self.places[row as usize];
        let file = &self.files[*file as usize];
        let bytes = file.bytes_at(place).map_err(Error::io("read", &file.path))?;
        let changed = |_| Error::damaged(&file.path, format!("row {} is not what it was", place.number));
        match file.format {
            Format::Text => {
                let text = String::from_utf8(bytes).map_err(|_| changed(()))?;
                let end = place.start + u64::from(place.length);
                Ok(Record::Text { text, begins: place.number == 1, ends: end == file.whole.bytes })
            }
            Format::JsonLines | Format::Parquet => {
                Record::from_line(&bytes, &self.columns).map_err(|_| changed(()))
            }
        }
    }

    /// A problem of the row of this number.
    pub(super) fn problem(&self, row: u64, message: String, hint: Option<String>) -> RowProblem {
        let (file, place) = &self.places[row as usize];
        RowProblem { file: self.files[*file as usize].path.clone(), row: place.number, message, hint }
    }
}

impl SourceFile {
    fn bytes_at(&self, place: &Place) -> std::io::Result<Vec<u8>> {
        // A thread that panicked while it read left no more than another position behind.
        let mut file = self.bytes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.seek(SeekFrom::Start(place.start))?;
        let mut bytes = vec![0; place.length as usize];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

struct Reading<'a> {
    settings: &'a Data,
    problems: Vec<RowProblem>,
    count: u64,
    digest: Sha256,
}

impl Reading<'_> {
    /// The rows of some files, and the share of them that is kept apart. Rows of equal content are on the same side.
    fn rows(&mut self, paths: &[PathBuf], share: Option<f64>) -> Result<(Rows, Rows), Error> {
        let columns = self.settings.columns.clone();
        let mut files = Vec::new();
        let mut places = [Vec::new(), Vec::new()];
        for (index, path) in paths.iter().enumerate() {
            let file = self.file(path, |place, bytes| {
                let apart = share.is_some_and(|share| is_kept_apart(bytes, share));
                places[usize::from(apart)].push((index as u32, place));
            })?;
            self.digest.update(file.whole.bytes.to_le_bytes());
            self.digest.update(file.whole.checksum.to_le_bytes());
            files.push(Arc::new(file));
        }
        let [chosen, kept] = places;
        let rows = |places| Rows { files: files.clone(), places, columns: columns.clone() };
        Ok((rows(chosen), rows(kept)))
    }

    fn file(&mut self, path: &Path, mut row: impl FnMut(Place, &[u8])) -> Result<SourceFile, Error> {
        let format =
            Format::of(path).ok_or_else(|| Error::damaged(path, "its name does not say what it holds"))?;
        let file = match format {
            Format::Parquet => copy_to_lines(path, &self.settings.columns)?,
            Format::JsonLines | Format::Text => File::open(path).map_err(Error::io("read", path))?,
        };
        let failed = |error: std::io::Error| Error::io("read", path)(error);
        let columns = &self.settings.columns;
        let mut faults = Vec::new();
        let mut count = 0u64;
        let mut fault = |number: u64, fault: Fault| {
            count += 1;
            if faults.len() < SHOWN {
                faults.push(RowProblem {
                    file: path.to_owned(),
                    row: number,
                    message: fault.message,
                    hint: fault.hint,
                });
            }
        };
        let whole = match format {
            Format::Text => scan::passages(&file, |place, bytes| -> std::io::Result<()> {
                match std::str::from_utf8(bytes) {
                    Ok(_) => row(place, bytes),
                    Err(error) => fault(place.number, not_text(place, error)),
                }
                Ok(())
            }),
            Format::JsonLines | Format::Parquet => {
                scan::lines(&file, |place, bytes| -> std::io::Result<()> {
                    let checked = bytes.ok_or_else(too_long).and_then(|bytes| {
                        Record::from_line(bytes, columns)?;
                        Ok(bytes)
                    });
                    match checked {
                        Ok(bytes) => row(place, bytes),
                        Err(wrong) => fault(place.number, wrong),
                    }
                    Ok(())
                })
            }
        }
        .map_err(failed)?;
        self.count += count;
        faults.truncate(SHOWN.saturating_sub(self.problems.len()));
        self.problems.append(&mut faults);
        Ok(SourceFile { path: path.to_owned(), format, bytes: Mutex::new(file), whole })
    }
}

fn not_text(place: Place, error: std::str::Utf8Error) -> Fault {
    let at = place.start + error.valid_up_to() as u64;
    let message = format!("not UTF-8 at byte {at} of the file");
    Fault { message, hint: Some("text files are read as UTF-8: convert it first".to_owned()) }
}

fn too_long() -> Fault {
    Fault { message: format!("the row has more than {} MiB", LARGEST_ROW >> 20), hint: None }
}

/// Whether a row belongs to the share that is kept for validation, by its content alone.
fn is_kept_apart(bytes: &[u8], share: f64) -> bool {
    let mut first = [0; 8];
    first.copy_from_slice(&Sha256::digest(bytes)[..8]);
    // The upper 53 bits are exact in f64.
    ((u64::from_le_bytes(first) >> 11) as f64) < share * (1u64 << 53) as f64
}
