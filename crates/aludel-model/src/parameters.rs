//! Holds a model's parameters on a device, and the gradients of those that are trained.
//!
//! In: names, shapes and buffers. Out: the parameters in the order of the model: embedding, layers, last norm, head, then
//! adapters; each by its position. It computes nothing.

use aludel_kernels::element::Element;
use aludel_kernels::nn::{Device, DeviceError};

/// One parameter.
pub struct Parameter<D: Device> {
    /// Its name: that of its tensor in a model folder, but that query, key, value, gate and up have their own where files
    /// store them as one, and that all experts of a layer are one parameter ("model.layers.0.mlp.experts.up_proj.weight").
    pub name: String,
    /// Sides, slowest first: `[outputs, inputs]` for a matrix, `[experts, outputs, inputs]` for all experts' matrices.
    pub shape: Vec<usize>,
    /// Its values.
    pub buffer: D::Buffer,
    /// It has a gradient.
    pub trainable: bool,
}

impl<D: Device> Parameter<D> {
    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether weight decay is meant for it: matrices, not norms and biases.
    pub fn decays(&self) -> bool {
        self.shape.len() > 1
    }
}

/// The parameters of a decoder.
pub struct Parameters<D: Device> {
    list: Vec<Parameter<D>>,
}

impl<D: Device> Parameters<D> {
    pub(crate) fn new(list: Vec<Parameter<D>>) -> Self {
        Self { list }
    }

    /// All of them, in the order of the model.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Parameter<D>> {
        self.list.iter()
    }

    /// Those that are trained, in the order of [`Gradients::iter`].
    pub fn trainable(&self) -> impl Iterator<Item = &Parameter<D>> {
        self.list.iter().filter(|parameter| parameter.trainable)
    }

    /// As [`Parameters::trainable`], to be updated.
    pub fn trainable_mut(&mut self) -> impl Iterator<Item = &mut Parameter<D>> {
        self.list.iter_mut().filter(|parameter| parameter.trainable)
    }

    /// The parameter of this name.
    pub fn named(&self, name: &str) -> Option<&Parameter<D>> {
        self.list.iter().find(|parameter| parameter.name == name)
    }

    pub(crate) fn list_mut(&mut self) -> &mut Vec<Parameter<D>> {
        &mut self.list
    }

    pub(crate) fn at(&self, index: usize) -> &Parameter<D> {
        &self.list[index]
    }

    pub(crate) fn buffer(&self, index: usize) -> &D::Buffer {
        &self.list[index].buffer
    }
}

/// Gradients of the trained parameters, f32 unless matrices have another type. A backward pass adds to them.
pub struct Gradients<D: Device> {
    /// One for each parameter of the model, where it is trained.
    buffers: Vec<Option<D::Buffer>>,
}

impl<D: Device> Gradients<D> {
    /// With this type of those of matrices.
    pub(crate) fn zeros(
        device: &D,
        parameters: &Parameters<D>,
        of_matrices: Element,
    ) -> Result<Self, DeviceError> {
        let zeros = |parameter: &Parameter<D>| {
            let element = if parameter.decays() { of_matrices } else { Element::F32 };
            parameter.trainable.then(|| device.zeros(parameter.elements(), element)).transpose()
        };
        Ok(Self { buffers: parameters.list.iter().map(zeros).collect::<Result<_, _>>()? })
    }

    /// Sets all to zero, for the next step.
    pub fn clear(&mut self, device: &D) {
        self.iter_mut().for_each(|buffer| device.fill(buffer, 0.0));
    }

    /// In the order of [`Parameters::trainable`].
    pub fn iter(&self) -> impl Iterator<Item = &D::Buffer> {
        self.buffers.iter().flatten()
    }

    /// As [`Gradients::iter`], to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut D::Buffer> {
        self.buffers.iter_mut().flatten()
    }

    /// Takes a gradient that nothing is added to any more, by the position of its parameter among all; `None` where it is not trained.
    pub fn take(&mut self, index: usize) -> Option<D::Buffer> {
        self.buffers[index].take()
    }

    /// Puts a gradient back that was taken.
    pub fn put(&mut self, index: usize, buffer: D::Buffer) {
        self.buffers[index] = Some(buffer);
    }

    pub(crate) fn of(&mut self, index: usize) -> Option<&mut D::Buffer> {
        self.buffers[index].as_mut()
    }

    pub(crate) fn of_range(&mut self, range: std::ops::Range<usize>) -> impl Iterator<Item = &mut D::Buffer> {
        self.buffers[range].iter_mut().flatten()
    }

    /// Gradients of a weight and its bias; `bias` is not `weight`.
    pub(crate) fn of_linear(
        &mut self,
        weight: usize,
        bias: Option<usize>,
    ) -> (Option<&mut D::Buffer>, Option<&mut D::Buffer>) {
        let Some(bias) = bias else { return (self.of(weight), None) };
        match self.buffers.get_disjoint_mut([weight, bias]) {
            Ok([weight, bias]) => (weight.as_mut(), bias.as_mut()),
            Err(_) => (None, None),
        }
    }
}
