//! Appends measurements to `metrics.jsonl` and reads them back.
//!
//! In: entries as they are measured. Out: one JSON object a line, whole or not at all in all but a power cut, since each is
//! handed to the system in one piece. What a resumed run has to forget is cut off at the position its checkpoint remembers.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use crate::error::Error;

/// What an entry measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// One optimizer step.
    Train,
    /// The held-out documents.
    Validation,
}

impl Phase {
    /// The name in files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [Self::Train, Self::Validation].into_iter().find(|phase| phase.name() == name)
    }
}

/// Measurements of one moment of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// What was measured.
    pub phase: Phase,
    /// Optimizer steps that were complete by then.
    pub step: u64,
    /// Seconds since 1970.
    pub time: f64,
    /// Values by name, in the order in which they are shown. NaN and infinities stand for themselves in memory and are
    /// `null` in the file.
    pub values: IndexMap<String, f64>,
}

impl Entry {
    /// The line without its end.
    fn to_line(&self) -> String {
        let mut object = Map::new();
        object.insert(STEP.into(), json!(self.step));
        object.insert(PHASE.into(), json!(self.phase.name()));
        object.insert(TIME.into(), json!(self.time));
        object.extend(self.values.iter().map(|(name, value)| (name.clone(), json!(value))));
        Value::Object(object).to_string()
    }

    /// `None` for what this program did not write.
    fn parse(line: &str) -> Option<Self> {
        let Ok(Value::Object(object)) = serde_json::from_str(line) else { return None };
        let values = object.iter().filter(|(name, _)| ![STEP, PHASE, TIME].contains(&name.as_str()));
        Some(Self {
            phase: Phase::parse(object.get(PHASE)?.as_str()?)?,
            step: object.get(STEP)?.as_u64()?,
            time: object.get(TIME)?.as_f64()?,
            values: values
                .map(|(name, value)| Some((name.clone(), number(value)?)))
                .collect::<Option<_>>()?,
        })
    }
}

fn number(value: &Value) -> Option<f64> {
    if value.is_null() { Some(f64::NAN) } else { value.as_f64() }
}

/// `metrics.jsonl`, open for appending.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
    position: u64,
}

impl Metrics {
    /// An empty file in place of whatever was there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(path: &Path) -> Result<Self, Error> {
        let file = File::create(path).map_err(Error::io("create", path))?;
        Ok(Self { path: path.to_path_buf(), file, position: 0 })
    }

    /// The file as it was when its length was `position`. One that is shorter, or gone, is taken up at its last whole
    /// line: a lost record is no reason to lose a run.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn resume(path: &Path, position: u64) -> Result<Self, Error> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(Error::io("open", path))?;
        let position = whole_lines(&mut file, position).map_err(Error::io("read", path))?;
        file.set_len(position).map_err(Error::io("shorten", path))?;
        file.seek(SeekFrom::End(0)).map_err(Error::io("read", path))?;
        Ok(Self { path: path.to_path_buf(), file, position })
    }

    /// Adds a line and hands it to the system.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append(&mut self, entry: &Entry) -> Result<(), Error> {
        let line = entry.to_line() + "\n";
        self.file.write_all(line.as_bytes()).map_err(Error::io("write", &self.path))?;
        self.position += line.len() as u64;
        Ok(())
    }

    /// The file's length: where a run that resumes from here goes on.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Waits until everything is on disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<(), Error> {
        self.file.sync_data().map_err(Error::io("sync", &self.path))
    }
}

/// The largest length up to `position` that ends a line.
fn whole_lines(file: &mut File, position: u64) -> std::io::Result<u64> {
    let mut end = position.min(file.metadata()?.len());
    let mut piece = [0; 4096];
    while end > 0 {
        let start = end.saturating_sub(piece.len() as u64);
        let piece = &mut piece[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(piece)?;
        if let Some(last) = piece.iter().rposition(|&byte| byte == b'\n') {
            return Ok(start + last as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// Every entry of a file. A last line without its end is a write that a crash cut short, and is left out.
///
/// # Errors
/// [`Error::Io`]; [`Error::Damaged`] with the number of a line that is no entry or longer than a mebibyte.
pub fn read(path: &Path) -> Result<Vec<Entry>, Error> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut reader = BufReader::new(file);
    let mut entries = Vec::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut reader).take(LONGEST_LINE).read_until(b'\n', &mut line);
        read.map_err(Error::io("read", path))?;
        let is_whole = line.pop() == Some(b'\n');
        if !is_whole && line.len() as u64 + 1 < LONGEST_LINE {
            return Ok(entries);
        }
        let entry = std::str::from_utf8(&line).ok().filter(|_| is_whole).and_then(Entry::parse);
        entries.push(
            entry.ok_or_else(|| {
                Error::damaged(path, format!("line {} is no measurement", entries.len() + 1))
            })?,
        );
    }
}

const STEP: &str = "step";
const PHASE: &str = "phase";
const TIME: &str = "time";
const LONGEST_LINE: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(step: u64, loss: f64) -> Entry {
        let values = IndexMap::from([("loss".to_owned(), loss), ("tokens".to_owned(), 4096.0)]);
        Entry { phase: Phase::Train, step, time: 1.5e9 + 0.25, values }
    }

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        (folder, path)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let (_folder, path) = folder();
        let mut metrics = Metrics::create(&path).unwrap();
        metrics.append(&entry(1, 2.345678901234568)).unwrap();
        metrics.append(&Entry { phase: Phase::Validation, ..entry(1, 1e-300) }).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let first =
            r#"{"step":1,"phase":"train","time":1500000000.25,"loss":2.345678901234568,"tokens":4096.0}"#;
        assert_eq!(text.lines().next(), Some(first));
        assert_eq!(metrics.position(), text.len() as u64);
        let read = read(&path).unwrap();
        assert_eq!(
            read,
            [entry(1, 2.345678901234568), Entry { phase: Phase::Validation, ..entry(1, 1e-300) }]
        );
    }

    #[test]
    fn values_that_json_has_no_word_for_are_null_and_read_as_nan() {
        let (_folder, path) = folder();
        let mut metrics = Metrics::create(&path).unwrap();
        metrics.append(&entry(1, f64::INFINITY)).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains(r#""loss":null"#));
        assert!(read(&path).unwrap()[0].values["loss"].is_nan());
    }

    #[test]
    fn a_resumed_file_forgets_what_came_after_its_checkpoint() {
        let (_folder, path) = folder();
        let mut metrics = Metrics::create(&path).unwrap();
        metrics.append(&entry(1, 3.0)).unwrap();
        let position = metrics.position();
        metrics.append(&entry(2, 2.0)).unwrap();
        drop(metrics);
        let mut metrics = Metrics::resume(&path, position).unwrap();
        metrics.append(&entry(2, 2.5)).unwrap();
        assert_eq!(read(&path).unwrap(), [entry(1, 3.0), entry(2, 2.5)]);
    }

    #[test]
    fn a_file_that_is_shorter_than_remembered_goes_on_after_its_last_whole_line() {
        let (_folder, path) = folder();
        let mut metrics = Metrics::create(&path).unwrap();
        metrics.append(&entry(1, 3.0)).unwrap();
        let whole = metrics.position();
        metrics.append(&entry(2, 2.0)).unwrap();
        metrics.file.set_len(whole + 7).unwrap();
        assert_eq!(Metrics::resume(&path, 9999).unwrap().position(), whole);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(Metrics::resume(&path, 9999).unwrap().position(), 0);
        // The last end of a line may be further back than one piece.
        std::fs::write(&path, format!("a\n{}", "b".repeat(10_000))).unwrap();
        assert_eq!(Metrics::resume(&path, 9999).unwrap().position(), 2);
    }

    #[test]
    fn a_line_cut_short_by_a_crash_is_left_out_and_a_damaged_one_is_named() {
        let (_folder, path) = folder();
        let mut metrics = Metrics::create(&path).unwrap();
        metrics.append(&entry(1, 3.0)).unwrap();
        metrics.file.write_all(b"{\"step\":2,\"pha").unwrap();
        assert_eq!(read(&path).unwrap(), [entry(1, 3.0)]);
        let damaged: [&[u8]; 6] = [
            b"\n",
            b"[]\n",
            b"{\"step\":-1}\n",
            b"\xff\n",
            &[b'x'; 2 << 20],
            b"{\"step\":1,\"phase\":\"train\",\"time\":0,\"a\":\"b\"}\n",
        ];
        for damaged in damaged {
            std::fs::write(&path, damaged).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.ends_with("line 1 is no measurement"), "{error}");
        }
    }
}
