//! Loads a model folder, or a GGUF file, onto a device.
//!
//! In: a path, untrusted, and what the model is for. Out: a [`Decoder`]. Frozen weights stay where they are in the mapped
//! files where the device can use them there; trained ones are copied in the type that was asked for. Every tensor is held
//! against the config before anything is allocated, and all that do not fit are named at once. It downloads nothing.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use aludel_checkpoint::{Checkpoint, Config, Dtype, TensorEntry, WeightMap};
use aludel_kernels::element::Element;
use aludel_kernels::nn::{Device, SharedBytes};

use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::error::{Error, Problems};
use crate::gguf::model_folder;
use crate::names::{HEAD, Inventory, Stored};
use crate::parameters::Parameter;
use crate::source::Source;

/// What a model is loaded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It stays as it is: a teacher, an evaluation, a generation.
    Frozen,
    /// Its parameters are trained, stored in this type.
    Trainable(WeightType),
}

/// The type that trained weights are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightType {
    /// The weights are their own masters.
    Float32,
    /// The f32 masters are the trainer's.
    BFloat16,
}

impl WeightType {
    /// As an element type.
    pub fn element(self) -> Element {
        match self {
            Self::Float32 => Element::F32,
            Self::BFloat16 => Element::BF16,
        }
    }
}

impl<D: Device> Decoder<D> {
    /// Loads the model folder, or the GGUF file (see [`model_folder`]), at `path`.
    ///
    /// Errors: those of opening a checkpoint or converting a file; [`Error::Config`]; [`Error::Weights`] with every tensor that is missing, not
    /// expected, or of another shape or type than it should be; what the device says.
    pub fn open(path: &Path, device: Arc<D>, purpose: Use) -> Result<Self, Error> {
        let checkpoint = Checkpoint::open(&model_folder(path)?)?;
        let Some(config) = checkpoint.config().cloned() else {
            return Err(Error::config(format!("{} has no config.json", path.display())));
        };
        Self::load(&checkpoint, config, device, purpose)
    }

    fn load(checkpoint: &Checkpoint, json: Config, device: Arc<D>, purpose: Use) -> Result<Self, Error> {
        let config = ModelConfig::parse(&json)?;
        let inventory = Inventory::new(&config);
        check(checkpoint, &inventory, config.tied)?;
        let weights = Weights { checkpoint, map: Arc::new(WeightMap::open(checkpoint)?), purpose };
        let mut parameters: Vec<Option<D::Buffer>> = inventory.parameters.iter().map(|_| None).collect();
        for stored in &inventory.stored {
            weights.load(&*device, &inventory, stored, &mut parameters)?;
        }
        let parameters = inventory.parameters.iter().zip(parameters).filter_map(|(named, buffer)| {
            let (name, shape) = (named.name.clone(), named.shape.clone());
            Some(Parameter { name, shape, buffer: buffer?, trainable: purpose != Use::Frozen })
        });
        let parameters = parameters.collect();
        let source = Source::of(checkpoint, json);
        Ok(Self::assemble(device, config, inventory, parameters, source))
    }
}

/// Holds every tensor of the folder against the inventory.
fn check(checkpoint: &Checkpoint, inventory: &Inventory, tied: bool) -> Result<(), Error> {
    let mut problems = Vec::new();
    for stored in &inventory.stored {
        match checkpoint.tensor(&stored.name) {
            None if checkpoint.encoded().contains_key(&stored.name) => problems.push(format!(
                "{} is not stored in order; write the model anew with `aludel convert`",
                stored.name
            )),
            None => problems.push(format!("{} is missing", stored.name)),
            Some(entry) => problems.extend(mismatch(stored, entry)),
        }
    }
    let expected: HashSet<&str> = inventory.stored.iter().map(|stored| stored.name.as_str()).collect();
    let is_known = |name: &str| {
        // Files of old versions have the frequencies; some have a tied head twice.
        expected.contains(name) || name.ends_with(".rotary_emb.inv_freq") || (tied && name == HEAD)
    };
    let unknown = checkpoint.tensors().keys().filter(|name| !is_known(name));
    problems.extend(unknown.map(|name| format!("{name:?} belongs to nothing in the model")));
    Problems::none_or(problems, |problems| Error::Weights { path: checkpoint.path().to_path_buf(), problems })
}

fn mismatch(stored: &Stored, entry: &TensorEntry) -> Option<String> {
    let name = &stored.name;
    if entry.shape != stored.shape {
        return Some(format!("{name} is {:?} and should be {:?}", entry.shape, stored.shape));
    }
    let remedy = match entry.dtype {
        Dtype::F8_E4M3 | Dtype::F8_E5M2 => ", which `aludel convert` writes",
        _ => "",
    };
    let is_unsupported = element_of(entry.dtype).is_none();
    is_unsupported
        .then(|| format!("{name} is of type {:?}; F32, F16 and BF16 are supported{remedy}", entry.dtype))
}

fn element_of(dtype: Dtype) -> Option<Element> {
    match dtype {
        Dtype::F32 => Some(Element::F32),
        Dtype::F16 => Some(Element::F16),
        Dtype::BF16 => Some(Element::BF16),
        _ => None,
    }
}

/// The mapped weights of a checked folder.
struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    map: Arc<WeightMap>,
    purpose: Use,
}

impl Weights<'_> {
    /// Loads the parameters that one tensor joins.
    fn load<D: Device>(
        &self,
        device: &D,
        inventory: &Inventory,
        stored: &Stored,
        parameters: &mut [Option<D::Buffer>],
    ) -> Result<(), Error> {
        let Some(entry) = self.checkpoint.tensor(&stored.name) else { return Ok(()) };
        let Some(element) = element_of(entry.dtype) else { return Ok(()) };
        let mut start = 0;
        for &part in &stored.parts {
            let elements: usize = inventory.parameters[part].shape.iter().product();
            let bytes = (elements * element.size()) as u64;
            let window = Window { map: Arc::clone(&self.map), entry: entry.clone(), start, bytes };
            start += bytes;
            let imported = device.import(Arc::new(window) as SharedBytes, element)?;
            parameters[part] = Some(match self.purpose {
                Use::Frozen => imported,
                Use::Trainable(weights) => {
                    let mut copy = device.zeros(elements, weights.element())?;
                    device.copy(&imported, &mut copy);
                    copy
                }
            });
        }
        if self.purpose != Use::Frozen {
            device.synchronize()?;
            self.map.release(entry, 0..entry.bytes);
        }
        Ok(())
    }
}

/// A part of a mapped tensor.
struct Window {
    map: Arc<WeightMap>,
    entry: TensorEntry,
    start: u64,
    bytes: u64,
}

impl AsRef<[u8]> for Window {
    fn as_ref(&self) -> &[u8] {
        self.map.bytes(&self.entry, self.start..self.start + self.bytes)
    }
}
