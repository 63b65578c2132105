//! Downloads one file into the cache: goes on where an earlier download stopped, and checks what arrived.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aludel_checkpoint::hexadecimal;
use sha2::{Digest, Sha256};
use ureq::http::StatusCode;

use crate::cache::Place;
use crate::client::{Client, Range};
use crate::error::Error;
use crate::id::Id;
use crate::listing::RemoteFile;

/// A file that is to be downloaded.
pub(crate) struct Download<'a> {
    pub(crate) client: &'a Client,
    pub(crate) id: &'a Id,
    pub(crate) commit: &'a str,
    pub(crate) file: &'a RemoteFile,
}

impl Download<'_> {
    /// Downloads the file unless its content is there. `on_bytes` is told how many bytes of it are.
    pub(crate) fn run(&self, place: &Place, on_bytes: &mut dyn FnMut(u64)) -> Result<(), Error> {
        let blob = place.blob(self.file);
        let folder = blob.parent().unwrap_or(&blob);
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let partial = PathBuf::from(format!("{}.incomplete", blob.display()));
        let mut open = OpenOptions::new();
        let mut to = open
            .create(true)
            .read(true)
            .append(true)
            .open(&partial)
            .map_err(Error::io("create", &partial))?;
        // Two processes that want the same file: one downloads, the other waits. The lock goes with the handle.
        to.lock().map_err(Error::io("lock", &partial))?;
        if blob.metadata().is_ok_and(|metadata| metadata.len() == self.file.bytes) {
            return Ok(()); // It came while this waited; its partial file has become it.
        }
        self.complete(&mut to, &partial, on_bytes)?;
        self.check(&mut to, &partial)?;
        to.sync_all().map_err(Error::io("sync", &partial))?;
        fs::rename(&partial, &blob).map_err(Error::io("rename", &partial))
    }

    /// Reads until the file has its size, again after interruptions as long as each brings something.
    fn complete(&self, to: &mut File, partial: &Path, on_bytes: &mut dyn FnMut(u64)) -> Result<(), Error> {
        let mut failures = 0;
        loop {
            let start = to.metadata().map_err(Error::io("read", partial))?.len();
            if start > self.file.bytes {
                to.set_len(0).map_err(Error::io("write", partial))?;
                continue;
            }
            on_bytes(start);
            if start == self.file.bytes {
                return Ok(());
            }
            let detail = match self.read(to, partial, start, on_bytes)? {
                Ok(()) => "it ended early".to_owned(),
                Err(detail) => detail,
            };
            let end = to.metadata().map_err(Error::io("read", partial))?.len();
            failures = if end > start { 0 } else { failures + 1 };
            if end < self.file.bytes && failures > MOST_FAILURES {
                let (model, file) = (self.id.shown(), self.file.name.clone());
                return Err(Error::Stopped { model, file, detail });
            }
            if failures > 0 {
                std::thread::sleep(PAUSE * failures);
            }
        }
    }

    /// Appends what one answer brings; the inner error is what went wrong with the connection.
    fn read(
        &self,
        to: &mut File,
        partial: &Path,
        start: u64,
        on_bytes: &mut dyn FnMut(u64),
    ) -> Result<Result<(), String>, Error> {
        let answer = match self.client.file(self.id, self.commit, &self.file.name, Range::From(start)) {
            Ok(answer) => answer,
            Err(detail) => return Ok(Err(detail)),
        };
        if answer.status.is_server_error() || answer.status == StatusCode::TOO_MANY_REQUESTS {
            return Ok(Err(format!("status {}", answer.status.as_u16())));
        }
        self.client.check(self.id, answer.status)?;
        let mut at = start;
        if answer.status != StatusCode::PARTIAL_CONTENT {
            // All of it, whatever was asked for.
            to.set_len(0).map_err(Error::io("write", partial))?;
            at = 0;
        } else if !begins_at(&answer.headers, start) {
            return Ok(Err("another part of the file than was asked for".to_owned()));
        }
        // A byte more than there should be shows that it is another file.
        let mut body = answer.body.take(self.file.bytes - at + 1);
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match body.read(&mut piece) {
                Ok(0) => return Ok(Ok(())),
                Ok(length) => {
                    to.write_all(&piece[..length]).map_err(Error::io("write", partial))?;
                    at += length as u64;
                    if at > self.file.bytes {
                        return self.refuse(partial, "it is longer");
                    }
                    on_bytes(at);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Ok(Err(error.to_string())),
            }
        }
    }

    fn check(&self, to: &mut File, partial: &Path) -> Result<(), Error> {
        if !self.file.is_hashed {
            return Ok(());
        }
        to.seek(SeekFrom::Start(0)).map_err(Error::io("read", partial))?;
        let mut hasher = Sha256::new();
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match to.read(&mut piece).map_err(Error::io("read", partial))? {
                0 => break,
                length => hasher.update(&piece[..length]),
            }
        }
        if hexadecimal(&hasher.finalize()) == self.file.etag {
            Ok(())
        } else {
            self.refuse(partial, "its SHA-256 is another")
        }
    }

    /// Removes what is not the file.
    fn refuse<T>(&self, partial: &Path, detail: &str) -> Result<T, Error> {
        fs::remove_file(partial).map_err(Error::io("remove", partial))?;
        let (model, file) = (self.id.shown(), self.file.name.clone());
        Err(Error::Damaged { model, file, detail: detail.to_owned() })
    }
}

/// Whether an answer says that it begins at a byte.
fn begins_at(headers: &ureq::http::HeaderMap, start: u64) -> bool {
    let range = headers.get("content-range").and_then(|range| range.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {start}-")))
}

const MOST_FAILURES: u32 = 4;

const PAUSE: Duration = Duration::from_millis(300);

const PIECE_BYTES: usize = 1 << 18;
