//! Remembers which tensors of a staged output are written, so that a run that died need not write them again.
//!
//! A line for each tensor has its position and the CRC-32C of its bytes, and ends with a CRC-32C of its own; the first has what the run
//! was of. Nothing is synced for it: a line is believed only where the bytes that it tells of are there, which whoever goes on checks.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crc32c::crc32c;

use crate::error::Error;
use crate::regular::read_text;

/// The journal inside a staging folder.
pub(crate) const JOURNAL_NAME: &str = ".journal";

/// A tensor that has been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenTensor {
    /// Its position in [`Layout::tensors`](crate::Layout::tensors).
    pub tensor: usize,
    /// The CRC-32C of its bytes, or of what is stored for it.
    pub crc: u32,
    /// The CRC-32C of the tensor that it is stored as the difference from, where it is.
    pub base: Option<u32>,
}

/// The journal of a run. One thread owns it.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
}

/// What a run that died has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    /// What the run was of.
    pub identity: String,
    pub written: Vec<WrittenTensor>,
}

impl Journal {
    /// Begins the journal in a staging folder, in place of one that is there; it has `written` from the start.
    pub(crate) fn create(folder: &Path, identity: &str, written: &[WrittenTensor]) -> Result<Self, Error> {
        let path = folder.join(JOURNAL_NAME);
        let mut text = line(&format!("{VERSION} {identity}"));
        written.iter().for_each(|written| text.push_str(&record(written)));
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(Error::io("create", &path))?;
        file.write_all(text.as_bytes()).map_err(Error::io("write", &path))?;
        file.persist(&path).map_err(|error| Error::io("write", &path)(error.error))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(Error::io("open", &path))?;
        Ok(Self { file, path })
    }

    /// Adds tensors all of whose bytes are written.
    ///
    /// Errors: [`Error::Io`].
    pub fn add(&mut self, written: &[WrittenTensor]) -> Result<(), Error> {
        let records: String = written.iter().map(record).collect();
        self.file.write_all(records.as_bytes()).map_err(Error::io("write", &self.path))
    }

    /// What the journal of a folder has, up to the first line that is not whole; `None` where there is none.
    pub(crate) fn read(folder: &Path) -> Option<Recorded> {
        let text = read_text(&folder.join(JOURNAL_NAME), MOST_BYTES).ok()?;
        let mut lines = text.split_inclusive('\n').map_while(content);
        let identity = lines.next()?.strip_prefix(VERSION)?.trim_start().to_owned();
        let written = lines.map_while(|line| {
            let mut words = line.split(' ');
            let tensor = words.next()?.parse().ok()?;
            let mut crcs = words.map(|crc| u32::from_str_radix(crc, 16).ok());
            Some(WrittenTensor { tensor, crc: crcs.next()??, base: crcs.next().unwrap_or_default() })
        });
        Some(Recorded { identity, written: written.collect() })
    }
}

fn record(written: &WrittenTensor) -> String {
    let base = written.base.map_or_else(String::new, |base| format!(" {base:08x}"));
    line(&format!("{} {:08x}{base}", written.tensor, written.crc))
}

fn line(content: &str) -> String {
    format!("{content} {:08x}\n", crc32c(content.as_bytes()))
}

/// What a whole line says.
fn content(line: &str) -> Option<&str> {
    let (content, crc) = line.strip_suffix('\n')?.rsplit_once(' ')?;
    (u32::from_str_radix(crc, 16) == Ok(crc32c(content.as_bytes()))).then_some(content)
}

const VERSION: &str = "aludel-journal-1";

/// Far more than lines for the most tensors that headers can name.
const MOST_BYTES: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_lines_are_believed_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Journal::read(folder.path()), None);
        let written = |tensor| WrittenTensor {
            tensor,
            crc: 7 * tensor as u32,
            base: (tensor == 1).then_some(0xffff_ffff),
        };
        let mut journal = Journal::create(folder.path(), "of this", &[written(3)]).unwrap();
        journal.add(&[written(1), written(700)]).unwrap();
        let all = Recorded { identity: "of this".into(), written: [3, 1, 700].map(written).to_vec() };
        assert_eq!(Journal::read(folder.path()), Some(all.clone()));
        let path = folder.path().join(JOURNAL_NAME);
        let text = std::fs::read(&path).unwrap();
        for end in 0..text.len() {
            std::fs::write(&path, &text[..end]).unwrap();
            let lines = text[..end].iter().filter(|&&byte| byte == b'\n').count();
            let expected =
                (lines > 0).then(|| Recorded { written: all.written[..lines - 1].to_vec(), ..all.clone() });
            assert_eq!(Journal::read(folder.path()), expected, "{end} bytes");
        }
        for at in 0..text.len() {
            let mut damaged = text.clone();
            damaged[at] ^= 0x10;
            std::fs::write(&path, damaged).unwrap();
            let read = Journal::read(folder.path());
            assert!(
                read.is_none_or(|read| all.written.starts_with(&read.written) && read != all),
                "byte {at}"
            );
        }
    }
}
