//! Reads the headers of files that `torch.save` wrote, without running what is in them.
//!
//! In: a .bin, .pt or .pth file, untrusted. Out: the name, type, shape and place of every tensor of its state dict. A pickle
//! is a program for building objects; here it is interpreted by a reader that knows collections, numbers, texts and torch's
//! functions for tensors. Whatever else it asks for is refused by name. No weight is read and nothing is run or unpacked.
//!
//! Modules in reading order:
//!
//! - `allowed`: the few names that a pickle may ask for.
//! - `pickle`: the interpreter.
//! - `archive`: the zip format, since torch 1.6.
//! - `legacy`: the stream of pickles that older versions wrote.
//! - `tensors`: the tensors of a state dict, held against the bytes that store them.

mod allowed;
mod archive;
mod legacy;
mod pickle;
mod tensors;

use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use indexmap::IndexMap;
use safetensors::Dtype;

use crate::error::Error;
use crate::regular::open;

/// What a file holds.
#[derive(Debug)]
pub(crate) struct TorchFile {
    /// Length of the whole file.
    pub(crate) file_bytes: u64,
    /// By name, in the order of the state dict.
    pub(crate) tensors: IndexMap<String, TorchTensor>,
}

/// A tensor of a state dict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TorchTensor {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// The first element's first byte, from the start of the file.
    pub(crate) offset: u64,
    /// Elements from one to the next along each side; `None` where they lie one after another in row-major order.
    pub(crate) strides: Option<Vec<u64>>,
    /// Bytes from the first element's first to the last one's last.
    pub(crate) reach: u64,
}

/// Where the bytes of a storage lie in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    offset: u64,
    bytes: u64,
}

/// Why a file is not read.
#[derive(Debug)]
enum Fault {
    /// It contradicts its format.
    Damaged(String),
    /// It is of a kind that is not read; with what to do instead.
    Unsupported(String),
    /// The system refused.
    Io(std::io::Error),
}

impl TorchFile {
    /// Reads the pickle of the file at `path` and the places of its storages.
    ///
    /// Errors: [`Error::Unsupported`] for what is not read, by name; [`Error::Damaged`]; [`Error::Io`].
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let mut file = open(path)?;
        let file_bytes = file.metadata().map_err(Error::io("read", path))?.len();
        let mut first = Vec::new();
        (&mut file).take(LONGEST_MAGIC).read_to_end(&mut first).map_err(Error::io("read", path))?;
        file.seek(SeekFrom::Start(0)).map_err(Error::io("read", path))?;
        let reader = BufReader::new(file);
        let tensors = if first.starts_with(archive::MAGIC) {
            archive::read(reader, file_bytes)
        } else if legacy::is_legacy(&first) {
            legacy::read(reader, file_bytes)
        } else {
            Err(Fault::Unsupported(NEITHER.into()))
        };
        let tensors = tensors.map_err(|fault| match fault {
            Fault::Damaged(detail) => Error::damaged(path, detail),
            Fault::Unsupported(detail) => Error::unsupported(path, detail),
            Fault::Io(error) => Error::io("read", path)(error),
        })?;
        Ok(Self { file_bytes, tensors })
    }
}

impl From<std::io::Error> for Fault {
    /// An end in the middle is a fault of the file, anything else the system's.
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                Self::Damaged("it is cut off; download or copy it again".into())
            }
            _ => Self::Io(error),
        }
    }
}

fn damaged<T>(detail: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Damaged(detail.into()))
}

fn unsupported<T>(detail: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Unsupported(detail.into()))
}

/// What to do with a file whose content is not weights alone.
const REMEDY: &str = "load it in torch where you trust it and save its weights alone, as in `torch.save(model.state_dict(), file)`";

const NEITHER: &str = "it is no file of torch.save: neither a zip archive nor the older stream of pickles; save the model as safetensors";

const LONGEST_MAGIC: u64 = 16;
