//! Adds low-rank adapters to a model (Hu et al. 2021, LoRA) and writes them as peft reads them.
//!
//! In: which linear layers, and the rank. Out: a model whose base is frozen and whose matrices A and B are trained:
//! `y = W x + s B A x`, with `s = alpha / rank`, or `alpha / sqrt(rank)` where ranks are to be compared (Kalajdzievski
//! 2023, rsLoRA). A is drawn as torch initialises a linear layer, uniform within `1 / sqrt(inputs)`; B is zero, so that
//! the model is at first what it was. There is no dropout. Experts have no adapters.

use aludel_checkpoint::{ADAPTER_CONFIG, AdapterFiles, AdapterTensor, OutputFolder, OutputTensor};
use aludel_kernels::element::Element;
use aludel_kernels::nn::{Device, DeviceError};
use aludel_kernels::random::{StreamKey, uniform};
use indexmap::{IndexMap, IndexSet};

use crate::decoder::Decoder;
use crate::error::{Error, Problems};
use crate::names::{Adapter, FeedForwardPlaces, LayerPlaces, Linear};
use crate::parameters::Parameter;
use crate::random::stream;
use crate::save::{Output, stored_type};

/// Which adapters a model gets.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSpec {
    /// The inner width of each.
    pub rank: usize,
    /// The adapters' factor is this over the rank, or over its root.
    pub alpha: f64,
    /// The factor is `alpha / sqrt(rank)`.
    pub rank_stabilised: bool,
    /// Names of the linear layers, as files name them: a layer has an adapter where its name is, or ends in a dot and, one
    /// of these ("q_proj"; of Phi-3 "qkv_proj"). `all-linear` alone stands for all of every layer.
    pub targets: Vec<String>,
    /// Seed of A.
    pub seed: u64,
}

impl AdapterSpec {
    fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rank_stabilised { rank.sqrt() } else { rank }
    }

    fn targets(&self, module: &str) -> bool {
        let is_named = |target: &String| {
            module.strip_suffix(target.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        self.targets == [ALL] || self.targets.iter().any(is_named)
    }
}

/// The adapters of a model, for saving: the B of each part of a module, in the order of its rows.
#[derive(Clone, Debug)]
pub(crate) struct Adapters {
    spec: AdapterSpec,
    modules: IndexMap<String, Module>,
}

#[derive(Clone, Debug)]
struct Module {
    a: usize,
    parts: Vec<usize>,
}

impl<D: Device> Decoder<D> {
    /// Freezes the model and adds adapters, which are trained in f32.
    ///
    /// Errors: [`Error::Change`] where the model has adapters already, the rank is 0 or larger than a matrix, alpha is no
    /// number above 0, or a target names no layer; what the device says.
    pub fn add_adapters(&mut self, spec: &AdapterSpec) -> Result<(), Error> {
        self.check_spec(spec)?;
        for parameter in self.parameters_mut().list_mut() {
            parameter.trainable = false;
        }
        let mut adapters = Adapters { spec: spec.clone(), modules: IndexMap::new() };
        for layer in 0..self.config().layers.len() {
            // Places are changed while parameters are added, so they are put back after.
            let mut places = self.places().layers[layer].clone();
            for linear in linears_mut(&mut places).into_iter().filter(|linear| spec.targets(&linear.module)) {
                self.add_adapter(spec, linear, &mut adapters)?;
            }
            self.places_mut().layers[layer] = places;
        }
        self.set_adapters(adapters);
        Ok(())
    }

    fn check_spec(&self, spec: &AdapterSpec) -> Result<(), Error> {
        if self.adapters().is_some() {
            return Err(Error::change("the model has adapters already"));
        }
        let linears = || self.places().layers.iter().flat_map(linears);
        let widest = linears().map(|linear| linear.inputs.min(linear.outputs)).max().unwrap_or(0);
        let mut problems = Vec::new();
        if spec.rank == 0 || spec.rank > widest {
            problems.push(format!("a rank of {} does not suit matrices of at most {widest}", spec.rank));
        }
        if !(spec.alpha > 0.0 && spec.alpha.is_finite()) {
            problems.push(format!("alpha is {}, which is no number above 0", spec.alpha));
        }
        let names: IndexSet<&str> =
            linears().map(|linear| linear.module.rsplit('.').next().unwrap_or_default()).collect();
        let names = || names.iter().copied().collect::<Vec<_>>().join(", ");
        if spec.targets.is_empty() {
            problems.push(format!("no layer is named; there are {}", names()));
        }
        for target in spec.targets.iter().filter(|&target| spec.targets.len() > 1 || target != ALL) {
            let one = AdapterSpec { targets: vec![target.clone()], ..spec.clone() };
            if !linears().any(|linear| one.targets(&linear.module)) {
                problems.push(format!("no layer is named {target:?}; there are {}", names()));
            }
        }
        Problems::none_or(problems, Error::Change)
    }

    fn add_adapter(
        &mut self,
        spec: &AdapterSpec,
        linear: &mut Linear,
        adapters: &mut Adapters,
    ) -> Result<(), DeviceError> {
        let (module, rank) = (linear.module.clone(), spec.rank);
        let part = self.parameters().at(linear.weight).name.trim_end_matches(".weight").to_owned();
        let a = match adapters.modules.get(&module) {
            Some(module) => module.a,
            None => {
                let bound = (linear.inputs as f64).powf(-0.5);
                let name = format!("{module}.lora_A.weight");
                let values = uniform_values(spec.seed, &name, rank * linear.inputs, bound);
                self.add_parameter(name, vec![rank, linear.inputs], Some(&values))?
            }
        };
        let b = self.add_parameter(format!("{part}.lora_B.weight"), vec![linear.outputs, rank], None)?;
        linear.adapter = Some(Adapter { a, b, rank, scale: spec.scale() as f32 });
        adapters.modules.entry(module).or_insert_with(|| Module { a, parts: Vec::new() }).parts.push(b);
        Ok(())
    }

    /// A trained f32 parameter at the end of the list.
    fn add_parameter(
        &mut self,
        name: String,
        shape: Vec<usize>,
        values: Option<&[f32]>,
    ) -> Result<usize, DeviceError> {
        let mut buffer = self.device().zeros(shape.iter().product(), Element::F32)?;
        if let Some(values) = values {
            self.device().write(&mut buffer, 0, values)?;
        }
        let list = self.parameters_mut().list_mut();
        list.push(Parameter { name, shape, buffer, trainable: true });
        Ok(list.len() - 1)
    }

    /// The adapter of a weight.
    pub(crate) fn adapter_of(&self, weight: usize) -> Option<Adapter> {
        self.adapters()?;
        let mut all = self.places().layers.iter().flat_map(linears);
        all.find(|linear| linear.weight == weight)?.adapter
    }

    /// Writes the adapters' files, `adapter_config.json` and `adapter_model.safetensors`, into a folder under construction.
    /// `base` is what peft is to load them onto: a path or a name on a hub.
    ///
    /// Errors: [`Error::Change`] where the model has none; those of the folder; what the device says.
    pub fn write_adapters(&self, folder: &OutputFolder, base: &str) -> Result<(), Error> {
        let Some(adapters) = self.adapters() else {
            return Err(Error::change("the model has no adapters to save"));
        };
        folder.write(ADAPTER_CONFIG, adapters.config(base).as_bytes())?;
        let tensors = adapters.modules.iter().flat_map(|(name, module)| {
            [
                (AdapterTensor::A.name(name), vec![module.a]),
                (AdapterTensor::B.name(name), module.parts.clone()),
            ]
        });
        let tensors: IndexMap<String, Vec<usize>> = tensors.collect();
        let outputs = tensors.iter().map(|(name, parts)| {
            let shapes = || parts.iter().map(|&part| &self.parameters().at(part).shape);
            let rows = shapes().map(|shape| shape[0]).sum();
            let columns = shapes().next().map_or(0, |shape| shape[1]);
            let dtype = stored_type(Element::F32);
            OutputTensor { name: name.clone(), dtype, shape: vec![rows, columns] }
        });
        let layout = AdapterFiles::layout(outputs.collect())?;
        let writer = folder.shards(&layout)?;
        for (index, tensor) in layout.tensors().iter().enumerate() {
            let at = layout.placement(index);
            let mut output = Output { writer: &writer, at, done: 0, dtype: Element::F32 };
            for &part in &tensors[&tensor.name] {
                let parameter = self.parameters().at(part);
                output.write(&self.device().read(&parameter.buffer, 0..parameter.elements())?)?;
            }
        }
        writer.finish()?;
        Ok(())
    }
}

impl Adapters {
    /// The text of `adapter_config.json`.
    fn config(&self, base: &str) -> String {
        let suffix = |module: &String| module.rsplit('.').next().unwrap_or_default().to_owned();
        let targets: IndexSet<String> = match self.spec.targets.as_slice() {
            [only] if only == ALL => self.modules.keys().map(suffix).collect(),
            targets => targets.iter().cloned().collect(),
        };
        let files = AdapterFiles {
            base: base.to_owned(),
            rank: self.spec.rank,
            alpha: self.spec.alpha,
            rank_stabilised: self.spec.rank_stabilised,
            targets: targets.into_iter().collect(),
            task: Some("CAUSAL_LM".to_owned()),
            ..AdapterFiles::default()
        };
        files.config_json()
    }
}

fn uniform_values(seed: u64, name: &str, len: usize, bound: f64) -> Vec<f32> {
    let key: StreamKey = stream(seed, name);
    (0..len as u64).map(|index| ((2.0 * f64::from(uniform(key, index)) - 1.0) * bound) as f32).collect()
}

/// Linear layers that can have an adapter.
fn linears(places: &LayerPlaces) -> Vec<&Linear> {
    let mut linears = vec![&places.query, &places.key, &places.value, &places.output];
    if let FeedForwardPlaces::Dense { gate, up, down } = &places.feed_forward {
        linears.extend([gate, up, down]);
    }
    linears
}

fn linears_mut(places: &mut LayerPlaces) -> Vec<&mut Linear> {
    let mut linears = vec![&mut places.query, &mut places.key, &mut places.value, &mut places.output];
    if let FeedForwardPlaces::Dense { gate, up, down } = &mut places.feed_forward {
        linears.extend([gate, up, down]);
    }
    linears
}

/// The target that stands for all.
const ALL: &str = "all-linear";
