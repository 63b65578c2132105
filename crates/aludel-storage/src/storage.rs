//! Lists, reads and puts the files of an address.
//!
//! In: an address. Out: its files. A file that is created is put there once: whoever comes second is told that it is there, by a condition that
//! the storage checks itself. A file of any length is put there in parts, and seen when all of it is there. A file that is fetched has its name
//! only when it is complete.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::path::Path as Key;
use object_store::{
    BackoffConfig, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig,
};
use tempfile::NamedTempFile;
use tokio::runtime::{Builder, Runtime};

use crate::address::Address;
use crate::connection::Connector;
use crate::error::Error;
use crate::settings::Settings;

/// The files of an address.
#[derive(Debug)]
pub struct Storage {
    address: Address,
    endpoint: String,
    store: AmazonS3,
    runtime: Runtime,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Without the prefix of the address.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// What the storage tells its content from another by: its tag, or when it was put there.
    pub version: String,
}

/// Files that are created are put there whole and from memory, and none is longer than this.
pub const MOST_BYTES: u64 = 1 << 30;

impl Storage {
    /// Reads the environment; nothing is sent.
    ///
    /// # Errors
    /// [`Error::Settings`], with the variable that is missing or wrong.
    pub fn open(address: Address) -> Result<Self, Error> {
        let text =
            |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
        Self::with(address, &std::env::vars_os().filter_map(text).collect())
    }

    /// The same with these variables in the place of the environment.
    ///
    /// # Errors
    /// As [`Storage::open`].
    pub fn with(address: Address, variables: &BTreeMap<String, String>) -> Result<Self, Error> {
        let settings = Settings::read(&address, variables)?;
        let fault = |detail: String| Error::Settings { address: address.to_string(), detail };
        let is_plain = settings.endpoint.as_ref().is_some_and(|url| url.starts_with("http://"));
        let mut builder = AmazonS3Builder::new();
        for (name, value) in variables.iter().filter(|(name, _)| name.starts_with("AWS_")) {
            // Variables that mean nothing to a client are none of its keys.
            if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
                builder = builder.with_config(key, value);
            }
        }
        builder = builder
            .with_bucket_name(address.bucket())
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            // Not every storage knows how to remove several at once.
            .with_disable_bulk_delete(true)
            .with_retry(retries())
            .with_http_connector(Connector);
        if let Some(endpoint) = &settings.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if is_plain {
            builder = builder.with_allow_http(true);
        }
        let store = builder.build().map_err(|error| fault(chain(&error)))?;
        let runtime = Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(|error| fault(error.to_string()))?;
        let endpoint = settings.endpoint.unwrap_or_else(|| "AWS".to_owned());
        Ok(Self { address, endpoint, store, runtime })
    }

    /// Its address.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What tells it from every other: where it is asked, and the address.
    pub fn id(&self) -> Vec<u8> {
        format!("{}\n{}", self.endpoint, self.address).into_bytes()
    }

    /// Its files directly under the prefix, by name.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Absent`] for the bucket, [`Error::Unreachable`].
    pub fn list(&self) -> Result<Vec<Object>, Error> {
        let prefix = Key::from(self.address.prefix());
        let prefix = (!self.address.prefix().is_empty()).then_some(&prefix);
        let found = self.runtime.block_on(self.store.list(prefix).try_collect::<Vec<_>>());
        let found = found.map_err(|error| self.failed("list", &self.address.to_string(), &error))?;
        let start = self.address.key("");
        let version =
            |tag: Option<String>, time: &dyn std::fmt::Display| tag.unwrap_or_else(|| time.to_string());
        let objects: BTreeMap<String, (u64, String)> = found
            .into_iter()
            .filter_map(|object| {
                let name = object.location.as_ref().strip_prefix(&start)?;
                let version = version(object.e_tag.clone(), &object.last_modified);
                (!name.contains('/')).then(|| (name.to_owned(), (object.size, version)))
            })
            .collect();
        let object = |(name, (bytes, version))| Object { name, bytes, version };
        Ok(objects.into_iter().map(object).collect())
    }

    /// The length of a file; `None` where there is none.
    ///
    /// # Errors
    /// As [`Storage::list`].
    pub fn length(&self, name: &str) -> Result<Option<u64>, Error> {
        match self.runtime.block_on(self.store.head(&self.key(name))) {
            Ok(object) => Ok(Some(object.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("read", &self.shown(name), &error)),
        }
    }

    /// Some bytes of a file.
    ///
    /// # Errors
    /// As [`Storage::list`], and [`Error::Absent`] for the file.
    pub fn range(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, Error> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let length = range.end - range.start;
        let read = self.runtime.block_on(self.store.get_range(&self.key(name), range));
        let bytes = read.map_err(|error| self.failed("read", &self.shown(name), &error))?;
        if bytes.len() as u64 != length {
            return Err(self.unreachable("read", name, "it answers with fewer bytes than were asked for"));
        }
        Ok(bytes.into())
    }

    /// Fetches a file into a folder, under its own name there once it is complete. `on_bytes` is told how many bytes are there.
    ///
    /// # Errors
    /// As [`Storage::range`]; [`Error::Io`].
    pub fn fetch(&self, name: &str, folder: &Path, on_bytes: &mut dyn FnMut(u64)) -> Result<(), Error> {
        let path = folder.join(name);
        let mut file = NamedTempFile::new_in(folder).map_err(Error::io("create a file in", folder))?;
        let failed = |error: &object_store::Error| self.failed("read", &self.shown(name), error);
        self.runtime.block_on(async {
            let answer = self.store.get(&self.key(name)).await.map_err(|error| failed(&error))?;
            let (expected, mut done) = (answer.meta.size, 0);
            let mut stream = answer.into_stream();
            while let Some(piece) = stream.next().await {
                let piece: Bytes = piece.map_err(|error| failed(&error))?;
                file.write_all(&piece).map_err(Error::io("write", &path))?;
                done += piece.len() as u64;
                on_bytes(done);
            }
            if done == expected {
                Ok(())
            } else {
                Err(self.unreachable("read", name, &format!("{done} of {expected} bytes came")))
            }
        })?;
        file.persist(&path).map_err(|error| Error::io("create", &path)(error.error))?;
        Ok(())
    }

    /// Puts a file there unless there is one of its name; whether there was none.
    ///
    /// # Errors
    /// As [`Storage::list`].
    pub fn create(&self, name: &str, bytes: Vec<u8>) -> Result<bool, Error> {
        if bytes.len() as u64 > MOST_BYTES {
            return Err(self.unreachable(
                "write",
                name,
                "it is longer than 1 GiB, the most that is put there at once",
            ));
        }
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let payload = PutPayload::from(bytes);
        match self.runtime.block_on(self.store.put_opts(&self.key(name), payload, options)) {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Ok(false)
            }
            Err(error) => Err(self.failed("write", &self.shown(name), &error)),
        }
    }

    /// As [`Storage::create`], of a file on disk.
    ///
    /// # Errors
    /// As [`Storage::create`]; [`Error::Io`].
    pub fn upload(&self, name: &str, path: &Path) -> Result<bool, Error> {
        self.create(name, fs::read(path).map_err(Error::io("read", path))?)
    }

    /// Puts a file of any length there, in the place of one of its name; it is seen when all of it is there. No more of it than one part is held
    /// in memory. `on_bytes` is told how many bytes are there.
    ///
    /// # Errors
    /// As [`Storage::list`]; [`Error::Io`].
    pub fn put(&self, name: &str, path: &Path, on_bytes: &mut dyn FnMut(u64)) -> Result<(), Error> {
        let read = |error| Error::io("read", path)(error);
        let mut file = fs::File::open(path).map_err(read)?;
        let bytes = file.metadata().map_err(read)?.len();
        let failed = |error: object_store::Error| self.failed("write", &self.shown(name), &error);
        if bytes <= PART_BYTES {
            let payload = PutPayload::from(fs::read(path).map_err(read)?);
            self.runtime.block_on(self.store.put(&self.key(name), payload)).map_err(failed)?;
            on_bytes(bytes);
            return Ok(());
        }
        // A file has 10,000 parts at the most.
        let part = PART_BYTES.max(bytes.div_ceil(10_000).next_multiple_of(1 << 20));
        self.runtime.block_on(async {
            let mut upload = self.store.put_multipart(&self.key(name)).await.map_err(failed)?;
            let mut done = 0;
            while done < bytes {
                let mut piece = vec![0; part.min(bytes - done) as usize];
                let sent = match file.read_exact(&mut piece) {
                    Ok(()) => upload.put_part(PutPayload::from(piece)).await.map_err(failed),
                    Err(error) => Err(read(error)),
                };
                if let Err(error) = sent {
                    // What is there of it costs its owner; where even this fails, the bucket's rules remove it some day.
                    let _ = upload.abort().await;
                    return Err(error);
                }
                done = bytes.min(done + part);
                on_bytes(done);
            }
            upload.complete().await.map(drop).map_err(failed)
        })
    }

    /// Removes a file; nothing happens where there is none.
    ///
    /// # Errors
    /// As [`Storage::list`].
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        match self.runtime.block_on(self.store.delete(&self.key(name))) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("write", &self.shown(name), &error)),
        }
    }

    fn key(&self, name: &str) -> Key {
        Key::from(self.address.key(name))
    }

    fn shown(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    fn unreachable(&self, action: &'static str, name: &str, detail: &str) -> Error {
        let (address, endpoint) = (self.shown(name), self.endpoint.clone());
        Error::Unreachable { address, action, endpoint, detail: detail.to_owned() }
    }

    fn failed(&self, action: &'static str, address: &str, error: &object_store::Error) -> Error {
        let (address, detail) = (address.to_owned(), chain(error));
        match error {
            object_store::Error::NotFound { .. } => {
                let hint = "there is no such bucket or object; see whether AWS_ENDPOINT_URL and AWS_REGION are those of the bucket";
                Error::Absent { address, detail: hint.to_owned() }
            }
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                Error::Refused { address, action, detail }
            }
            // A list that is refused is told by its text alone.
            _ if detail.contains("403 Forbidden") || detail.contains("401 Unauthorized") => {
                Error::Refused { address, action, detail }
            }
            _ => Error::Unreachable { address, action, endpoint: self.endpoint.clone(), detail },
        }
    }
}

/// Bytes of a part; S3 takes none below 5 MiB but the last.
const PART_BYTES: u64 = 8 << 20;

fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(10),
            base: 2.0,
        },
        max_retries: 5,
        retry_timeout: Duration::from_secs(120),
    }
}

/// An error with those behind it, on one line that is not long.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(600).collect();
    line
}
