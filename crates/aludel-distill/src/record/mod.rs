//! Records a run: what it was, what it measured, and a page that shows both.
//!
//! In: entries as they are measured. Out, all in one folder: `run.json` (settings and surroundings), `metrics.jsonl`, a
//! TensorBoard event file, and `report.html`. Nothing here decides what is measured or when.

mod metrics;
mod report;
mod summary;
mod tensorboard;

pub use metrics::{Entry, Metrics, Phase, read as read_metrics};
pub use report::{render, write as write_report};
pub use summary::{Fact, Summary};
pub use tensorboard::EventLog;

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The logs of one run, open for appending.
#[derive(Debug)]
pub struct Record {
    metrics: Metrics,
    events: EventLog,
    event_file: String,
}

/// How far the logs were at a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Positions {
    /// Bytes of `metrics.jsonl`.
    pub metrics: u64,
    /// Bytes of the event file.
    pub events: u64,
    /// The event file's name.
    pub event_file: String,
}

impl Record {
    /// New logs in a folder that exists. An event file of an earlier run is removed: TensorBoard would draw both.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(folder: &Path) -> Result<Self, Error> {
        let events = folder.join(EVENTS);
        if events.exists() {
            std::fs::remove_dir_all(&events).map_err(Error::io("remove", &events))?;
        }
        std::fs::create_dir(&events).map_err(Error::io("create", &events))?;
        let time = now();
        let event_file = format!("events.out.tfevents.{:010}.aludel", time as u64);
        Ok(Self {
            metrics: Metrics::create(&metrics_path(folder))?,
            events: EventLog::create(&events.join(&event_file), time)?,
            event_file,
        })
    }

    /// The logs as they were at a checkpoint.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Damaged`] when the positions name an event file outside the folder.
    pub fn resume(folder: &Path, at: &Positions) -> Result<Self, Error> {
        let events = folder.join(EVENTS);
        if Path::new(&at.event_file).components().count() != 1 || at.event_file.starts_with('.') {
            return Err(Error::damaged(folder, format!("{:?} is no name of an event file", at.event_file)));
        }
        std::fs::create_dir_all(&events).map_err(Error::io("create", &events))?;
        Ok(Self {
            metrics: Metrics::resume(&metrics_path(folder), at.metrics)?,
            events: EventLog::resume(&events.join(&at.event_file), at.events, now())?,
            event_file: at.event_file.clone(),
        })
    }

    /// Adds an entry to every log.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append(&mut self, entry: &Entry) -> Result<(), Error> {
        self.metrics.append(entry)?;
        self.events.append(entry)
    }

    /// Where the logs are now, everything before being on disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn positions(&self) -> Result<Positions, Error> {
        self.metrics.sync()?;
        Ok(Positions {
            metrics: self.metrics.position(),
            events: self.events.position(),
            event_file: self.event_file.clone(),
        })
    }
}

/// `metrics.jsonl` of a run's folder.
pub fn metrics_path(folder: &Path) -> PathBuf {
    folder.join("metrics.jsonl")
}

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

const EVENTS: &str = "tensorboard";

/// Writes a small file under a temporary name and renames it, so that a reader finds the old one or the new one.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    let partial = path.with_file_name(name);
    std::fs::write(&partial, bytes).map_err(Error::io("write", &partial))?;
    std::fs::rename(&partial, path).map_err(Error::io("rename to", path))
}
