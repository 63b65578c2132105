//! Replaces small files at once: whoever reads meets the old content or the new, and a program that is killed leaves no half of one.
//!
//! In: a path, and all of its content. Out: the file. It is written beside its place and renamed; a file that has to outlast a power cut is
//! the business of `folder` and `journal`.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

/// Puts a file there, in folders that are made where they are missing.
///
/// # Errors
/// What the system says.
pub fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(content)?;
    file.persist(path)?;
    Ok(())
}
