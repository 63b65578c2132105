//! Merges by reading whole tensors into buffers: the way that is measured against computing from mapped files.
//!
//! In: weight files of models in bf16 with the same tensors. Out: a folder with their weighted average, as `linear` has it. It is a baseline
//! and nothing else: no recipe, no plan, no journal.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;

use aludel_checkpoint::{Checkpoint, Layout, OutputFolder, OutputTensor};
use anyhow::{Context, ensure};
use half::bf16;

/// Averages models, with these weights in turn and divided by their sum.
///
/// Errors: the models differ in their tensors, or a file cannot be read or written.
pub(crate) fn merge(inputs: &[PathBuf], weights: &[f32], target: &Path) -> anyhow::Result<()> {
    ensure!(!inputs.is_empty() && inputs.len() == weights.len(), "a weight for each model, and at least one");
    let models = inputs.iter().map(|path| Checkpoint::open(path)).collect::<Result<Vec<_>, _>>()?;
    let files = inputs.iter().map(File::open).collect::<Result<Vec<_>, _>>()?;
    let tensor = |(name, entry): (&String, &aludel_checkpoint::TensorEntry)| OutputTensor {
        name: name.clone(),
        dtype: entry.dtype,
        shape: entry.shape.clone(),
    };
    let layout = Layout::plan(models[0].tensors().iter().map(tensor).collect(), u64::MAX)?;
    let mut folder = OutputFolder::create(target, true)?;
    folder.skip_sync();
    let shards = folder.shards(&layout)?;
    for (position, planned) in layout.tensors().iter().enumerate() {
        let read = |(model, file): (&Checkpoint, &File)| -> anyhow::Result<Vec<u8>> {
            let entry = model.tensor(&planned.name).with_context(|| format!("no `{}`", planned.name))?;
            ensure!(entry.shape == planned.shape, "`{}` has several shapes", planned.name);
            let mut bytes = vec![0; usize::try_from(entry.bytes)?];
            file.read_exact_at(&mut bytes, entry.offset)?;
            Ok(bytes)
        };
        let tensors = models.iter().zip(&files).map(read).collect::<anyhow::Result<Vec<_>>>()?;
        shards.write_at(&layout.placement(position), 0, &average(&tensors, weights))?;
    }
    shards.finish()?;
    folder.finish()?;
    Ok(())
}

/// On all cores.
fn average(tensors: &[Vec<u8>], weights: &[f32]) -> Vec<u8> {
    let mut out = vec![0; tensors[0].len()];
    let total: f32 = weights.iter().sum();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = out.len().div_ceil(threads).next_multiple_of(BLOCK).max(BLOCK);
    thread::scope(|scope| {
        for (number, out) in out.chunks_mut(share).enumerate() {
            scope.spawn(move || {
                for (block, out) in out.chunks_mut(BLOCK).enumerate() {
                    let start = number * share + block * BLOCK;
                    average_block(tensors, weights, total, start, out);
                }
            });
        }
    });
    out
}

fn average_block(tensors: &[Vec<u8>], weights: &[f32], total: f32, start: usize, out: &mut [u8]) {
    let mut sums = [0f32; BLOCK / 2];
    let sums = &mut sums[..out.len() / 2];
    for (tensor, weight) in tensors.iter().zip(weights) {
        let bytes = &tensor[start..start + out.len()];
        for (sum, &raw) in sums.iter_mut().zip(bytes.as_chunks().0) {
            *sum += bf16::from_le_bytes(raw).to_f32() * weight;
        }
    }
    for (raw, sum) in out.as_chunks_mut().0.iter_mut().zip(sums) {
        *raw = bf16::from_f32(*sum / total).to_le_bytes();
    }
}

/// Bytes that are averaged at once.
const BLOCK: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weighted_average() {
        let encode = |values: &[f32]| -> Vec<u8> {
            values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect()
        };
        let count = 3 * BLOCK;
        let tensors = [encode(&vec![1.0; count]), encode(&vec![4.0; count])];
        assert_eq!(average(&tensors, &[1.0, 2.0]), encode(&vec![3.0; count]));
    }
}
