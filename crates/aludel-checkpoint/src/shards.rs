//! Writes tensors into the planned shards, in any order and in pieces, and proves that no byte was left out.
//!
//! In: a layout and, piece by piece, the bytes of its tensors. Out: shard files of exactly the planned content. It keeps
//! no copy of the bytes and does not sync: [`crate::OutputFolder::finish`] does. Into files that lie in memory threads write side by side.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Error;
use crate::journal::WrittenTensor;
use crate::layout::{Layout, Placement};
use crate::memory_file::{self, MemoryFile, Reserving};
use crate::page_cache;
use crate::verify;

/// Positioned writes into the shard files of one layout, by any number of threads at once.
#[derive(Debug)]
pub struct ShardWriter {
    shards: Vec<PlannedShard>,
    /// Most recently used last.
    open: Mutex<VecDeque<(usize, Arc<OpenShard>)>>,
    /// Whether pages that are written leave the page cache.
    leaves_cache: bool,
    /// Where the files lie in memory: what makes their pages.
    reserving: Option<Reserving>,
    /// Writers of the folder that have not finished, this one among them.
    unfinished: Arc<AtomicUsize>,
}

/// A shard file and what of it has been written.
#[derive(Debug)]
struct PlannedShard {
    path: PathBuf,
    bytes: u64,
    written: Mutex<Coverage>,
}

/// A shard file that is written to.
#[derive(Debug)]
struct OpenShard {
    file: File,
    /// The way for threads that write side by side, where it lies in memory.
    memory: Option<MemoryFile>,
}

impl OpenShard {
    fn open(path: &Path, in_memory: bool) -> Result<Self, Error> {
        let file = OpenOptions::new().read(in_memory).write(true).open(path);
        let file = file.map_err(Error::io("open", path))?;
        let memory = if in_memory { MemoryFile::of(&file) } else { None };
        Ok(Self { file, memory })
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.memory.as_ref().is_some_and(|memory| memory.write(bytes, offset)) {
            return Ok(());
        }
        write_all_at(&self.file, bytes, offset)
    }
}

impl PlannedShard {
    /// A shard of which a start is written.
    fn begun(path: PathBuf, bytes: u64, start: u64) -> Self {
        let mut written = Coverage::default();
        written.add(0..start);
        Self { path, bytes, written: Mutex::new(written) }
    }

    fn written(&self) -> MutexGuard<'_, Coverage> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ShardWriter {
    /// Creates the files of `layout` in `folder`, each with its header and its full length.
    pub(crate) fn create(
        folder: &Path,
        layout: &Layout,
        unfinished: Arc<AtomicUsize>,
    ) -> Result<Self, Error> {
        let mut shards = Vec::with_capacity(layout.shards().len());
        for shard in layout.shards() {
            let path = folder.join(&shard.file_name);
            create_file(&path, &shard.header, shard.bytes)?;
            shards.push(PlannedShard::begun(path, shard.bytes, shard.header.len() as u64));
        }
        unfinished.fetch_add(1, Ordering::SeqCst);
        Ok(Self::of(shards, unfinished))
    }

    /// Takes the files of an earlier writer of the same layout over, with the tensors that it had written and whose bytes are
    /// there, as are those of its partner; those tensors. What is not of the layout is written anew. Shards outside of `share` are left to others.
    pub(crate) fn reopen(
        folder: &Path,
        layout: &Layout,
        share: Range<usize>,
        written: &[WrittenTensor],
        partner: &dyn Fn(usize) -> Option<usize>,
        unfinished: Arc<AtomicUsize>,
    ) -> Result<(Self, Vec<WrittenTensor>), Error> {
        let mut shards = Vec::with_capacity(layout.shards().len());
        let mut is_taken = Vec::new();
        for (number, shard) in layout.shards().iter().enumerate() {
            let path = folder.join(&shard.file_name);
            if !share.contains(&number) {
                is_taken.push(false);
                shards.push(PlannedShard::begun(path, shard.bytes, shard.bytes));
                continue;
            }
            let is_there = has_header(&path, &shard.header, shard.bytes);
            if !is_there {
                if path.exists() {
                    fs::remove_file(&path).map_err(Error::io("remove", &path))?;
                }
                create_file(&path, &shard.header, shard.bytes)?;
            }
            is_taken.push(is_there);
            shards.push(PlannedShard::begun(path, shard.bytes, shard.header.len() as u64));
        }
        let mut found = Vec::new();
        let there = verify::there(folder, layout, written, &is_taken);
        let numbers: HashSet<usize> = there.iter().map(|written| written.tensor).collect();
        let is_alone =
            |written: &WrittenTensor| partner(written.tensor).is_some_and(|other| !numbers.contains(&other));
        for written in there.into_iter().filter(|written| !is_alone(written)) {
            let at = layout.placement(written.tensor);
            if shards[at.shard].written().add(at.offset..at.offset + at.bytes) {
                found.push(written);
            }
        }
        unfinished.fetch_add(1, Ordering::SeqCst);
        Ok((Self::of(shards, unfinished), found))
    }

    fn of(shards: Vec<PlannedShard>, unfinished: Arc<AtomicUsize>) -> Self {
        Self { shards, open: Mutex::default(), leaves_cache: false, reserving: None, unfinished }
    }

    /// From now on, threads that write to one file do not wait for one another, where the files lie in memory. Few threads take longer over a page so
    /// than by turns, many take less.
    pub fn write_side_by_side(&mut self) {
        let folder = self.shards.first().and_then(|shard| shard.path.parent());
        if self.reserving.is_none() && folder.is_some_and(memory_file::is_place_for) {
            let unwritten =
                self.shards.iter().filter(|shard| shard.written().first_hole(shard.bytes).is_some());
            let unwritten = unwritten.map(|shard| (shard.path.clone(), shard.bytes));
            self.reserving = Some(Reserving::begin(unwritten.collect()));
        }
    }

    /// Whether they do.
    pub fn writes_side_by_side(&self) -> bool {
        self.reserving.is_some()
    }

    /// From now on, what is written is sent to the disk soon and then leaves the page cache, so that an output larger than the memory
    /// does not drive out what others have there.
    pub fn leave_cache(&mut self) {
        self.leaves_cache = true;
    }

    /// Writes `bytes` at `offset` bytes from the start of the tensor at `placement`.
    ///
    /// Errors: [`Error::NotAsPlanned`] when the bytes leave the tensor or overlap what was written before;
    /// [`Error::Io`], a full disk among it.
    pub fn write_at(&self, placement: &Placement, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let end = offset.checked_add(bytes.len() as u64).filter(|&end| end <= placement.bytes);
        let at = end.and_then(|_| placement.offset.checked_add(offset)).ok_or_else(|| {
            let path = self.shards.get(placement.shard).map_or(Path::new(""), |shard| shard.path.as_path());
            let detail =
                format!("{} bytes at {offset} leave a tensor of {} bytes", bytes.len(), placement.bytes);
            not_as_planned(path, detail)
        })?;
        self.write_file(placement.shard, at, bytes)
    }

    /// Writes `bytes` at `offset` bytes from the start of a shard's file: those of several tensors, one after the other.
    ///
    /// Errors: as [`ShardWriter::write_at`].
    pub fn write_file(&self, shard: usize, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let Some(planned) = self.shards.get(shard) else {
            let detail = format!("shard {shard} of {} does not exist", self.shards.len());
            return Err(not_as_planned(Path::new(""), detail));
        };
        let end = offset.checked_add(bytes.len() as u64).filter(|&end| end <= planned.bytes);
        let Some(range) = end.map(|end| offset..end) else {
            let detail = format!("{} bytes at {offset} leave a file of {} bytes", bytes.len(), planned.bytes);
            return Err(not_as_planned(&planned.path, detail));
        };
        if !planned.written().add(range.clone()) {
            return Err(not_as_planned(&planned.path, format!("bytes {range:?} are written twice")));
        }
        let file = self.file(shard)?;
        file.write(bytes, range.start).map_err(Error::io("write", &planned.path))?;
        if self.leaves_cache {
            page_cache::leave_behind(&file.file, &range);
        }
        Ok(())
    }

    /// Checks that every planned byte was written once.
    ///
    /// Errors: [`Error::NotAsPlanned`] with the first missing bytes.
    pub fn finish(self) -> Result<(), Error> {
        for shard in &self.shards {
            if let Some(hole) = shard.written().first_hole(shard.bytes) {
                return Err(not_as_planned(&shard.path, format!("bytes {hole:?} were never written")));
            }
        }
        self.unfinished.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    /// The open file of a shard; opens it, and closes the one longest unused, where needed.
    fn file(&self, shard: usize) -> Result<Arc<OpenShard>, Error> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let position = open.iter().position(|(open, _)| *open == shard);
        let (_, file) = match position.and_then(|position| open.remove(position)) {
            Some(entry) => entry,
            None => (shard, Arc::new(OpenShard::open(&self.shards[shard].path, self.writes_side_by_side())?)),
        };
        if open.len() == MOST_OPEN_FILES {
            open.pop_front();
        }
        open.push_back((shard, Arc::clone(&file)));
        Ok(file)
    }
}

/// Which bytes of a file have been written: disjoint ranges, neighbours joined, start to end.
#[derive(Debug, Default)]
struct Coverage {
    ranges: BTreeMap<u64, u64>,
}

impl Coverage {
    /// Adds a range; says no, and adds nothing, when a part of it is there already.
    fn add(&mut self, range: Range<u64>) -> bool {
        if range.is_empty() {
            return true;
        }
        let before = self.ranges.range(..=range.start).next_back().map(|(&start, &end)| start..end);
        let after = self.ranges.range(range.start..).next().map(|(&start, &end)| start..end);
        let overlaps = before.as_ref().is_some_and(|before| before.end > range.start)
            || after.as_ref().is_some_and(|after| after.start < range.end);
        if overlaps {
            return false;
        }
        let start =
            before.filter(|before| before.end == range.start).map_or(range.start, |before| before.start);
        let joined = after.filter(|after| after.start == range.end);
        let end = joined.as_ref().map_or(range.end, |after| after.end);
        if joined.is_some() {
            self.ranges.remove(&range.end);
        }
        self.ranges.insert(start, end);
        true
    }

    /// The first bytes below `bytes` that are missing.
    fn first_hole(&self, bytes: u64) -> Option<Range<u64>> {
        let filled = self.ranges.get(&0).copied().unwrap_or(0);
        let next = self.ranges.range(filled.max(1)..).next().map_or(bytes, |(&start, _)| start);
        (filled < bytes).then_some(filled..next)
    }
}

/// Whether a file has a shard's length and header.
fn has_header(path: &Path, header: &[u8], bytes: u64) -> bool {
    let Ok(mut file) = File::open(path) else { return false };
    let mut found = vec![0; header.len()];
    file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == bytes)
        && io::Read::read_exact(&mut file, &mut found).is_ok()
        && found == header
}

fn create_file(path: &Path, header: &[u8], bytes: u64) -> Result<(), Error> {
    let file = File::create_new(path).map_err(Error::io("create", path))?;
    file.set_len(bytes).map_err(Error::io("set the length of", path))?;
    write_all_at(&file, header, 0).map_err(Error::io("write", path))
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(not(unix))]
fn write_all_at(mut file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    use std::io::{Seek, SeekFrom, Write};
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(bytes)
}

fn not_as_planned(path: &Path, detail: String) -> Error {
    Error::NotAsPlanned { file: path.to_path_buf(), detail }
}

/// Far below any system's limit on open files; tensors are written in shard order, so few are in use at a time.
const MOST_OPEN_FILES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn covered(ranges: &[(u64, u64)]) -> Coverage {
        let mut coverage = Coverage::default();
        for &(start, end) in ranges {
            assert!(coverage.add(start..end), "{start}..{end}");
        }
        coverage
    }

    #[test]
    fn neighbours_join_whatever_their_order() {
        for ranges in [[(0, 3), (3, 5), (5, 9)], [(5, 9), (0, 3), (3, 5)], [(3, 5), (5, 9), (0, 3)]] {
            assert_eq!(covered(&ranges).ranges, BTreeMap::from([(0, 9)]));
        }
    }

    #[test]
    fn bytes_are_written_once() {
        let mut coverage = covered(&[(2, 4), (6, 8)]);
        for range in [2..3, 3..4, 1..3, 3..7, 7..8, 0..9, 5..7] {
            assert!(!coverage.add(range.clone()), "{range:?}");
        }
        assert!(coverage.add(4..6));
        assert_eq!(coverage.ranges, BTreeMap::from([(2, 8)]));
    }

    #[test]
    fn the_first_hole_is_named() {
        assert_eq!(covered(&[]).first_hole(5), Some(0..5));
        assert_eq!(covered(&[]).first_hole(0), None);
        assert_eq!(covered(&[(2, 5)]).first_hole(5), Some(0..2));
        assert_eq!(covered(&[(0, 2), (3, 5)]).first_hole(5), Some(2..3));
        assert_eq!(covered(&[(0, 2)]).first_hole(5), Some(2..5));
        assert_eq!(covered(&[(0, 5)]).first_hole(5), None);
    }
}
