//! Maps weight files into memory and hands out windows of their bytes without copying.
//!
//! In: a [`Checkpoint`]. Out: `&[u8]` windows, and hints to the kernel about pages that will or will not be needed.
//! Opening reads nothing. It interprets no bytes.
#![expect(unsafe_code, reason = "memory maps cannot be made safe: another process may change the file")]

use std::fs::File;
use std::ops::Range;

use memmap2::Mmap;

use crate::checkpoint::{Checkpoint, TensorEntry, WeightFile};
use crate::error::Error;
use crate::mapped_file::map_whole;
use crate::page_cache::drop_pages;
use crate::regular::open;

/// Read-only shared maps of every weight file of a checkpoint.
///
/// The files must not be truncated or rewritten while they are mapped: bytes would change under the reader, and touching
/// a page past a new end of file kills the process. Replacing a file by renaming another onto it is harmless.
#[derive(Debug)]
pub struct WeightMap {
    /// One per file of the checkpoint, in the same order.
    maps: Vec<Mmap>,
    /// The files themselves, as few bytes are read faster than a page is mapped.
    files: Vec<File>,
}

impl WeightMap {
    /// Bytes of the smallest piece that is given back: what a thread has resident of a file may reach this far beyond its
    /// window on either side.
    pub const RELEASED_AT_ONCE: u64 = 2 << 20;

    /// Maps every weight file; reads nothing.
    ///
    /// Errors: [`Error::Io`]; [`Error::Damaged`] when a file's length has changed since the checkpoint was opened.
    pub fn open(checkpoint: &Checkpoint) -> Result<Self, Error> {
        let (mut maps, mut files) = (Vec::new(), Vec::new());
        for file in checkpoint.files() {
            let (map, handle) = map_file(file)?;
            maps.push(map);
            files.push(handle);
        }
        Ok(Self { maps, files })
    }

    /// The bytes `range` of `tensor`, counted from the tensor's first byte.
    ///
    /// # Panics
    /// When `range` leaves the tensor or `tensor` is not of the checkpoint that was mapped.
    pub fn bytes(&self, tensor: &TensorEntry, range: Range<u64>) -> &[u8] {
        &self.maps[tensor.file][window(tensor, range)]
    }

    /// Copies the bytes `range` of `tensor`, for a few bytes out of many places: a system call costs less there than a page
    /// fault and giving the page back, and leaves nothing mapped.
    ///
    /// # Panics
    /// As [`WeightMap::bytes`], and when `to` is not as long as the range.
    pub fn copy(&self, tensor: &TensorEntry, range: Range<u64>, to: &mut [u8]) {
        let bytes = self.bytes(tensor, range.clone());
        assert_eq!(bytes.len(), to.len(), "a buffer of another length than the range");
        // A failure to read shows itself through the map as it would at any other byte.
        if !read_at(&self.files[tensor.file], to, tensor.offset + range.start) {
            to.copy_from_slice(bytes);
        }
    }

    /// Asks the system to read a range of a file from now on, without waiting for it. Best effort, as all that follows: a refusal changes
    /// speed only and is not reported, and a range may reach beyond the file.
    pub fn request(&self, file: usize, range: &Range<u64>) {
        let (map, range) = self.range(file, range);
        if !range.is_empty() {
            advise_needed(map, range);
        }
    }

    /// Waits until a range of a file is read and maps it, so that whoever computes on it neither waits nor faults.
    pub fn load(&self, file: usize, range: &Range<u64>) {
        let (map, range) = self.range(file, range);
        if !range.is_empty() {
            advise_populate(map, range);
        }
    }

    /// Says that nothing is read but what is asked for: a fault then reads no more than its page.
    pub fn read_as_asked(&self) {
        self.maps.iter().filter(|map| !map.is_empty()).for_each(advise_random);
    }

    /// As [`WeightMap::release`], for a range of a file.
    pub fn release_range(&self, file: usize, range: &Range<u64>) {
        let (map, range) = self.range(file, range);
        if !range.is_empty() {
            advise_not_needed(map, whole_clusters(map, range));
        }
    }

    /// Drops a range of a file from the page cache, as far as nobody has it mapped.
    pub fn leave_cache(&self, file: usize, range: &Range<u64>) {
        drop_pages(&self.files[file], range);
    }

    /// Drops the pages that hold these bytes from this process's resident set; the content stays in the page cache and
    /// a later access faults it in again. Neighbours within the same 2 MiB go with the range. Best effort.
    ///
    /// # Panics
    /// As [`WeightMap::bytes`].
    pub fn release(&self, tensor: &TensorEntry, range: Range<u64>) {
        let (map, window) = self.window(tensor, range);
        if !window.is_empty() {
            advise_not_needed(map, whole_clusters(map, window));
        }
    }

    /// As [`WeightMap::release`], for a range that is being passed piece by piece: pages that hold bytes at or after its end
    /// stay, and go with the next piece. So threads that work side by side do not take each other's pages away.
    ///
    /// # Panics
    /// As [`WeightMap::bytes`].
    pub fn release_passed(&self, tensor: &TensorEntry, range: Range<u64>) {
        let (map, window) = self.window(tensor, range);
        let passed = passed_clusters(map, window);
        if !passed.is_empty() {
            advise_not_needed(map, passed);
        }
    }

    /// The map of a file, and the part of the range that it has.
    fn range(&self, file: usize, range: &Range<u64>) -> (&Mmap, Range<usize>) {
        let map = &self.maps[file];
        let within = |at: u64| at.min(map.len() as u64) as usize;
        (map, within(range.start)..within(range.end))
    }

    /// The map of the tensor's file, and the range as one of it.
    fn window(&self, tensor: &TensorEntry, range: Range<u64>) -> (&Mmap, Range<usize>) {
        let map = &self.maps[tensor.file];
        let window = window(tensor, range);
        assert!(window.end <= map.len(), "the window ends at {} of {} bytes", window.end, map.len());
        (map, window)
    }
}

/// Fills `to` from a place in the file; `false` where that fails or is not done on this system.
#[cfg(unix)]
fn read_at(file: &File, to: &mut [u8], offset: u64) -> bool {
    std::os::unix::fs::FileExt::read_exact_at(file, to, offset).is_ok()
}

#[cfg(not(unix))]
fn read_at(_: &File, _: &mut [u8], _: u64) -> bool {
    false
}

fn map_file(file: &WeightFile) -> Result<(Mmap, File), Error> {
    let handle = open(&file.path)?;
    let bytes = handle.metadata().map_err(Error::io("read", &file.path))?.len();
    if bytes != file.bytes {
        let detail = format!("it had {} bytes when its header was read and has {bytes} now", file.bytes);
        return Err(Error::damaged(&file.path, detail));
    }
    let map = map_whole(&handle, &file.path)?;
    Ok((map, handle))
}

/// The tensor's range as a range of its file.
fn window(tensor: &TensorEntry, range: Range<u64>) -> Range<usize> {
    assert!(
        range.start <= range.end && range.end <= tensor.bytes,
        "bytes {range:?} lie outside of a tensor of {} bytes",
        tensor.bytes
    );
    // A file that was mapped fits the address space, so the casts lose nothing for one of its tensors; for any other
    // the slice's own bounds check decides.
    (tensor.offset + range.start) as usize..(tensor.offset + range.end) as usize
}

/// Widens a window to the whole clusters of pages that its faults may have brought in, as far as the map reaches.
///
/// Dropping only the window's own pages would leak: the first fault of one window brings back the last pages of the window
/// before it, which was released already, and over a large model such leftovers add up to gigabytes.
#[cfg(unix)]
fn whole_clusters(map: &Mmap, window: Range<usize>) -> Range<usize> {
    let base = map.as_ptr() as usize;
    let start = (base + window.start) / FAULT_CLUSTER * FAULT_CLUSTER;
    let end = (base + window.end).next_multiple_of(FAULT_CLUSTER);
    start.saturating_sub(base)..(end - base).min(map.len())
}

/// Widens a window at its start to a whole cluster, and narrows it at its end.
#[cfg(unix)]
fn passed_clusters(map: &Mmap, window: Range<usize>) -> Range<usize> {
    let base = map.as_ptr() as usize;
    let start = (base + window.start) / FAULT_CLUSTER * FAULT_CLUSTER;
    let end = (base + window.end) / FAULT_CLUSTER * FAULT_CLUSTER;
    start.saturating_sub(base)..end.saturating_sub(base)
}

/// The reach of one page table. A fault maps the cached pages around it, up to this bound: 64 KiB of them on older kernels,
/// since Linux 6.18 the whole of a large folio. Both were measured; 64 KiB here left 3 to 11 % of a model resident on ext4,
/// and 2 MiB leaves nothing at no cost in time.
#[cfg(unix)]
const FAULT_CLUSTER: usize = WeightMap::RELEASED_AT_ONCE as usize;

// memmap2 rounds the start down to a page and the kernel rounds the end up, so both advices work on whole pages.

#[cfg(unix)]
fn advise_needed(map: &Mmap, window: Range<usize>) {
    let _ = map.advise_range(memmap2::Advice::WillNeed, window.start, window.len());
}

#[cfg(target_os = "linux")]
fn advise_populate(map: &Mmap, range: Range<usize>) {
    let _ = map.advise_range(memmap2::Advice::PopulateRead, range.start, range.len());
}

#[cfg(not(target_os = "linux"))]
fn advise_populate(_: &Mmap, _: Range<usize>) {}

#[cfg(unix)]
fn advise_random(map: &Mmap) {
    let _ = map.advise(memmap2::Advice::Random);
}

#[cfg(not(unix))]
fn advise_random(_: &Mmap) {}

#[cfg(unix)]
fn advise_not_needed(map: &Mmap, window: Range<usize>) {
    // SAFETY: the map is read-only, shared and file-backed, so there are no private changes to lose: a dropped page
    // faults in again with the same content, and slices of it stay valid.
    let _ =
        unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, window.start, window.len()) };
}

#[cfg(not(unix))]
fn whole_clusters(_: &Mmap, window: Range<usize>) -> Range<usize> {
    window
}

#[cfg(not(unix))]
fn passed_clusters(_: &Mmap, window: Range<usize>) -> Range<usize> {
    window
}

#[cfg(not(unix))]
fn advise_needed(_: &Mmap, _: Range<usize>) {}

#[cfg(not(unix))]
fn advise_not_needed(_: &Mmap, _: Range<usize>) {}
