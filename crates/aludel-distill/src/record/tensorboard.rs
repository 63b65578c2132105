//! Writes scalars as TensorBoard event files.
//!
//! In: entries. Out: `events.out.tfevents...`, a sequence of TFRecords that each hold one `Event` protocol buffer with a
//! `Summary` of plain values. Both are encoded here by hand: five fields need no compiler. Sources: TensorFlow's
//! `tsl/lib/io/record_writer.h` (framing) and `core/util/event.proto`, `core/framework/summary.proto` (fields).

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::metrics::Entry;
use crate::error::Error;

/// An event file, open for appending.
#[derive(Debug)]
pub struct EventLog {
    path: PathBuf,
    file: File,
    position: u64,
}

impl EventLog {
    /// A new file that begins with the format's version, at this time in seconds since 1970.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(path: &Path, time: f64) -> Result<Self, Error> {
        let file = File::create(path).map_err(Error::io("create", path))?;
        let mut log = Self { path: path.to_path_buf(), file, position: 0 };
        log.write(&version_event(time))?;
        Ok(log)
    }

    /// The file as it was when its length was `position`. One that is shorter, or gone, is begun anew.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn resume(path: &Path, position: u64, time: f64) -> Result<Self, Error> {
        if path.metadata().map_or(0, |metadata| metadata.len()) < position {
            return Self::create(path, time);
        }
        let mut file = OpenOptions::new().write(true).open(path).map_err(Error::io("open", path))?;
        file.set_len(position).map_err(Error::io("shorten", path))?;
        file.seek(SeekFrom::End(0)).map_err(Error::io("read", path))?;
        Ok(Self { path: path.to_path_buf(), file, position })
    }

    /// Adds an event with the entry's values, each tagged `phase/name`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append(&mut self, entry: &Entry) -> Result<(), Error> {
        self.write(&scalars_event(entry))
    }

    /// The file's length.
    pub fn position(&self) -> u64 {
        self.position
    }

    fn write(&mut self, event: &[u8]) -> Result<(), Error> {
        let record = record(event);
        self.file.write_all(&record).map_err(Error::io("write", &self.path))?;
        self.position += record.len() as u64;
        Ok(())
    }
}

/// `length, masked CRC of the length, data, masked CRC of the data`, little-endian.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), data, &masked_crc(data)].concat()
}

/// CRC-32C, rotated and shifted: a CRC of data that holds CRCs would be weak.
fn masked_crc(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn version_event(time: f64) -> Vec<u8> {
    let mut event = Message::default();
    event.double(event::WALL_TIME, time);
    event.bytes(event::FILE_VERSION, b"brain.Event:2");
    event.0
}

fn scalars_event(entry: &Entry) -> Vec<u8> {
    let mut summary = Message::default();
    for (name, &scalar) in &entry.values {
        let mut value = Message::default();
        value.bytes(value::TAG, format!("{}/{name}", entry.phase.name()).as_bytes());
        value.float(value::SIMPLE_VALUE, scalar as f32);
        summary.bytes(summary::VALUE, &value.0);
    }
    let mut event = Message::default();
    event.double(event::WALL_TIME, entry.time);
    event.integer(event::STEP, entry.step);
    event.bytes(event::SUMMARY, &summary.0);
    event.0
}

/// Field numbers of `Event`.
mod event {
    pub(super) const WALL_TIME: u32 = 1;
    pub(super) const STEP: u32 = 2;
    pub(super) const FILE_VERSION: u32 = 3;
    pub(super) const SUMMARY: u32 = 5;
}

/// Field numbers of `Summary`.
mod summary {
    pub(super) const VALUE: u32 = 1;
}

/// Field numbers of `Summary.Value`.
mod value {
    pub(super) const TAG: u32 = 1;
    pub(super) const SIMPLE_VALUE: u32 = 2;
}

/// A protocol buffer in the making. Fields are written in ascending order. A plain field that is zero is left out, as
/// the format has it; members of a `oneof` (the summary, its value) are always written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn double(&mut self, field: u32, number: f64) {
        if number.to_bits() != 0 {
            self.key(field, FIXED_64);
            self.0.extend(number.to_le_bytes());
        }
    }

    fn float(&mut self, field: u32, number: f32) {
        self.key(field, FIXED_32);
        self.0.extend(number.to_le_bytes());
    }

    fn integer(&mut self, field: u32, number: u64) {
        if number != 0 {
            self.key(field, VARINT);
            self.varint(number);
        }
    }

    fn bytes(&mut self, field: u32, content: &[u8]) {
        self.key(field, LENGTH_DELIMITED);
        self.varint(content.len() as u64);
        self.0.extend(content);
    }

    fn key(&mut self, field: u32, kind: u32) {
        self.varint(u64::from(field << 3 | kind));
    }

    /// Seven bits a byte, low ones first; the eighth says that more follow.
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }
}

/// Wire types.
const VARINT: u32 = 0;
const FIXED_64: u32 = 1;
const LENGTH_DELIMITED: u32 = 2;
const FIXED_32: u32 = 5;

#[cfg(test)]
mod tests {
    use indexmap::IndexMap;

    use super::super::metrics::Phase;
    use super::*;

    /// The entries that `tests/golden/tensorboard/generate.py` writes.
    fn entries() -> Vec<Entry> {
        let entry = |phase, step, values: &[(&str, f64)]| Entry {
            phase,
            step,
            time: 1_700_000_000.5 + step as f64,
            values: values.iter().map(|&(name, value)| (name.to_owned(), value)).collect::<IndexMap<_, _>>(),
        };
        vec![
            entry(Phase::Validation, 0, &[("loss", 6.25), ("top1", 0.0)]),
            entry(Phase::Train, 1, &[("loss", 2.71828182846001), ("learning_rate", 1e-4)]),
            entry(Phase::Train, 300, &[("loss", f64::NAN), ("gradient_norm", f64::INFINITY)]),
            entry(Phase::Train, 5_000_000_000, &[("loss", -1e-42), ("größe", 1e300)]),
        ]
    }

    #[test]
    fn bytes_are_those_that_tensorboard_s_own_writer_puts_down() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/tensorboard/events");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let mut log = EventLog::create(&path, 1_700_000_000.0).unwrap();
        entries().iter().for_each(|entry| log.append(entry).unwrap());
        let written = std::fs::read(&path).unwrap();
        assert_eq!(log.position(), written.len() as u64);
        assert_eq!(written, std::fs::read(golden).unwrap());
    }

    #[test]
    fn a_resumed_log_forgets_what_came_after_its_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let mut log = EventLog::create(&path, 1.0).unwrap();
        log.append(&entries()[0]).unwrap();
        let position = log.position();
        log.append(&entries()[1]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let mut log = EventLog::resume(&path, position, 2.0).unwrap();
        log.append(&entries()[1]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(EventLog::resume(&path, position, 1.0).unwrap().position(), 40);
    }
}
