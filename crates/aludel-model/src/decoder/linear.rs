//! Computes linear layers with their adapters, forward and backward.
//!
//! With an adapter of rank r, `y = W x + s B (A x)`; `A x` and its gradient are computed anew where they are needed, as r is small.

use aludel_kernels::nn::{Accumulate, Device, DeviceError, Product};

use super::Decoder;
use crate::names::{Adapter, Linear};
use crate::parameters::Gradients;

/// What is done with a result: it is scaled, and then written, or written as a sum with what lies elsewhere and stays as it is.
#[derive(Debug)]
pub(super) struct Into<'a, B> {
    pub(super) scale: f32,
    pub(super) base: Option<&'a B>,
}

impl<B> Into<'_, B> {
    pub(super) const OVERWRITE: Self = Self { scale: 1.0, base: None };
}

impl<D: Device> Decoder<D> {
    /// `y` becomes `scale * linear(x)`, with what it is added to.
    pub(super) fn linear(
        &self,
        linear: &Linear,
        rows: usize,
        x: &D::Buffer,
        y: &mut D::Buffer,
        into: Into<'_, D::Buffer>,
    ) -> Result<(), DeviceError> {
        let (device, parameters) = (&*self.device, &self.parameters);
        let bias = linear.bias.map(|bias| parameters.buffer(bias));
        if bias.is_some() && into.scale != 1.0 {
            // A product's factor does not apply to its bias.
            let mut whole = self.pool.take(rows * linear.outputs)?;
            self.linear(linear, rows, x, &mut whole, Into::OVERWRITE)?;
            self.put(&whole, y, into);
            return Ok(());
        }
        let product = Product { rows, inputs: linear.inputs, outputs: linear.outputs, scale: into.scale };
        let weight = parameters.buffer(linear.weight);
        match into.base {
            None => device.linear(product, x, weight, bias, y, Accumulate::Overwrite),
            Some(base) => device.linear_onto(product, x, weight, bias, base, y),
        }
        if let Some(adapter) = &linear.adapter {
            let (down, up) = products(linear, adapter, rows, into.scale);
            let mut inner = self.pool.take(rows * adapter.rank)?;
            device.linear(down, x, parameters.buffer(adapter.a), None, &mut inner, Accumulate::Overwrite);
            device.linear(up, &inner, parameters.buffer(adapter.b), None, y, Accumulate::Add);
        }
        Ok(())
    }

    /// Gradient of [`Decoder::linear`] whose result was scaled by `scale`: `dx` as `into` says; parameters' gradients are
    /// added to.
    #[expect(clippy::too_many_arguments, reason = "what the gradient depends on")]
    pub(super) fn linear_backward(
        &self,
        linear: &Linear,
        rows: usize,
        x: &D::Buffer,
        dy: &D::Buffer,
        scale: f32,
        dx: &mut D::Buffer,
        into: Accumulate,
        gradients: &mut Gradients<D>,
    ) -> Result<(), DeviceError> {
        self.linear_backward_input(linear, rows, dy, scale, dx, into)?;
        self.linear_backward_parameters(linear, rows, x, dy, scale, gradients)
    }

    /// The part of [`Decoder::linear_backward`] that does not need `x`.
    pub(super) fn linear_backward_input(
        &self,
        linear: &Linear,
        rows: usize,
        dy: &D::Buffer,
        scale: f32,
        dx: &mut D::Buffer,
        into: Accumulate,
    ) -> Result<(), DeviceError> {
        let (device, parameters) = (&*self.device, &self.parameters);
        let product = Product { rows, inputs: linear.inputs, outputs: linear.outputs, scale };
        device.linear_backward_input(product, dy, parameters.buffer(linear.weight), dx, into);
        if let Some(adapter) = &linear.adapter {
            let (down, up) = products(linear, adapter, rows, scale);
            let (a, b) = (parameters.buffer(adapter.a), parameters.buffer(adapter.b));
            let mut d_inner = self.pool.take(rows * adapter.rank)?;
            device.linear_backward_input(up, dy, b, &mut d_inner, Accumulate::Overwrite);
            device.linear_backward_input(down, &d_inner, a, dx, Accumulate::Add);
        }
        Ok(())
    }

    /// The part of [`Decoder::linear_backward`] that does.
    pub(super) fn linear_backward_parameters(
        &self,
        linear: &Linear,
        rows: usize,
        x: &D::Buffer,
        dy: &D::Buffer,
        scale: f32,
        gradients: &mut Gradients<D>,
    ) -> Result<(), DeviceError> {
        let (device, parameters) = (&*self.device, &self.parameters);
        if linear.bias.is_some() && scale != 1.0 {
            // As forward.
            let mut scaled = self.pool.take(rows * linear.outputs)?;
            self.put(dy, &mut scaled, Into { scale, ..Into::OVERWRITE });
            return self.linear_backward_parameters(linear, rows, x, &scaled, 1.0, gradients);
        }
        let product = Product { rows, inputs: linear.inputs, outputs: linear.outputs, scale };
        if let (Some(d_weight), d_bias) = gradients.of_linear(linear.weight, linear.bias) {
            device.linear_backward_weight(product, dy, x, d_weight, d_bias);
        }
        if let Some(adapter) = &linear.adapter {
            let (down, up) = products(linear, adapter, rows, scale);
            let mut inner = self.pool.take(rows * adapter.rank)?;
            device.linear(down, x, parameters.buffer(adapter.a), None, &mut inner, Accumulate::Overwrite);
            if let Some(d_b) = gradients.of(adapter.b) {
                device.linear_backward_weight(up, dy, &inner, d_b, None);
            }
            if let Some(d_a) = gradients.of(adapter.a) {
                let d_inner = &mut inner;
                let b = parameters.buffer(adapter.b);
                device.linear_backward_input(up, dy, b, d_inner, Accumulate::Overwrite);
                device.linear_backward_weight(down, d_inner, x, d_a, None);
            }
        }
        Ok(())
    }

    /// `y` becomes `scale * x`, with what it is added to.
    pub(super) fn put(&self, x: &D::Buffer, y: &mut D::Buffer, into: Into<'_, D::Buffer>) {
        if let Some(base) = into.base {
            self.device.copy(base, y);
            self.device.add(x, into.scale, y);
            return;
        }
        self.device.copy(x, y);
        if into.scale != 1.0 {
            self.device.scale(y, into.scale);
        }
    }
}

/// The products with A and with B.
fn products(linear: &Linear, adapter: &Adapter, rows: usize, scale: f32) -> (Product, Product) {
    let down = Product { rows, inputs: linear.inputs, outputs: adapter.rank, scale: 1.0 };
    let up = Product { rows, inputs: adapter.rank, outputs: linear.outputs, scale: adapter.scale * scale };
    (down, up)
}
