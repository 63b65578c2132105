//! Asks a file system how much can still be written to it.

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::staging;

/// Bytes that an unprivileged user can still write to the file system that holds `path`, or, where that does not exist
/// yet, its nearest existing parent; `None` on systems other than Unix, where a full disk shows while writing.
///
/// Errors: [`Error::Io`].
pub fn free_space(path: &Path) -> Result<Option<u64>, Error> {
    let absolute = std::path::absolute(path).map_err(Error::io("resolve", path))?;
    let existing =
        absolute.ancestors().find(|part| part.exists()).map_or_else(|| PathBuf::from("/"), PathBuf::from);
    free_at(&existing)
}

/// Bytes that an output at `target` may take: those that are free, and those of what runs that died have staged for it, which is gone on with or
/// removed; `None` as for [`free_space`].
///
/// Errors: [`Error::Io`].
pub fn free_for_output(target: &Path) -> Result<Option<u64>, Error> {
    let Some(free) = free_space(target)? else { return Ok(None) };
    Ok(Some(free.saturating_add(staging::stale_bytes(target)?)))
}

#[cfg(unix)]
fn free_at(path: &Path) -> Result<Option<u64>, Error> {
    let statistics = rustix::fs::statvfs(path)
        .map_err(|errno| Error::io("read the free space at", path)(std::io::Error::from(errno)))?;
    Ok(Some(statistics.f_bavail.saturating_mul(statistics.f_frsize)))
}

#[cfg(not(unix))]
fn free_at(_: &Path) -> Result<Option<u64>, Error> {
    Ok(None)
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    /// What `df` says is available at a path, in bytes.
    fn available(path: &Path) -> u64 {
        let output = std::process::Command::new("df").arg("-Pk").arg(path).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().last().unwrap().split_whitespace().nth(3).unwrap().parse::<u64>().unwrap() * 1024
    }

    #[test]
    fn what_a_run_that_died_has_staged_counts_as_free() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        assert_eq!(staging::stale_bytes(&target).unwrap(), 0);
        // No process has this number; of another output nothing counts.
        for name in [".out.partial-2147483647", ".other.partial-2147483647"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(name).join("a"), vec![1; 100_000]).unwrap();
        }
        let held = staging::stale_bytes(&target).unwrap();
        assert!((100_000..200_000).contains(&held), "{held}");
    }

    #[test]
    fn a_path_that_does_not_exist_yet_is_asked_of_its_parent() {
        let folder = tempfile::tempdir().unwrap();
        let expected = available(folder.path());
        for path in [folder.path(), &folder.path().join("not/yet/there")] {
            let free = free_space(path).unwrap().unwrap();
            // Other processes write meanwhile, so the answers need not be equal to the byte.
            assert!(free.abs_diff(expected) < expected / 4, "{free} where df says {expected}");
        }
    }
}
