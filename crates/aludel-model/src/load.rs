//! Loads a model folder, or a GGUF file, onto a device.
//!
//! In: a path, untrusted, and what the model is for. Out: a [`Decoder`]. Frozen weights stay where they are in the mapped
//! files where the device can use them there; trained ones are copied in the type that was asked for. Every tensor is held
//! against the config before anything is allocated, and all that do not fit are named at once. It downloads nothing.

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aludel_checkpoint::{Checkpoint, Config, Dtype, TensorEntry, WeightMap};
use aludel_kernels::element::Element;
use aludel_kernels::nn::device::LayerWeights;
use aludel_kernels::nn::{Device, DeviceError, Missing, SharedBytes};

use crate::config::{FeedForward, LayerConfig, ModelConfig};
use crate::decoder::{Decoder, layer_of};
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
    /// As frozen, with the weights of its layers in the host's memory, of which a device with its own has two layers at a time.
    FrozenAside,
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

    /// Makes a frozen model of tensors that are in memory, as a folder of them would be loaded.
    ///
    /// Errors: as [`Decoder::open`].
    pub fn of_tensors(json: Config, tensors: &impl Tensors<D>, device: Arc<D>) -> Result<Self, Error> {
        let config = ModelConfig::parse(&json)?;
        check_device(&*device, &config)?;
        let inventory = Inventory::new(&config);
        check(tensors, &inventory, config.tied)?;
        let (parameters, _) = load(tensors, Use::Frozen, &*device, &inventory)?;
        let source = Source { config: json, folder: None, side_files: Vec::new() };
        Ok(Self::assemble(device, config, inventory, parameters, source))
    }

    fn load(checkpoint: &Checkpoint, json: Config, device: Arc<D>, purpose: Use) -> Result<Self, Error> {
        let config = ModelConfig::parse(&json)?;
        check_device(&*device, &config)?;
        let inventory = Inventory::new(&config);
        let mapped = Mapped { checkpoint, map: Arc::new(WeightMap::open(checkpoint)?) };
        check::<D>(&mapped, &inventory, config.tied)?;
        let (parameters, layers) = load(&mapped, purpose, &*device, &inventory)?;
        let source = Source::of(checkpoint, json);
        Ok(Self::assemble(device, config, inventory, parameters, source).with_layers(layers))
    }
}

/// Refuses a model that has what the device does not compute.
pub(crate) fn check_device<D: Device>(device: &D, config: &ModelConfig) -> Result<(), Error> {
    let obstacle = |missing: &Missing| {
        let has = |is_such: &dyn Fn(&LayerConfig) -> bool| config.layers.iter().any(is_such);
        match missing {
            Missing::Experts => has(&|layer| matches!(layer.feed_forward, FeedForward::Experts { .. }))
                .then_some("has mixtures of experts"),
            Missing::HeadsOfOddWidth => has(&|layer| !layer.attention.width.is_multiple_of(8))
                .then_some("has heads of a width that is no multiple of 8"),
        }
    };
    match device.missing().iter().find_map(obstacle) {
        Some(what) => Err(Error::config(format!(
            "it {what}, which {} does not compute; compute it on the CPU",
            device.name()
        ))),
        None => Ok(()),
    }
}

/// Where the tensors of a model are.
pub trait Tensors<D: Device> {
    /// What messages call it.
    fn path(&self) -> PathBuf {
        PathBuf::from("the model in memory")
    }

    /// Their names in a model folder.
    fn names(&self) -> impl Iterator<Item = &str>;

    /// The type and the sides of a tensor.
    fn facts(&self, name: &str) -> Option<(Dtype, &[usize])>;

    /// Whether it has a tensor in a form that has to be decoded.
    fn is_encoded(&self, name: &str) -> bool {
        let _ = name;
        false
    }

    /// Elements of a tensor that is there, of this type, on the device.
    ///
    /// # Errors
    /// What the device says.
    fn elements(
        &self,
        device: &D,
        name: &str,
        range: Range<usize>,
        element: Element,
    ) -> Result<D::Buffer, DeviceError>;

    /// The bytes of elements as they are stored, where they are at hand.
    fn bytes(&self, name: &str, range: Range<usize>, element: Element) -> Option<SharedBytes> {
        let _ = (name, range, element);
        None
    }

    /// Says that a tensor's bytes have been copied.
    fn release(&self, name: &str) {
        let _ = name;
    }
}

/// Parameters, and layers that lie aside.
type Loaded<D> = (Vec<Parameter<D>>, Option<<D as Device>::Layers>);

/// All parameters of a model whose tensors were checked, and its layers where they lie aside.
fn load<D: Device>(
    tensors: &impl Tensors<D>,
    purpose: Use,
    device: &D,
    inventory: &Inventory,
) -> Result<Loaded<D>, Error> {
    let mut parameters: Vec<Option<D::Buffer>> = inventory.parameters.iter().map(|_| None).collect();
    let layers = match purpose {
        Use::FrozenAside => load_aside(tensors, device, inventory, &mut parameters)?,
        _ => None,
    };
    for stored in &inventory.stored {
        if stored.parts.iter().any(|&part| parameters[part].is_none()) {
            load_parts(tensors, purpose, device, inventory, stored, &mut parameters)?;
        }
    }
    let is_trained = matches!(purpose, Use::Trainable(_));
    let parameters = inventory.parameters.iter().zip(parameters).filter_map(|(named, buffer)| {
        let (name, shape) = (named.name.clone(), named.shape.clone());
        Some(Parameter { name, shape, buffer: buffer?, trainable: is_trained })
    });
    Ok((parameters.collect(), layers))
}

/// The parameters of all layers, in the host's memory; none where the device's is the host's.
fn load_aside<D: Device>(
    tensors: &impl Tensors<D>,
    device: &D,
    inventory: &Inventory,
    parameters: &mut [Option<D::Buffer>],
) -> Result<Option<D::Layers>, Error> {
    let count = inventory.places.layers.len();
    let mut weights: Vec<LayerWeights> = (0..count).map(|_| Vec::new()).collect();
    let mut parts: Vec<Vec<usize>> = vec![Vec::new(); count];
    for stored in &inventory.stored {
        let Some(layer) = layer_of(&stored.name).filter(|&layer| layer < count) else { continue };
        let facts = tensors.facts(&stored.name);
        let Some(element) = facts.and_then(|(dtype, _)| element_of(dtype)) else { continue };
        let mut start = 0;
        for &part in &stored.parts {
            let elements: usize = inventory.parameters[part].shape.iter().product();
            let Some(bytes) = tensors.bytes(&stored.name, start..start + elements, element) else {
                return Ok(None);
            };
            start += elements;
            weights[layer].push((bytes, element));
            parts[layer].push(part);
        }
    }
    let Some((layers, buffers)) = device.layers(&weights)? else { return Ok(None) };
    for (part, buffer) in parts.into_iter().flatten().zip(buffers.into_iter().flatten()) {
        parameters[part] = Some(buffer);
    }
    inventory.stored.iter().for_each(|stored| tensors.release(&stored.name));
    Ok(Some(layers))
}

/// Loads the parameters that one tensor joins.
fn load_parts<D: Device>(
    tensors: &impl Tensors<D>,
    purpose: Use,
    device: &D,
    inventory: &Inventory,
    stored: &Stored,
    parameters: &mut [Option<D::Buffer>],
) -> Result<(), Error> {
    let facts = tensors.facts(&stored.name);
    let Some(element) = facts.and_then(|(dtype, _)| element_of(dtype)) else { return Ok(()) };
    let mut start = 0;
    for &part in &stored.parts {
        let elements: usize = inventory.parameters[part].shape.iter().product();
        let imported = tensors.elements(device, &stored.name, start..start + elements, element)?;
        start += elements;
        parameters[part] = Some(match purpose {
            Use::Frozen | Use::FrozenAside => imported,
            Use::Trainable(weights) => {
                let mut copy = device.zeros(elements, weights.element())?;
                device.copy(&imported, &mut copy);
                copy
            }
        });
    }
    if matches!(purpose, Use::Trainable(_)) {
        device.synchronize()?;
        tensors.release(&stored.name);
    }
    Ok(())
}

/// Holds every tensor of a model against the inventory.
fn check<D: Device>(tensors: &impl Tensors<D>, inventory: &Inventory, tied: bool) -> Result<(), Error> {
    let mut problems = Vec::new();
    for stored in &inventory.stored {
        match tensors.facts(&stored.name) {
            None if tensors.is_encoded(&stored.name) => problems.push(format!(
                "{} is not stored in order; write the model anew with `aludel convert`",
                stored.name
            )),
            None => problems.push(format!("{} is missing", stored.name)),
            Some((dtype, shape)) => problems.extend(mismatch(stored, dtype, shape)),
        }
    }
    let expected: HashSet<&str> = inventory.stored.iter().map(|stored| stored.name.as_str()).collect();
    let is_known = |name: &str| {
        // Files of old versions have the frequencies; some have a tied head twice.
        expected.contains(name) || name.ends_with(".rotary_emb.inv_freq") || (tied && name == HEAD)
    };
    let unknown = tensors.names().filter(|name| !is_known(name));
    problems.extend(unknown.map(|name| format!("{name:?} belongs to nothing in the model")));
    Problems::none_or(problems, |problems| Error::Weights { path: tensors.path(), problems })
}

fn mismatch(stored: &Stored, dtype: Dtype, shape: &[usize]) -> Option<String> {
    let name = &stored.name;
    if shape != stored.shape {
        return Some(format!("{name} is {shape:?} and should be {:?}", stored.shape));
    }
    let remedy = match dtype {
        Dtype::F8_E4M3 | Dtype::F8_E5M2 => ", which `aludel convert` writes",
        _ => "",
    };
    let is_unsupported = element_of(dtype).is_none();
    is_unsupported.then(|| format!("{name} is of type {dtype:?}; F32, F16 and BF16 are supported{remedy}"))
}

fn element_of(dtype: Dtype) -> Option<Element> {
    match dtype {
        Dtype::F32 => Some(Element::F32),
        Dtype::F16 => Some(Element::F16),
        Dtype::BF16 => Some(Element::BF16),
        _ => None,
    }
}

/// A model folder.
struct Mapped<'a> {
    checkpoint: &'a Checkpoint,
    map: Arc<WeightMap>,
}

impl Mapped<'_> {
    fn window(&self, name: &str, range: Range<usize>, element: Element) -> SharedBytes {
        let entry = self.checkpoint.tensor(name).cloned();
        let bytes = |at: usize| (at * element.size()) as u64;
        let range = bytes(range.start)..bytes(range.end);
        Arc::new(Window { map: Arc::clone(&self.map), entry, range })
    }
}

impl<D: Device> Tensors<D> for Mapped<'_> {
    fn path(&self) -> PathBuf {
        self.checkpoint.path().to_path_buf()
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.checkpoint.tensors().keys().map(String::as_str)
    }

    fn facts(&self, name: &str) -> Option<(Dtype, &[usize])> {
        self.checkpoint.tensor(name).map(|entry| (entry.dtype, &*entry.shape))
    }

    fn is_encoded(&self, name: &str) -> bool {
        self.checkpoint.encoded().contains_key(name)
    }

    fn elements(
        &self,
        device: &D,
        name: &str,
        range: Range<usize>,
        element: Element,
    ) -> Result<D::Buffer, DeviceError> {
        device.import(self.window(name, range, element), element)
    }

    fn bytes(&self, name: &str, range: Range<usize>, element: Element) -> Option<SharedBytes> {
        Some(self.window(name, range, element))
    }

    fn release(&self, name: &str) {
        if let Some(entry) = self.checkpoint.tensor(name) {
            self.map.release(entry, 0..entry.bytes);
        }
    }
}

/// A part of a mapped tensor.
struct Window {
    map: Arc<WeightMap>,
    /// `None` for a tensor that is not there, which has no bytes.
    entry: Option<TensorEntry>,
    range: Range<u64>,
}

impl AsRef<[u8]> for Window {
    fn as_ref(&self) -> &[u8] {
        self.entry.as_ref().map_or(&[], |entry| self.map.bytes(entry, self.range.clone()))
    }
}

/// A part of a tensor in memory.
pub struct Slice {
    /// Those of the tensor, little-endian.
    pub bytes: SharedBytes,
    /// Which of them.
    pub range: Range<usize>,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        &(*self.bytes).as_ref()[self.range.clone()]
    }
}
