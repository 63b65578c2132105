//! Checks what is there of an output, by the checksums that were taken when it was written.
//!
//! Every byte is read, on all cores. A tensor that cannot be read counts as one that is not there.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crc32c::{crc32c, crc32c_append, crc32c_combine};

use crate::error::Error;
use crate::journal::WrittenTensor;
use crate::layout::Layout;

/// Those of `written` whose bytes are there, in the order of the tensors and each once. Of shards that are not `is_taken` none is.
pub(crate) fn there(
    folder: &Path,
    layout: &Layout,
    written: &[WrittenTensor],
    is_taken: &[bool],
) -> Vec<WrittenTensor> {
    let mut candidates: Vec<WrittenTensor> = written
        .iter()
        .filter(|written| written.tensor < layout.tensors().len())
        .filter(|written| is_taken[layout.placement(written.tensor).shard])
        .copied()
        .collect();
    candidates.sort_by_key(|written| written.tensor);
    candidates.dedup_by_key(|written| written.tensor);
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(candidates.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut piece = vec![0; PIECE_BYTES];
                while let Some(written) = candidates.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if crc(folder, layout, written.tensor, &mut piece).ok() == Some(written.crc) {
                        found.lock().unwrap_or_else(PoisonError::into_inner).push(*written);
                    }
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_by_key(|written| written.tensor);
    found
}

/// The CRC-32C that a whole shard has, from those of its tensors by their positions; `None` where one of them is missing.
pub fn crc_of_shard(layout: &Layout, shard: usize, crcs: &HashMap<usize, u32>) -> Option<u32> {
    let of_shard = (0..layout.tensors().len()).filter(|&tensor| layout.placement(tensor).shard == shard);
    of_shard.filter(|&tensor| layout.placement(tensor).bytes > 0).try_fold(
        crc32c(&layout.shards()[shard].header),
        |crc, tensor| {
            let length = usize::try_from(layout.placement(tensor).bytes).ok()?;
            Some(crc32c_combine(crc, *crcs.get(&tensor)?, length))
        },
    )
}

/// The CRC-32C of a file. `on_bytes` is called with the number of bytes after each piece, and ends the reading by returning `Break`.
///
/// Errors: [`Error::Io`]; [`Error::Stopped`] after a `Break`.
pub fn crc_of_file(path: &Path, on_bytes: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<u32, Error> {
    let mut file = crate::regular::open(path)?;
    let (mut crc, mut piece) = (0, vec![0; PIECE_BYTES]);
    loop {
        let length = match file.read(&mut piece) {
            Ok(0) => return Ok(crc),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        crc = crc32c_append(crc, &piece[..length]);
        if on_bytes(length as u64).is_break() {
            return Err(Error::Stopped { path: path.to_path_buf() });
        }
    }
}

/// The CRC-32C of a tensor's bytes.
fn crc(folder: &Path, layout: &Layout, tensor: usize, piece: &mut [u8]) -> io::Result<u32> {
    let at = layout.placement(tensor);
    let mut file = File::open(folder.join(&layout.shards()[at.shard].file_name))?;
    file.seek(SeekFrom::Start(at.offset))?;
    let (mut crc, mut left) = (0, at.bytes);
    while left > 0 {
        let length = left.min(piece.len() as u64) as usize;
        file.read_exact(&mut piece[..length])?;
        crc = crc32c_append(crc, &piece[..length]);
        left -= length as u64;
    }
    Ok(crc)
}

const PIECE_BYTES: usize = 1 << 20;
