//! Writes the models of a spec: a base and three fine-tunes, each a folder with config and weights.
//!
//! In: a spec, a seed and a folder. Out: `base`, `a`, `b` and `c` in it, the same bytes each time, `text.txt` to train on, and `short.txt`. Values stream through
//! small buffers, so that a model of any size takes a few megabytes. The tokenizer is that of the examples, whose vocabulary of
//! 512 fits every shape.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use aludel_checkpoint::{Layout, OutputFolder, ShardWriter};
use anyhow::Context;
use serde_json::json;

use crate::shape::ModelSpec;
use crate::values::{ROLES, Values};

/// Makes the models of `spec` in `folder`, unless the same ones are there already.
pub(crate) fn make(spec: &ModelSpec, seed: u64, folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::write(folder.join("short.txt"), TEXT.get(..SHORT).unwrap_or(TEXT))?;
    let marker = folder.join("spec.json");
    let content = json!({ "generator": GENERATOR, "seed": seed, "spec": spec }).to_string();
    if fs::read_to_string(&marker).is_ok_and(|made| made == content) {
        return Ok(());
    }
    eprintln!("making {} in {}", spec.name, folder.display());
    let layout = Layout::plan(spec.shape.tensors(), SHARD_BYTES)?;
    fs::write(folder.join("text.txt"), TEXT)?;
    for role in ROLES {
        write_model(spec, &layout, seed, role, &folder.join(role))?;
    }
    fs::write(&marker, content).with_context(|| format!("cannot write {}", marker.display()))
}

fn write_model(
    spec: &ModelSpec,
    layout: &Layout,
    seed: u64,
    role: &str,
    target: &Path,
) -> anyhow::Result<()> {
    let mut folder = OutputFolder::create(target, true)?;
    folder.skip_sync();
    folder.write("config.json", format!("{:#}\n", spec.shape.config()).as_bytes())?;
    for (name, content) in TOKENIZER {
        folder.write(name, content.as_bytes())?;
    }
    if let Some(index) = layout.index_json() {
        folder.write("model.safetensors.index.json", index.as_bytes())?;
    }
    if spec.zero {
        write_holes(layout, &folder)?;
    } else {
        let writer = folder.shards(layout)?;
        write_values(layout, seed, role, &writer)?;
        writer.finish()?;
    }
    folder.finish()?;
    Ok(())
}

/// Headers followed by nothing: the file system supplies the zeros.
fn write_holes(layout: &Layout, folder: &OutputFolder) -> anyhow::Result<()> {
    for shard in layout.shards() {
        folder.write(&shard.file_name, &shard.header)?;
        let file = OpenOptions::new().write(true).open(folder.path().join(&shard.file_name))?;
        file.set_len(shard.bytes)?;
    }
    Ok(())
}

/// A piece of a tensor.
struct Piece {
    tensor: usize,
    start: u64,
    count: usize,
}

/// Computes on all cores; this thread writes.
fn write_values(layout: &Layout, seed: u64, role: &str, writer: &ShardWriter) -> anyhow::Result<()> {
    let sources: Vec<Values> =
        layout.tensors().iter().map(|tensor| Values::new(seed, role, &tensor.name, &tensor.shape)).collect();
    let pieces = pieces(layout);
    let next = AtomicUsize::new(0);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let (send, receive) = sync_channel(threads);
        for _ in 0..threads {
            let send = send.clone();
            scope.spawn(|| compute(&sources, &pieces, &next, send));
        }
        drop(send);
        for (piece, bytes) in receive {
            let piece: &Piece = &pieces[piece];
            writer.write_at(&layout.placement(piece.tensor), 2 * piece.start, &bytes)?;
        }
        Ok(())
    })
}

/// Ends early when nobody receives any more.
fn compute(sources: &[Values], pieces: &[Piece], next: &AtomicUsize, send: SyncSender<(usize, Vec<u8>)>) {
    loop {
        let at = next.fetch_add(1, Ordering::Relaxed);
        let Some(piece) = pieces.get(at) else { return };
        let bytes = sources[piece.tensor].bytes(piece.start, piece.count);
        if send.send((at, bytes)).is_err() {
            return;
        }
    }
}

fn pieces(layout: &Layout) -> Vec<Piece> {
    let of_tensor = |tensor: usize| {
        let elements = layout.placement(tensor).bytes / 2;
        (0..elements).step_by(PIECE).map(move |start| {
            let count = (elements - start).min(PIECE as u64) as usize;
            Piece { tensor, start, count }
        })
    };
    (0..layout.tensors().len()).flat_map(of_tensor).collect()
}

/// Raised whenever the values change, so that models made before are made anew.
const GENERATOR: u32 = 3;

const TOKENIZER: [(&str, &str); 2] = [
    ("tokenizer.json", include_str!("../../../examples/models/base/tokenizer.json")),
    ("tokenizer_config.json", include_str!("../../../examples/models/base/tokenizer_config.json")),
];

/// Bytes of a text for those who only have to run a model.
const SHORT: usize = 400;

/// Some five thousand tokens.
const TEXT: &str = include_str!("../../../LICENSE-APACHE");

const SHARD_BYTES: u64 = 5_000_000_000;

/// Elements of a piece. Small: the high-water mark of this process bounds from below what it can measure of another.
const PIECE: usize = 128 << 10;
