//! Keeps one folder for each thread, emptied for every case: making folders anew would take longer than what is tried.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

thread_local! {
    static HOME: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

/// A folder with these files and nothing else; a name may lie in a subfolder.
///
/// # Panics
/// Where the folder for temporary files cannot be written.
pub(crate) fn folder(files: &[(&str, &[u8])]) -> PathBuf {
    HOME.with_borrow_mut(|home| {
        let home = home.get_or_insert_with(|| tempfile::tempdir().expect("a folder for temporary files"));
        for entry in std::fs::read_dir(home.path()).expect("a folder that can be read").flatten() {
            remove(&entry.path());
        }
        for (name, bytes) in files {
            let path = home.path().join(name);
            let parent = path.parent().unwrap_or(home.path());
            std::fs::create_dir_all(parent).expect("a folder that can be written");
            std::fs::write(&path, bytes).expect("a file that can be written");
        }
        home.path().to_path_buf()
    })
}

fn remove(path: &Path) {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    removed.expect("a file that can be removed");
}

/// A file of the repository.
///
/// # Panics
/// Where there is none.
pub(crate) fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Several files in one input: what stands between bytes of 0; of those that are missing, nothing.
pub(crate) fn parts<const N: usize>(bytes: &[u8]) -> [&[u8]; N] {
    let mut parts = bytes.splitn(N, |&byte| byte == 0);
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

/// Several files as one input.
pub(crate) fn joined(files: &[&[u8]]) -> Vec<u8> {
    files.join(&0)
}

/// The names of what lies in a folder of these files.
///
/// # Panics
/// Where it cannot be read.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder that can be read");
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
