//! Writes an adapter's folder, whose tensors are known only when they have been made.
//!
//! In: tensors, one after another, and at the end what the adapter says of itself. Out: the folder, under its name when it is whole. Until
//! then tensors lie in a file beside the others, so that memory holds one at a time.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use aludel_checkpoint::{
    ADAPTER_CONFIG, AdapterFiles, AdapterTensor, Dtype, Error, OutputFolder, OutputTensor,
};
use aludel_kernels::element::Element;

/// An adapter's folder that is being written.
pub(super) struct AdapterOutput {
    folder: OutputFolder,
    heap: File,
    heap_path: PathBuf,
    tensors: Vec<OutputTensor>,
    bytes: u64,
}

/// The file of tensors that have no place yet.
const HEAP: &str = ".tensors";

/// Bytes that are moved at once.
const PIECE: usize = 1 << 20;

impl AdapterOutput {
    /// Stages a folder.
    ///
    /// Errors: those of [`OutputFolder::create`].
    pub(super) fn create(target: &Path, replace: bool, sync: bool) -> Result<Self, Error> {
        let mut folder = OutputFolder::create(target, replace)?;
        if !sync {
            folder.skip_sync();
        }
        let heap_path = folder.path().join(HEAP);
        let heap = File::options().read(true).write(true).create_new(true).open(&heap_path);
        let heap = heap.map_err(|source| failed("create", &heap_path, source))?;
        Ok(Self { folder, heap, heap_path, tensors: Vec::new(), bytes: 0 })
    }

    /// Adds a tensor of a module, or a whole one.
    pub(super) fn add(
        &mut self,
        (of, part): (&str, AdapterTensor),
        shape: Vec<usize>,
        element: Element,
        values: &[f32],
    ) -> Result<(), Error> {
        self.begin(part.name(of), shape, dtype(element));
        self.append(element, values)
    }

    /// Begins a tensor; its values follow in order.
    pub(super) fn begin(&mut self, name: String, shape: Vec<usize>, dtype: Dtype) {
        self.tensors.push(OutputTensor { name, dtype, shape });
    }

    /// The next values of the tensor that was begun last.
    pub(super) fn append(&mut self, element: Element, values: &[f32]) -> Result<(), Error> {
        for values in values.chunks(PIECE / 4) {
            let bytes = element.encode(values);
            self.heap.write_all(&bytes).map_err(|source| failed("write", &self.heap_path, source))?;
            self.bytes += bytes.len() as u64;
        }
        Ok(())
    }

    /// Bytes of all tensors so far.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Lays the tensors out, writes what is beside them, and gives the folder its name.
    pub(super) fn finish(
        mut self,
        files: &AdapterFiles,
        others: &[(String, Vec<u8>)],
    ) -> Result<PathBuf, Error> {
        let layout = AdapterFiles::layout(self.tensors.clone())?;
        let shards = self.folder.shards(&layout)?;
        let mut piece = vec![0; PIECE];
        self.heap.seek(SeekFrom::Start(0)).map_err(|source| failed("read", &self.heap_path, source))?;
        for tensor in &self.tensors {
            let index = layout.tensors().iter().position(|placed| placed.name == tensor.name);
            let Some(index) = index else { unreachable!("`{}` is laid out", tensor.name) };
            let placement = layout.placement(index);
            let mut done = 0;
            while done < placement.bytes {
                let length = piece.len().min((placement.bytes - done) as usize);
                let piece = &mut piece[..length];
                self.heap.read_exact(piece).map_err(|source| failed("read", &self.heap_path, source))?;
                shards.write_at(&placement, done, piece)?;
                done += length as u64;
            }
        }
        shards.finish()?;
        drop(self.heap);
        fs::remove_file(&self.heap_path).map_err(|source| failed("remove", &self.heap_path, source))?;
        self.folder.write(ADAPTER_CONFIG, files.config_json().as_bytes())?;
        for (name, bytes) in others {
            self.folder.write(name, bytes)?;
        }
        self.folder.finish()
    }
}

/// The type under its name in files.
pub(super) const fn dtype(element: Element) -> Dtype {
    match element {
        Element::F32 => Dtype::F32,
        Element::F16 => Dtype::F16,
        Element::BF16 => Dtype::BF16,
    }
}

fn failed(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::Io { action, path: path.to_path_buf(), source }
}
