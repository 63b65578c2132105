//! Moves as many bytes through memory as a merge of models in memory must, and does nothing else: the floor of such a merge.
//!
//! In: weight files. Out: the seconds of each pass. A pass reads and writes together what all files and one output have; each byte that is copied is
//! read once and written once. All cores copy, from and to buffers that are larger than caches.

use std::path::PathBuf;
use std::thread;
use std::time::Instant;

use anyhow::{Context, ensure};

/// Passes over the bytes of these files and of an output as large as the first.
///
/// Errors: a file is not there.
pub(crate) fn passes(inputs: &[PathBuf], count: usize) -> anyhow::Result<Vec<f64>> {
    let length = |path: &PathBuf| path.metadata().map(|data| data.len()).context("an input is not there");
    let lengths = inputs.iter().map(length).collect::<anyhow::Result<Vec<u64>>>()?;
    ensure!(!lengths.is_empty(), "no inputs");
    let moved = lengths.iter().sum::<u64>() + lengths[0];
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let each = (moved / 2).div_ceil(threads as u64);
    let mut buffers: Vec<[Vec<u8>; 2]> =
        (0..threads).map(|at| [vec![at as u8 + 1; BUFFER], vec![0; BUFFER]]).collect();
    let mut pass = || {
        let begin = Instant::now();
        thread::scope(|scope| {
            for [from, to] in &mut buffers {
                scope.spawn(move || {
                    for start in (0..each).step_by(BUFFER) {
                        let length = (each - start).min(BUFFER as u64) as usize;
                        to[..length].copy_from_slice(&from[..length]);
                        std::mem::swap(from, to);
                    }
                });
            }
        });
        begin.elapsed().as_secs_f64()
    };
    Ok((0..count).map(|_| pass()).collect())
}

/// Bytes of a thread's buffers.
const BUFFER: usize = 128 << 20;
