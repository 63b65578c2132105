//! Makes a disk cold and slow, so that what overlaps with reading from it can be measured on any machine.
//!
//! In: files, and a rate. Out: their pages dropped from the page cache, and a control group in which commands read no faster. Linux only,
//! and only for whoever may make control groups.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// Drops the pages of files from the page cache.
///
/// Errors: `dd` is not GNU's, or fails.
pub(crate) fn uncache(files: &[PathBuf]) -> anyhow::Result<()> {
    for file in files {
        let mut dd = Command::new("dd");
        dd.arg(format!("if={}", file.display())).args(["iflag=nocache", "count=0", "status=none"]);
        ensure!(dd.status().context("cannot start dd")?.success(), "dd did not uncache {}", file.display());
    }
    Ok(())
}

/// A control group whose commands read so many bytes a second from one disk; removed when it is dropped.
pub(crate) struct SlowDisk {
    folder: PathBuf,
}

impl SlowDisk {
    /// Slows the disk down that `path` is on.
    ///
    /// Errors: there are no control groups here, or they are not ours to make.
    pub(crate) fn of(path: &Path, bytes_per_second: u64) -> anyhow::Result<Self> {
        let device = fs::metadata(path)?.dev();
        let device = format!("{}:{}", (device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
        let (root, file, limit) = if Path::new(FIRST_VERSION).is_dir() {
            (FIRST_VERSION, "blkio.throttle.read_bps_device", format!("{device} {bytes_per_second}"))
        } else {
            (SECOND_VERSION, "io.max", format!("{device} rbps={bytes_per_second}"))
        };
        let folder = Path::new(root).join(format!("aludel-bench-{}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let slow = Self { folder };
        let at = slow.folder.join(file);
        fs::write(&at, limit).with_context(|| format!("cannot write {}", at.display()))?;
        Ok(slow)
    }

    /// The command that runs these words in the group.
    pub(crate) fn wrap(&self, words: Vec<OsString>) -> Vec<OsString> {
        let members = self.folder.join("cgroup.procs");
        let script = format!("echo $$ > {} && exec \"$@\"", members.display());
        ["sh", "-c", &script, "sh"].into_iter().map(OsString::from).chain(words).collect()
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}

const FIRST_VERSION: &str = "/sys/fs/cgroup/blkio";
const SECOND_VERSION: &str = "/sys/fs/cgroup";
