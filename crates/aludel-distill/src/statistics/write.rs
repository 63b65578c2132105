//! Writes statistics as a folder of safetensors that is there when it is whole.
//!
//! In: tensors in any order. Out: the folder. Its headers say what they are of: `kind`, the SHA-256 of the model's weight files
//! (`model_sha256`, with commas), of the data (`data_sha256`), how many tokens in how many pieces of at most how many.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use aludel_checkpoint::{Layout, OutputFolder, OutputTensor, ShardWriter};
use aludel_kernels::element::Element;

use super::{Kind, Settings};
use crate::error::Error;

/// What statistics are of.
pub(super) struct Facts {
    pub kind: Kind,
    /// Of the model's weight files, in their order.
    pub digests: Vec<String>,
    pub data: String,
    pub tokens: u64,
    pub pieces: u64,
    pub window: usize,
}

impl Facts {
    fn metadata(&self) -> BTreeMap<String, String> {
        let entries = [
            ("kind", self.kind.name().to_owned()),
            ("model_sha256", self.digests.join(",")),
            ("data_sha256", self.data.clone()),
            ("tokens", self.tokens.to_string()),
            ("pieces", self.pieces.to_string()),
            ("window", self.window.to_string()),
            ("tool", format!("aludel {}", env!("CARGO_PKG_VERSION"))),
        ];
        entries.map(|(key, value)| (key.to_owned(), value)).into()
    }
}

/// Bytes of a tensor of statistics.
pub(super) fn bytes(tensor: &OutputTensor) -> u64 {
    (tensor.shape.iter().product::<usize>() * size_of::<f32>()) as u64
}

/// A folder that is being written.
pub(super) struct Output {
    folder: OutputFolder,
    writer: ShardWriter,
    layout: Layout,
    places: HashMap<String, usize>,
}

impl Output {
    pub(super) fn create(
        settings: &Settings<'_>,
        target: &Path,
        tensors: Vec<OutputTensor>,
        facts: &Facts,
    ) -> Result<Self, Error> {
        let layout = Layout::plan_with(tensors, settings.shard_bytes, &facts.metadata())?;
        let mut folder = OutputFolder::create(target, settings.replace)?;
        if !settings.sync {
            folder.skip_sync();
        }
        if let Some(index) = layout.index_json() {
            folder.write("model.safetensors.index.json", index.as_bytes())?;
        }
        let writer = folder.shards(&layout)?;
        let names = layout.tensors().iter().enumerate().map(|(place, tensor)| (tensor.name.clone(), place));
        let places = names.collect();
        Ok(Self { folder, writer, layout, places })
    }

    /// Writes the same values, so many, under each of these names.
    pub(super) fn write(
        &mut self,
        names: &[String],
        read: impl Fn(Range<usize>) -> Result<Vec<f32>, Error>,
        elements: usize,
    ) -> Result<(), Error> {
        for start in (0..elements).step_by(PIECE) {
            let values = read(start..elements.min(start + PIECE))?;
            let bytes = Element::F32.encode(&values);
            for place in names.iter().filter_map(|name| self.places.get(name)) {
                let placement = self.layout.placement(*place);
                self.writer.write_at(&placement, (start * size_of::<f32>()) as u64, &bytes)?;
            }
        }
        Ok(())
    }

    /// The folder under its name.
    pub(super) fn finish(self) -> Result<PathBuf, Error> {
        self.writer.finish()?;
        Ok(self.folder.finish()?)
    }
}

/// Elements that are written at a time.
const PIECE: usize = 1 << 20;
