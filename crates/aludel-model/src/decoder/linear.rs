//! Computes linear layers with their adapters, forward and backward.
//!
//! With an adapter of rank r, `y = W x + s B (A x)`; `A x` is computed anew in the backward pass, where r is small.

use aludel_kernels::nn::{Accumulate, Device, DeviceError, Product};

use super::Decoder;
use crate::names::{Adapter, Linear};
use crate::parameters::Gradients;

/// What is done with a result: it is scaled, and then written or added.
#[derive(Clone, Copy, Debug)]
pub(super) struct Into {
    pub(super) scale: f32,
    pub(super) accumulate: Accumulate,
}

impl Into {
    pub(super) const OVERWRITE: Self = Self { scale: 1.0, accumulate: Accumulate::Overwrite };
}

impl<D: Device> Decoder<D> {
    /// `y` becomes, or gains, `scale * linear(x)`.
    pub(super) fn linear(
        &self,
        linear: &Linear,
        rows: usize,
        x: &D::Buffer,
        y: &mut D::Buffer,
        into: Into,
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
        device.linear(product, x, parameters.buffer(linear.weight), bias, y, into.accumulate);
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
        let (device, parameters) = (&*self.device, &self.parameters);
        if linear.bias.is_some() && scale != 1.0 {
            let mut scaled = self.pool.take(rows * linear.outputs)?;
            self.put(dy, &mut scaled, Into { scale, ..Into::OVERWRITE });
            return self.linear_backward(linear, rows, x, &scaled, 1.0, dx, into, gradients);
        }
        let product = Product { rows, inputs: linear.inputs, outputs: linear.outputs, scale };
        device.linear_backward_input(product, dy, parameters.buffer(linear.weight), dx, into);
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
            let d_inner = &mut inner;
            device.linear_backward_input(
                up,
                dy,
                parameters.buffer(adapter.b),
                d_inner,
                Accumulate::Overwrite,
            );
            if let Some(d_a) = gradients.of(adapter.a) {
                device.linear_backward_weight(down, d_inner, x, d_a, None);
            }
            device.linear_backward_input(down, d_inner, parameters.buffer(adapter.a), dx, Accumulate::Add);
        }
        Ok(())
    }

    /// `y` becomes, or gains, `scale * x`.
    pub(super) fn put(&self, x: &D::Buffer, y: &mut D::Buffer, into: Into) {
        match into.accumulate {
            Accumulate::Add => self.device.add(x, into.scale, y),
            Accumulate::Overwrite => {
                self.device.copy(x, y);
                if into.scale != 1.0 {
                    self.device.scale(y, into.scale);
                }
            }
        }
    }
}

/// The products with A and with B.
fn products(linear: &Linear, adapter: &Adapter, rows: usize, scale: f32) -> (Product, Product) {
    let down = Product { rows, inputs: linear.inputs, outputs: adapter.rank, scale: 1.0 };
    let up = Product { rows, inputs: adapter.rank, outputs: linear.outputs, scale: adapter.scale * scale };
    (down, up)
}
