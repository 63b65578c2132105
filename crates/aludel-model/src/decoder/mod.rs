//! Runs a decoder-only model forward and backward on a device.
//!
//! In: packed documents of token ids. Out: the hidden states after the last norm, those of chosen layers where they are
//! asked for, and, from the gradients of these, the gradients of the parameters. Forward and backward are written out, there
//! is no tape; [`Keep`] says what the forward pass leaves for the backward pass. Logits are made elsewhere, fused with the
//! loss ([`Decoder::head`] gives the matrix). It reads and writes no files: see `load` and `save`.
//!
//! Modules in reading order: `linear`, `half` (norms and residuals), `attention`, `feed_forward`, `rotary`, `pass`
//! (the walk through the layers), `inputs` (what goes into linear layers), `cache` (generation).

mod attention;
mod cache;
mod feed_forward;
mod half;
mod inputs;
mod linear;
mod pass;
pub(crate) mod rotary;

use std::sync::Arc;

use aludel_kernels::element::Element;
use aludel_kernels::loss::Head;
use aludel_kernels::nn::{Device, DeviceError, Span};

use crate::adapter::Adapters;
use crate::config::ModelConfig;
use crate::names::{Inventory, Places, Stored};
use crate::parameters::{Gradients, Parameter, Parameters};
use crate::pool::Pool;
use crate::source::Source;
use rotary::{Rotary, Rotation};

pub use cache::{Extension, KeyValueCache};
pub use inputs::{Grams, Site};
pub use pass::{Keep, Pass, Passed};

/// The layer that a parameter is of, by its name.
pub(crate) fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("model.layers.")?.split_once('.')?.0.parse().ok()
}

/// A model on a device.
pub struct Decoder<D: Device> {
    device: Arc<D>,
    config: ModelConfig,
    parameters: Parameters<D>,
    places: Places,
    /// Tensors of a model folder, base weights only.
    stored: Vec<Stored>,
    pool: Pool<D>,
    rotary: Rotary<D>,
    source: Source,
    adapters: Option<Adapters>,
    /// Layers whose weights lie in the host's memory.
    layers: Option<D::Layers>,
}

/// What all layers of a step share.
pub(crate) struct Step<D: Device> {
    rows: usize,
    spans: Vec<Span>,
    /// One for each rotary embedding of the model.
    rotations: Vec<Rotation<D>>,
}

impl<D: Device> Decoder<D> {
    /// Puts a model together from its parameters, in the order of the inventory.
    pub(crate) fn assemble(
        device: Arc<D>,
        config: ModelConfig,
        inventory: Inventory,
        parameters: Vec<Parameter<D>>,
        source: Source,
    ) -> Self {
        Self {
            pool: Pool::new(Arc::clone(&device)),
            rotary: Rotary::new(config.ropes.clone()),
            device,
            config,
            parameters: Parameters::new(parameters),
            places: inventory.places,
            stored: inventory.stored,
            source,
            adapters: None,
            layers: None,
        }
    }

    pub(crate) fn with_layers(self, layers: Option<D::Layers>) -> Self {
        Self { layers, ..self }
    }

    /// Sees to it that a layer's weights are there for what is computed next.
    pub(crate) fn bring(&self, layer: usize) {
        if let Some(layers) = &self.layers {
            self.device.bring(layers, layer);
        }
    }

    /// As [`Decoder::bring`], of the layer that has a parameter.
    pub(crate) fn bring_parameter(&self, index: usize) {
        if let Some(layer) = layer_of(&self.parameters.at(index).name) {
            self.bring(layer);
        }
    }

    /// When the gradient of each parameter is final in a backward pass: in stage 0 before the last layer, in stage 1 after it, and so on; those of the
    /// embedding after the first layer's.
    pub fn stages(&self) -> Vec<usize> {
        let layers = self.config.layers.len();
        let is_early = |index| index == self.places.norm || (index == self.places.head && !self.config.tied);
        let stage = |(index, parameter): (usize, &Parameter<D>)| match layer_of(&parameter.name) {
            Some(layer) if layer < layers => layers - layer,
            _ if is_early(index) => 0,
            _ => layers + 1,
        };
        self.parameters.iter().enumerate().map(stage).collect()
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device that it is on.
    pub fn device(&self) -> &Arc<D> {
        &self.device
    }

    /// Its parameters.
    pub fn parameters(&self) -> &Parameters<D> {
        &self.parameters
    }

    /// Its parameters, to be updated.
    pub fn parameters_mut(&mut self) -> &mut Parameters<D> {
        &mut self.parameters
    }

    /// Zero gradients in f32 for the parameters that are trained.
    ///
    /// Errors: what the device says.
    pub fn gradients(&self) -> Result<Gradients<D>, DeviceError> {
        self.gradients_of(Element::F32)
    }

    /// As [`Decoder::gradients`], with those of matrices in f32 or in the device's type of activations: what is added to them is rounded to it.
    ///
    /// Errors: what the device says.
    pub fn gradients_of(&self, matrices: Element) -> Result<Gradients<D>, DeviceError> {
        Gradients::zeros(&self.device, &self.parameters, matrices)
    }

    /// The matrix that makes logits of hidden states after the last norm, and what is done with them.
    pub fn head(&self) -> Head<'_, D::Buffer> {
        Head {
            weight: self.parameters.buffer(self.places.head),
            bias: None,
            vocabulary: self.config.vocabulary,
            valid: self.config.vocabulary,
            width: self.config.hidden,
            scale: self.config.logit_scale,
            soft_cap: self.config.logit_soft_cap,
        }
    }

    /// The gradient of the head's matrix, where it is trained: the embedding's where they are tied.
    pub fn head_gradient<'a>(&self, gradients: &'a mut Gradients<D>) -> Option<&'a mut D::Buffer> {
        gradients.of(self.places.head)
    }

    /// Says which parameters are trained, by their names. Of those of a mixture of experts all of a layer are, or none.
    pub fn train_only(&mut self, is_trained: impl Fn(&str) -> bool) {
        for parameter in self.parameters.list_mut() {
            parameter.trainable = is_trained(&parameter.name);
        }
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    pub(crate) fn source_mut(&mut self) -> &mut Source {
        &mut self.source
    }

    pub(crate) fn stored(&self) -> &[Stored] {
        &self.stored
    }

    pub(crate) fn places_mut(&mut self) -> &mut Places {
        &mut self.places
    }

    pub(crate) fn adapters(&self) -> Option<&Adapters> {
        self.adapters.as_ref()
    }

    pub(crate) fn set_adapters(&mut self, adapters: Adapters) {
        self.adapters = Some(adapters);
    }

    pub(crate) fn places(&self) -> &Places {
        &self.places
    }
}
