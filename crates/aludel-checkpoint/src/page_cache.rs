//! Keeps files that are passed over once from driving everything else out of the page cache.
//!
//! In: places in files that have been written, or will not be read again. Out: advice to the system, which it is free to ignore; no
//! content depends on it. Only Linux is advised.

use std::fs::File;
use std::ops::Range;

/// Sends what has just been written to the disk, without waiting for it, and drops what was written so long before that it is there.
pub(crate) fn leave_behind(file: &File, written: &Range<u64>) {
    // The advice starts the write-back of dirty pages, and drops clean ones.
    drop_pages(file, written);
    let behind = written.start.saturating_sub(BEHIND)..written.end.saturating_sub(BEHIND);
    drop_pages(file, &behind);
}

/// Bytes between what is being written and what is dropped: what a disk takes in a fraction of a second.
const BEHIND: u64 = 64 << 20;

/// Drops the pages of a range that are clean and mapped by nobody, and starts the write-back of dirty ones.
#[cfg(target_os = "linux")]
pub(crate) fn drop_pages(file: &File, range: &Range<u64>) {
    use rustix::fs::{Advice, fadvise};

    // A length of zero would be the rest of the file.
    if let Some(length) = std::num::NonZeroU64::new(range.end.saturating_sub(range.start)) {
        let _ = fadvise(file, range.start, Some(length), Advice::DontNeed);
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn drop_pages(_: &File, _: &Range<u64>) {}
