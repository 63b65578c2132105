//! Writes into files that lie in memory by way of a map, where threads do not wait for one another.
//!
//! In: a file on a RAM disk, and bytes for places in it. The system lets one thread at a time write to a file: 2 GB/s on a RAM disk, whoever
//! writes. Pages of a map are filled by all threads at once, at 15 GB/s by eight of them, but made at a third of that, and no faster the more
//! threads there are; so [`Reserving`] makes them ahead, at 7 GB/s for a file. A disk is slower than all of that, and takes no harm by waiting.
#![expect(unsafe_code, reason = "memory maps cannot be made safe: another process may change the file")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use memmap2::{MmapOptions, MmapRaw};

/// A file that lies in memory, mapped whole. It must not be made shorter while it is mapped.
#[derive(Debug)]
pub(crate) struct MemoryFile {
    map: MmapRaw,
}

impl MemoryFile {
    /// Maps a file that is open for reading and writing; `None` where that fails.
    pub(crate) fn of(file: &File) -> Option<Self> {
        MmapOptions::new().map_raw(file).ok().map(|map| Self { map })
    }

    /// Writes bytes that nobody else writes or reads meanwhile; `false`, with nothing written, where there is no memory for them or they lie outside
    /// of the file: the system then says why.
    pub(crate) fn write(&self, bytes: &[u8], offset: u64) -> bool {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let is_within = start.checked_add(bytes.len()).is_some_and(|end| end <= self.map.len());
        // Pages are made first, which fails where a store would end the process.
        if !is_within || !make_pages(&self.map, start, bytes.len()) {
            return false;
        }
        // SAFETY: the range lies within the map, whose pages are there; nothing else in the process has a reference to them, and no two threads
        // write the same bytes, as the caller says.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.map.as_mut_ptr().add(start), bytes.len());
        }
        give_back(&self.map, start, bytes.len());
        true
    }
}

/// Threads that make the pages of files that lie in memory, before anything is written there. They end with it.
///
/// Where there is no memory left they stop, and whoever writes is told by the system.
#[derive(Debug)]
pub(crate) struct Reserving {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Reserving {
    /// Begins with files of these lengths, in their order.
    pub(crate) fn begin(files: Vec<(PathBuf, u64)>) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let count = cores.div_ceil(CORES_PER_RESERVER).min(files.len());
        let (stop, next, files) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(files));
        let threads = (0..count)
            .map(|_| {
                let (stop, next, files) = (Arc::clone(&stop), Arc::clone(&next), Arc::clone(&files));
                thread::spawn(move || {
                    while let Some((path, length)) = files.get(next.fetch_add(1, Relaxed)) {
                        reserve(path, *length, &stop);
                    }
                })
            })
            .collect();
        Self { stop, threads }
    }
}

impl Drop for Reserving {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            // One that has panicked has made fewer pages, and no harm.
            let _ = thread.join();
        }
    }
}

/// Cores for each thread that makes pages: making them takes a fraction of what it takes to fill them.
const CORES_PER_RESERVER: usize = 4;

/// Bytes that are made at once: others write to the file in between.
const RESERVED_AT_ONCE: u64 = 16 << 20;

#[cfg(target_os = "linux")]
fn reserve(path: &Path, length: u64, stop: &AtomicBool) {
    use rustix::fs::{FallocateFlags, fallocate};

    let Ok(file) = File::options().write(true).open(path) else { return };
    let mut start = 0;
    while start < length && !stop.load(Relaxed) {
        let bytes = RESERVED_AT_ONCE.min(length - start);
        if fallocate(&file, FallocateFlags::KEEP_SIZE, start, bytes).is_err() {
            return;
        }
        start += bytes;
    }
}

#[cfg(not(target_os = "linux"))]
fn reserve(_: &Path, _: u64, _: &AtomicBool) {}

/// Whether files in a folder lie in memory.
#[cfg(target_os = "linux")]
pub(crate) fn is_place_for(folder: &Path) -> bool {
    rustix::fs::statfs(folder).is_ok_and(|file_system| file_system.f_type == TMPFS)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn is_place_for(_: &Path) -> bool {
    false
}

/// What Linux calls a RAM disk (`TMPFS_MAGIC`).
#[cfg(target_os = "linux")]
const TMPFS: rustix::fs::FsWord = 0x0102_1994;

#[cfg(target_os = "linux")]
fn make_pages(map: &MmapRaw, start: usize, length: usize) -> bool {
    map.advise_range(memmap2::Advice::PopulateWrite, start, length).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn make_pages(_: &MmapRaw, _: usize, _: usize) -> bool {
    false
}

/// Takes pages out of this process's resident set, which the file keeps.
#[cfg(target_os = "linux")]
fn give_back(map: &MmapRaw, start: usize, length: usize) {
    // SAFETY: the map is shared, so that what was written is the file's: a dropped page comes back with the same content. A neighbour whose page
    // goes with the range finds it again.
    let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, length) };
}

#[cfg(not(target_os = "linux"))]
fn give_back(_: &MmapRaw, _: usize, _: usize) {}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::path::PathBuf;

    use super::*;

    /// A file of zeros of this length.
    fn file(folder: &Path, length: u64) -> (PathBuf, File) {
        let path = folder.join("file");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(length).unwrap();
        (path, file)
    }

    #[test]
    fn what_threads_write_side_by_side_is_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..100_003u32).map(|at| (at * 7 / 3) as u8).collect();
        let (path, handle) = file(folder.path(), bytes.len() as u64);
        let mapped = MemoryFile::of(&handle).unwrap();
        std::thread::scope(|scope| {
            // Pieces that share pages with their neighbours.
            for (at, piece) in bytes.chunks(1009).enumerate() {
                let mapped = &mapped;
                scope.spawn(move || assert!(mapped.write(piece, at as u64 * 1009)));
            }
        });
        assert_eq!(fs::read(path).unwrap(), bytes);
    }

    #[test]
    fn reserving_changes_no_byte_and_no_length() {
        let folder = tempfile::tempdir().unwrap();
        let (path, handle) = file(folder.path(), 50_000_000);
        let mapped = MemoryFile::of(&handle).unwrap();
        assert!(mapped.write(&[7; 100], 20_000_001));
        let reserving = Reserving::begin(vec![(path.clone(), 50_000_000), (folder.path().join("none"), 10)]);
        // At least once, however soon the pages are made.
        loop {
            assert!(mapped.write(&[8; 100], 40_000_001));
            if reserving.threads.iter().all(JoinHandle::is_finished) {
                break;
            }
        }
        drop(reserving);
        let found = fs::read(path).unwrap();
        assert_eq!(found.len(), 50_000_000);
        assert_eq!(
            (&found[20_000_000..20_000_102], &found[40_000_000..40_000_102]),
            (&around(7)[..], &around(8)[..])
        );
        assert_eq!(found.iter().filter(|&&byte| byte != 0).count(), 200);
    }

    /// A hundred times this byte between two zeros.
    fn around(byte: u8) -> Vec<u8> {
        [&[0][..], &[byte; 100], &[0]].concat()
    }

    #[test]
    fn nothing_is_written_outside_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let (path, handle) = file(folder.path(), 10);
        let mapped = MemoryFile::of(&handle).unwrap();
        assert!(!mapped.write(&[1; 4], 7));
        assert!(!mapped.write(&[1; 4], u64::MAX));
        assert_eq!(fs::read(path).unwrap(), [0; 10]);
    }

    #[test]
    fn a_page_that_cannot_be_made_is_no_crash() {
        let folder = tempfile::tempdir().unwrap();
        let (_, handle) = file(folder.path(), 1 << 16);
        let mapped = MemoryFile::of(&handle).unwrap();
        // The file ends before its pages do, as those of a full RAM disk are not there.
        handle.set_len(0).unwrap();
        assert!(!mapped.write(&[1; 100], 4096));
    }
}
