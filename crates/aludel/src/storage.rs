//! Lets caches lie in object storage: what is written is put there file by file, what is read is fetched once.
//!
//! In: the path of a cache, which may be an address. Out: a folder of this machine with the same files, or a shelf that puts them where the
//! address says. Fetched files are kept under the user's folder for caches, by the digest of their `cache.json`: a cache whose files never
//! change is fetched once. Each shard is held against its checksum when it comes.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aludel_cache::{Error, Shelf, check_shard, is_file_of_cache};
use aludel_checkpoint::{hexadecimal, user_cache};
use aludel_document::Problem;
use aludel_storage::{Address, Object, Storage};
use sha2::{Digest, Sha256};

use crate::failure::Refusal;
use crate::printer::Printer;
use crate::progress::{Progress, Stage};

/// Where a capture puts its files.
pub(crate) struct Place {
    /// Where the file that grows lies; without a shelf also the complete ones.
    pub(crate) folder: PathBuf,
    /// Where the complete ones are put.
    pub(crate) shelf: Option<Arc<dyn Shelf>>,
}

/// The place of a path or address.
pub(crate) fn place(path: &Path) -> Result<Place, Refusal> {
    let Some(storage) = storage(path)? else { return Ok(Place { folder: path.to_path_buf(), shelf: None }) };
    let folder = folder()?.join("growing").join(name(&storage.id()));
    Ok(Place { folder, shelf: Some(Arc::new(StorageShelf(storage))) })
}

/// The folder of a cache, fetched where its path is an address.
pub(crate) fn local(path: &Path, printer: &Printer) -> Result<PathBuf, Refusal> {
    let Some(storage) = storage(path)? else { return Ok(path.to_path_buf()) };
    let objects = storage.list().map_err(refused)?;
    let objects: Vec<Object> = objects.into_iter().filter(|object| is_file_of_cache(&object.name)).collect();
    let Some(header) = objects.iter().find(|object| object.name == HEADER && object.bytes <= LONGEST_HEADER)
    else {
        let message = format!("{} is not a teacher cache: it has no {HEADER}", storage.address());
        return Err(problem(Problem::general(message).with_hint("make one by `aludel cache capture`")));
    };
    let header = storage.range(HEADER, 0..header.bytes).map_err(refused)?;
    let folder = folder()?.join("fetched").join(name(&storage.id())).join(name(&header));
    fs::create_dir_all(&folder)
        .map_err(|error| refused(format!("cannot create {}: {error}", folder.display())))?;
    let progress = Progress::new(printer);
    let total = objects.iter().map(|object| object.bytes).sum();
    let mut done = 0;
    for object in &objects {
        let mut show = |bytes| progress.show(Stage::bytes("fetching", done + bytes, total));
        fetch(&storage, object, &folder, &mut show)?;
        done += object.bytes;
    }
    Ok(folder)
}

/// Fetches a file unless it is there.
fn fetch(
    storage: &Storage,
    object: &Object,
    folder: &Path,
    on_bytes: &mut dyn FnMut(u64),
) -> Result<(), Refusal> {
    let path = folder.join(&object.name);
    if path.metadata().is_ok_and(|metadata| metadata.len() == object.bytes) {
        return Ok(());
    }
    let checked = |on_bytes: &mut dyn FnMut(u64)| {
        storage.fetch(&object.name, folder, on_bytes).map_err(refused)?;
        if !object.name.ends_with(".shard") {
            return Ok(());
        }
        check_shard(&path).map_err(|error| {
            let _ = fs::remove_file(&path); // Nobody shall take it for a sound one.
            refused(format!("{}/{} came damaged: {error}", storage.address(), object.name))
        })
    };
    // What the way has damaged comes sound the second time.
    checked(&mut *on_bytes).or_else(|_| checked(&mut *on_bytes))
}

fn storage(path: &Path) -> Result<Option<Storage>, Refusal> {
    open(path).map_err(refused)
}

/// The storage of an address; `None` for a path.
pub(crate) fn open(path: &Path) -> Result<Option<Storage>, aludel_storage::Error> {
    let address = path.to_str().map(Address::parse).transpose()?.flatten();
    address.map(Storage::open).transpose()
}

/// The folder of this machine for what lies in storage.
pub(crate) fn folder() -> Result<PathBuf, Refusal> {
    let none = "there is no folder for what is fetched: set HOME or XDG_CACHE_HOME";
    Ok(user_cache().ok_or_else(|| refused(none))?.join("storage"))
}

/// A name for a folder.
pub(crate) fn name(of: &[u8]) -> String {
    hexadecimal(&Sha256::digest(of)[..12])
}

pub(crate) fn refused(error: impl ToString) -> Refusal {
    problem(Problem::general(error.to_string()))
}

pub(crate) fn problem(problem: Problem) -> Refusal {
    Refusal { recipe: None, problems: problem.into() }
}

/// Object storage as a shelf.
#[derive(Debug)]
struct StorageShelf(Storage);

impl Shelf for StorageShelf {
    fn place(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("{}/{name}", self.0.address()))
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        self.0.create(name, bytes.to_vec()).map(drop).map_err(elsewhere)
    }

    fn length(&self, name: &str) -> Result<Option<u64>, Error> {
        self.0.length(name).map_err(elsewhere)
    }

    fn range(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, Error> {
        self.0.range(name, range).map_err(elsewhere)
    }

    fn take(&self, path: &Path, name: &str) -> Result<(), Error> {
        if !self.0.upload(name, path).map_err(elsewhere)? && !self.holds(path, name)? {
            let detail =
                "another file of its name is there: another process captures the same part".to_owned();
            return Err(Error::Damaged { file: self.place(name), detail });
        }
        fs::remove_file(path).map_err(|source| Error::Io {
            action: "remove",
            path: path.to_path_buf(),
            source,
        })
    }
}

impl StorageShelf {
    /// Whether a file is what is there already: an upload whose answer was lost. Shards end with the checksum of all their bytes.
    fn holds(&self, path: &Path, name: &str) -> Result<bool, Error> {
        let own = fs::read(path).map_err(|source| Error::Io {
            action: "read",
            path: path.to_path_buf(),
            source,
        })?;
        let length = own.len() as u64;
        if self.length(name)? != Some(length) {
            return Ok(false);
        }
        let end = length.saturating_sub(64)..length;
        Ok(self.range(name, end.clone())? == own[end.start as usize..])
    }
}

fn elsewhere(error: aludel_storage::Error) -> Error {
    Error::Elsewhere { source: Box::new(error) }
}

const HEADER: &str = "cache.json";

const LONGEST_HEADER: u64 = 16 << 20;
