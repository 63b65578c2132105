//! Computes SHA-256 digests of input files and remembers them between runs.
//!
//! In: paths. Out: digests as 64 lower-case hexadecimal digits. A remembered digest is used only while the file's size,
//! times, inode and device are what they were. The memory is an optimisation: when it cannot be read or written, files are
//! hashed anew and nobody is told.

use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::file_state::{FileState, changed};
use crate::regular::{open, read_text};
use crate::replace::replace_file;

/// Digests of files, remembered in a JSON file. Usable from several threads at once.
#[derive(Debug)]
pub struct DigestCache {
    /// Where digests are remembered; nowhere when disabled.
    path: Option<PathBuf>,
    /// What is remembered, once it has been read.
    entries: Mutex<Option<Entries>>,
}

type Entries = IndexMap<String, Remembered>;

/// A digest and the state of the file that it was computed from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    state: FileState,
    sha256: String,
}

impl DigestCache {
    /// The user's own: `aludel/digests.json` in the folder that the system has for caches (`XDG_CACHE_HOME`, else
    /// `~/.cache`; `~/Library/Caches` on macOS; `LOCALAPPDATA` on Windows). Disabled where there is none.
    pub fn user() -> Self {
        match user_cache() {
            Some(folder) => Self::at(folder.join("digests.json")),
            None => Self::disabled(),
        }
    }

    /// Remembers digests in the file at `path`, which is created when the first digest is.
    pub fn at(path: PathBuf) -> Self {
        Self { path: Some(path), entries: Mutex::default() }
    }

    /// Remembers nothing.
    pub fn disabled() -> Self {
        Self { path: None, entries: Mutex::default() }
    }

    /// The SHA-256 of a file's content. `on_bytes` is called with the number of bytes after each piece that is read, and ends
    /// the reading by returning `Break`; for a remembered digest nothing is read and it is not called.
    ///
    /// Errors: [`Error::Stopped`] after a `Break`; [`Error::Io`]; [`Error::Unsupported`] when the path is no regular file; [`Error::Damaged`] when the file
    /// changes while it is read.
    pub fn sha256(
        &self,
        file: &Path,
        on_bytes: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<String, Error> {
        self.sha256_at(file, SystemTime::now(), on_bytes)
    }

    /// The digest of a file when it is remembered and the file has not changed since.
    pub fn remembered(&self, file: &Path) -> Option<String> {
        let path = file.canonicalize().ok()?;
        let state = FileState::of(&path.metadata().ok()?);
        self.recall(path.to_str()?, &state)
    }

    /// As [`DigestCache::sha256`], with the clock's reading given.
    fn sha256_at(
        &self,
        file: &Path,
        now: SystemTime,
        on_bytes: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<String, Error> {
        if let Some(sha256) = self.remembered(file) {
            return Ok(sha256);
        }
        let handle = open(file)?;
        let state_of =
            |handle: &File| Ok(FileState::of(&handle.metadata().map_err(Error::io("read", file))?));
        let before = state_of(&handle)?;
        let sha256 = hash(&handle, file, on_bytes)?;
        if state_of(&handle)? != before {
            return Err(changed(file));
        }
        if before.is_settled(now) {
            self.remember(file, Remembered { state: before, sha256: sha256.clone() });
        }
        Ok(sha256)
    }

    fn recall(&self, path: &str, state: &FileState) -> Option<String> {
        let cache = self.path.as_ref()?;
        let mut entries = self.lock();
        let entry = entries.get_or_insert_with(|| read_entries(cache)).get(path)?;
        (entry.state == *state).then(|| entry.sha256.clone())
    }

    fn remember(&self, file: &Path, entry: Remembered) {
        let Some(cache) = &self.path else { return };
        let Some(path) = file.canonicalize().ok().and_then(|path| path.to_str().map(str::to_owned)) else {
            return;
        };
        let mut entries = self.lock();
        // Read again: another process may have added to it meanwhile.
        let mut newest = read_entries(cache);
        newest.shift_remove(&path);
        newest.insert(path, entry);
        let excess = newest.len().saturating_sub(MOST_ENTRIES);
        newest.drain(..excess);
        let _ = write_entries(cache, &newest);
        *entries = Some(newest);
    }

    /// A thread that panicked leaves the entries as they were before or after a change, both of which are sound.
    fn lock(&self) -> MutexGuard<'_, Option<Entries>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hash(
    mut handle: &File,
    path: &Path,
    on_bytes: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<String, Error> {
    let mut hasher = Sha256::new();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let length = match handle.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        hasher.update(&piece[..length]);
        if on_bytes(length as u64).is_break() {
            return Err(Error::Stopped { path: path.to_path_buf() });
        }
    }
    Ok(hexadecimal(&hasher.finalize()))
}

/// Bytes, such as a digest's, as lower-case hexadecimal digits, the first byte first.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is remembered in the file; nothing when it is missing or damaged.
fn read_entries(cache: &Path) -> Entries {
    let text = read_text(cache, MOST_CACHE_BYTES).unwrap_or_default();
    let mut entries: Entries = serde_json::from_str(&text).unwrap_or_default();
    entries.retain(|_, entry| is_digest(&entry.sha256));
    entries
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn write_entries(cache: &Path, entries: &Entries) -> std::io::Result<()> {
    replace_file(cache, serde_json::to_string_pretty(entries)?.as_bytes())
}

/// The user's folder for what can be made again: `aludel` in the folder that the system has for caches. It need not exist.
pub fn user_cache() -> Option<PathBuf> {
    Some(cache_folder()?.join("aludel"))
}

fn cache_folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::home_dir().filter(|path| path.is_absolute());
    if cfg!(windows) {
        variable("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        home().map(|home| home.join("Library/Caches"))
    } else {
        variable("XDG_CACHE_HOME").or_else(|| home().map(|home| home.join(".cache")))
    }
}

const PIECE_BYTES: usize = 256 << 10;

const MOST_ENTRIES: usize = 4096;

/// Ten times what the most entries take.
const MOST_CACHE_BYTES: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    const OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// A clock at which every change made so far has settled.
    fn later() -> SystemTime {
        SystemTime::now() + Duration::from_secs(60)
    }

    /// The digest and the number of bytes read for it.
    fn digest(cache: &DigestCache, file: &Path, now: SystemTime) -> (String, u64) {
        let mut read = 0;
        let sha256 = cache
            .sha256_at(file, now, &mut |bytes| {
                read += bytes;
                ControlFlow::Continue(())
            })
            .unwrap();
        (sha256, read)
    }

    #[test]
    fn an_unchanged_file_is_read_once_also_by_another_process() {
        let folder = tempfile::tempdir().unwrap();
        let (file, memory) =
            (folder.path().join("weights"), folder.path().join("caches/aludel/digests.json"));
        fs::write(&file, "abc").unwrap();
        let cache = DigestCache::at(memory.clone());
        assert_eq!(cache.remembered(&file), None);
        assert_eq!(digest(&cache, &file, later()), (OF_ABC.into(), 3));
        assert_eq!(digest(&cache, &file, later()), (OF_ABC.into(), 0));
        assert_eq!(cache.remembered(&file).as_deref(), Some(OF_ABC));
        assert_eq!(digest(&DigestCache::at(memory), &file, later()), (OF_ABC.into(), 0));
    }

    #[test]
    fn a_changed_file_is_hashed_anew() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("weights");
        let cache = DigestCache::at(folder.path().join("digests.json"));
        fs::write(&file, "abd").unwrap();
        digest(&cache, &file, later());
        // Of the same length and with the same modification time: a copy that keeps times. The inode differs.
        let modified = file.metadata().unwrap().modified().unwrap();
        let copy = folder.path().join("copy");
        fs::write(&copy, "abc").unwrap();
        File::options().write(true).open(&copy).unwrap().set_modified(modified).unwrap();
        fs::rename(&copy, &file).unwrap();
        assert_eq!(digest(&cache, &file, later()), (OF_ABC.into(), 3));
        fs::write(&file, "").unwrap();
        assert_eq!(digest(&cache, &file, later()), (OF_NOTHING.into(), 0));
    }

    /// A second change within the same tick of the file system's clock would not show, so a fresh file is not remembered.
    #[test]
    fn a_file_that_has_just_changed_is_not_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("weights");
        fs::write(&file, "abc").unwrap();
        let cache = DigestCache::at(folder.path().join("digests.json"));
        let written = file.metadata().unwrap().modified().unwrap();
        for _ in 0..2 {
            assert_eq!(digest(&cache, &file, written + Duration::from_secs(1)), (OF_ABC.into(), 3));
        }
        assert_eq!(cache.remembered(&file), None);
    }

    #[test]
    fn a_damaged_memory_is_ignored_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (file, memory) = (folder.path().join("weights"), folder.path().join("digests.json"));
        fs::write(&file, "abc").unwrap();
        for content in ["", "{", "[]", r#"{"x": 3}"#, "\u{0}"] {
            fs::write(&memory, content).unwrap();
            assert_eq!(
                digest(&DigestCache::at(memory.clone()), &file, later()),
                (OF_ABC.into(), 3),
                "{content:?}"
            );
            assert_eq!(
                digest(&DigestCache::at(memory.clone()), &file, later()),
                (OF_ABC.into(), 0),
                "{content:?}"
            );
        }
        let forged = fs::read_to_string(&memory).unwrap().replace(OF_ABC, "../../etc");
        fs::write(&memory, forged).unwrap();
        assert_eq!(digest(&DigestCache::at(memory), &file, later()), (OF_ABC.into(), 3));
    }

    #[test]
    fn where_nothing_can_be_remembered_files_are_hashed_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("weights");
        fs::write(&file, "abc").unwrap();
        let below_a_file = DigestCache::at(file.join("digests.json"));
        assert_eq!(digest(&below_a_file, &file, later()), (OF_ABC.into(), 3));
        let disabled = DigestCache::disabled();
        for _ in 0..2 {
            assert_eq!(digest(&disabled, &file, later()), (OF_ABC.into(), 3));
        }
    }

    #[test]
    fn two_processes_keep_what_the_other_remembers() {
        let folder = tempfile::tempdir().unwrap();
        let memory = folder.path().join("digests.json");
        let (first, second) = (DigestCache::at(memory.clone()), DigestCache::at(memory.clone()));
        let files = ["a", "b", "c"].map(|name| folder.path().join(name));
        for (file, cache) in files.iter().zip([&first, &second, &first]) {
            fs::write(file, "abc").unwrap();
            digest(cache, file, later());
        }
        let third = DigestCache::at(memory);
        assert_eq!(files.map(|file| third.remembered(&file)), [(); 3].map(|()| Some(OF_ABC.to_owned())));
    }

    #[test]
    fn several_threads_share_one_memory() {
        let folder = tempfile::tempdir().unwrap();
        let cache = DigestCache::at(folder.path().join("digests.json"));
        let files: Vec<PathBuf> = (0..8).map(|number| folder.path().join(number.to_string())).collect();
        for file in &files {
            fs::write(file, "abc").unwrap();
        }
        std::thread::scope(|scope| {
            for file in &files {
                scope.spawn(|| assert_eq!(digest(&cache, file, later()), (OF_ABC.into(), 3)));
            }
        });
        for file in &files {
            assert_eq!(cache.remembered(file).as_deref(), Some(OF_ABC));
        }
    }

    #[test]
    fn the_oldest_digests_are_forgotten_first() {
        let folder = tempfile::tempdir().unwrap();
        let memory = folder.path().join("digests.json");
        let state = FileState { bytes: 0, modified_ns: 0, changed_ns: 0, inode: 0, device: 0 };
        let old =
            (0..MOST_ENTRIES).map(|number| (number.to_string(), Remembered { state, sha256: OF_ABC.into() }));
        write_entries(&memory, &old.collect()).unwrap();
        let file = folder.path().join("weights");
        fs::write(&file, "").unwrap();
        digest(&DigestCache::at(memory.clone()), &file, later());
        let entries = read_entries(&memory);
        assert_eq!(entries.len(), MOST_ENTRIES);
        assert!(!entries.contains_key("0") && entries.contains_key("1"));
        assert_eq!(entries.last().unwrap().1.sha256, OF_NOTHING);
    }

    #[test]
    fn pieces_are_counted_to_the_files_length() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("weights");
        fs::write(&file, vec![7; 2 * PIECE_BYTES + 5]).unwrap();
        let mut pieces = Vec::new();
        DigestCache::disabled()
            .sha256(&file, &mut |bytes| {
                pieces.push(bytes);
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(pieces, [PIECE_BYTES as u64, PIECE_BYTES as u64, 5]);
    }
}
