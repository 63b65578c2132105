//! Checks which tensors of a staged output are there, by the checksums that were taken when they were written.
//!
//! Every byte is read, on all cores. A tensor that cannot be read counts as one that is not there.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crc32c::crc32c_append;

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
