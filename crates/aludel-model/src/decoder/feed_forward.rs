//! Computes the feed-forward half of a layer, dense or a mixture of experts, forward and backward.
//!
//! Kept for the backward pass: gate and up; what the activation makes of them is computed anew. A mixture keeps its choice of
//! experts and what they returned as well. Tokens are grouped by expert, so that a product over all experts is one.

use std::ops::Range;

use aludel_kernels::nn::{Accumulate, Activation, Device, DeviceError, Product, Routing};

use super::Decoder;
use super::linear::Into;
use crate::config::FeedForward;
use crate::names::{ExpertPlaces, FeedForwardPlaces, Linear};
use crate::parameters::Gradients;
use crate::pool::Held;

/// What the backward pass needs.
pub(super) enum FeedForwardTrace<D: Device> {
    Dense { gate: Held<D>, up: Held<D> },
    Experts(ExpertsTrace<D>),
}

pub(super) struct ExpertsTrace<D: Device> {
    logits: Held<D>,
    weights: Held<D>,
    assignment: D::Assignment,
    gate: Held<D>,
    up: Held<D>,
    down: Held<D>,
}

/// What goes into the experts of a layer, row by row as they are grouped by expert.
pub(super) struct ExpertRows<'a, D: Device> {
    pub(super) assignment: &'a D::Assignment,
    /// Rows of both.
    pub(super) slots: usize,
    /// What goes into gate and up.
    pub(super) entered: Held<D>,
    /// What goes into down, of this width.
    pub(super) inner: Held<D>,
    pub(super) width: usize,
}

/// A mixture of experts of one layer.
#[derive(Clone, Copy)]
struct Mixture<'a> {
    router: &'a Linear,
    experts: ExpertPlaces,
    routing: Routing,
    width: usize,
    activation: Activation,
}

impl<D: Device> Decoder<D> {
    /// All but the last product; see [`Decoder::feed_forward_output`].
    pub(super) fn feed_forward(
        &self,
        layer: usize,
        rows: usize,
        x: &D::Buffer,
    ) -> Result<FeedForwardTrace<D>, DeviceError> {
        match &self.places.layers[layer].feed_forward {
            FeedForwardPlaces::Dense { gate: gate_linear, up: up_linear, .. } => {
                let mut gate = self.pool.take(rows * gate_linear.outputs)?;
                let mut up = self.pool.take(rows * up_linear.outputs)?;
                self.linear(gate_linear, rows, x, &mut gate, Into::OVERWRITE)?;
                self.linear(up_linear, rows, x, &mut up, Into::OVERWRITE)?;
                Ok(FeedForwardTrace::Dense { gate, up })
            }
            FeedForwardPlaces::Experts { router, experts } => {
                let mixture = self.mixture(layer, rows, router, *experts);
                Ok(FeedForwardTrace::Experts(self.experts(mixture, x)?))
            }
        }
    }

    /// The last product, or the weighted sum of what the experts returned.
    pub(super) fn feed_forward_output(
        &self,
        layer: usize,
        rows: usize,
        trace: &FeedForwardTrace<D>,
        out: &mut D::Buffer,
        into: Into<'_, D::Buffer>,
    ) -> Result<(), DeviceError> {
        match (trace, &self.places.layers[layer].feed_forward) {
            (FeedForwardTrace::Dense { .. }, FeedForwardPlaces::Dense { down, .. }) => {
                let inner = self.inner(layer, rows, trace)?;
                self.linear(down, rows, &inner, out, into)
            }
            (FeedForwardTrace::Experts(trace), _) => {
                let width = self.config.hidden;
                let combine = |y: &mut D::Buffer, accumulate| {
                    let (assignment, down, weights) = (&trace.assignment, &trace.down, &trace.weights);
                    self.device.combine_experts(assignment, width, down, weights, y, accumulate);
                };
                if into.scale == 1.0 {
                    if let Some(base) = into.base {
                        self.device.copy(base, out);
                    }
                    combine(out, if into.base.is_some() { Accumulate::Add } else { Accumulate::Overwrite });
                } else {
                    let mut sum = self.pool.take(rows * width)?;
                    combine(&mut sum, Accumulate::Overwrite);
                    self.put(&sum, out, into);
                }
                Ok(())
            }
            _ => unreachable!("a trace is of its own layer"),
        }
    }

    /// What goes into the last product: for each row of a dense half, for each choice of an expert in a mixture.
    pub(super) fn inner(
        &self,
        layer: usize,
        rows: usize,
        trace: &FeedForwardTrace<D>,
    ) -> Result<Held<D>, DeviceError> {
        let (gate, up) = match trace {
            FeedForwardTrace::Dense { gate, up } => (gate, up),
            FeedForwardTrace::Experts(trace) => (&trace.gate, &trace.up),
        };
        let (chosen, width) = match self.config.layers[layer].feed_forward {
            FeedForward::Dense { width, .. } => (1, width),
            FeedForward::Experts { chosen, width, .. } => (chosen, width),
        };
        let mut inner = self.pool.take(rows * chosen * width)?;
        self.device.gated(self.activation(layer), gate, up, &mut inner);
        Ok(inner)
    }

    /// What goes into the experts of a mixture, `x` being what goes into it.
    pub(super) fn expert_rows<'a>(
        &self,
        layer: usize,
        rows: usize,
        x: &D::Buffer,
        trace: &'a FeedForwardTrace<D>,
    ) -> Result<ExpertRows<'a, D>, DeviceError> {
        let (FeedForwardTrace::Experts(experts), FeedForward::Experts { chosen, width, .. }) =
            (trace, &self.config.layers[layer].feed_forward)
        else {
            unreachable!("a trace is of its own layer")
        };
        let (slots, assignment) = (rows * chosen, &experts.assignment);
        let mut entered = self.pool.take(slots * self.config.hidden)?;
        self.device.gather_experts(assignment, self.config.hidden, x, &mut entered);
        let inner = self.inner(layer, rows, trace)?;
        Ok(ExpertRows { assignment, slots, entered, inner, width: *width })
    }

    /// Gradient of both: `dx` is overwritten from `d_out`, the gradient of the scaled output.
    #[expect(clippy::too_many_arguments, reason = "what the gradient depends on")]
    pub(super) fn feed_forward_backward(
        &self,
        layer: usize,
        rows: usize,
        x: &D::Buffer,
        trace: FeedForwardTrace<D>,
        d_out: &D::Buffer,
        scale: f32,
        dx: &mut D::Buffer,
        gradients: &mut Gradients<D>,
    ) -> Result<(), DeviceError> {
        match (trace, &self.places.layers[layer].feed_forward) {
            (
                FeedForwardTrace::Dense { gate: mut d_gate, up: mut d_up },
                FeedForwardPlaces::Dense { gate, up, down },
            ) => {
                let over = Accumulate::Overwrite;
                let mut d_inner = self.pool.take(rows * down.inputs)?;
                self.linear_backward_input(down, rows, d_out, scale, &mut d_inner, over)?;
                self.device.gated_backward(self.activation(layer), &mut d_inner, &mut d_gate, &mut d_up);
                let inner = d_inner;
                self.linear_backward_parameters(down, rows, &inner, d_out, scale, gradients)?;
                drop(inner);
                self.linear_backward(gate, rows, x, &d_gate, 1.0, dx, over, gradients)?;
                self.linear_backward(up, rows, x, &d_up, 1.0, dx, Accumulate::Add, gradients)
            }
            (FeedForwardTrace::Experts(trace), FeedForwardPlaces::Experts { router, experts }) => {
                let mixture = self.mixture(layer, rows, router, *experts);
                if scale == 1.0 {
                    return self.experts_backward(mixture, x, trace, d_out, dx, gradients);
                }
                let mut scaled = self.pool.take(rows * self.config.hidden)?;
                self.put(d_out, &mut scaled, Into { scale, ..Into::OVERWRITE });
                self.experts_backward(mixture, x, trace, &scaled, dx, gradients)
            }
            _ => unreachable!("a trace is of its own layer"),
        }
    }

    fn experts(&self, mixture: Mixture<'_>, x: &D::Buffer) -> Result<ExpertsTrace<D>, DeviceError> {
        let Mixture { routing, experts, width, .. } = mixture;
        let (slots, hidden) = (routing.rows * routing.chosen, self.config.hidden);
        let mut logits = self.pool.take(routing.rows * routing.experts)?;
        self.linear(mixture.router, routing.rows, x, &mut logits, Into::OVERWRITE)?;
        let mut weights = self.pool.take_f32(slots)?;
        let assignment = self.device.route(routing, &logits, &mut weights)?;
        let mut rows = self.pool.take(slots * hidden)?;
        self.device.gather_experts(&assignment, hidden, x, &mut rows);
        let (narrow, wide) = products(slots, hidden, width);
        let mut gate = self.pool.take(slots * width)?;
        let mut up = self.pool.take(slots * width)?;
        let over = Accumulate::Overwrite;
        self.device.grouped_linear(&assignment, narrow, &rows, &self.of(experts.gates()), &mut gate, over);
        self.device.grouped_linear(&assignment, narrow, &rows, &self.of(experts.ups()), &mut up, over);
        let mut inner = self.pool.take(slots * width)?;
        self.device.gated(mixture.activation, &gate, &up, &mut inner);
        let mut down = rows;
        self.device.grouped_linear(&assignment, wide, &inner, &self.of(experts.downs()), &mut down, over);
        Ok(ExpertsTrace { logits, weights, assignment, gate, up, down })
    }

    fn experts_backward(
        &self,
        mixture: Mixture<'_>,
        x: &D::Buffer,
        trace: ExpertsTrace<D>,
        d_out: &D::Buffer,
        dx: &mut D::Buffer,
        gradients: &mut Gradients<D>,
    ) -> Result<(), DeviceError> {
        let device = &*self.device;
        let Mixture { routing, experts, width, activation, .. } = mixture;
        let (slots, hidden) = (routing.rows * routing.chosen, self.config.hidden);
        let (narrow, wide) = products(slots, hidden, width);
        let ExpertsTrace { logits, weights, assignment, gate: mut d_gate, up: mut d_up, down } = trace;
        let over = Accumulate::Overwrite;

        let mut d_down = self.pool.take(slots * hidden)?;
        let mut d_weights = self.pool.take_f32(slots)?;
        device.combine_experts_backward(
            &assignment,
            hidden,
            &down,
            &weights,
            d_out,
            &mut d_down,
            &mut d_weights,
        );
        let mut rows = down;
        device.gather_experts(&assignment, hidden, x, &mut rows);

        let mut d_inner = self.pool.take(slots * width)?;
        let downs = self.of(experts.downs());
        device.grouped_linear_backward_input(&assignment, wide, &d_down, &downs, &mut d_inner, over);
        device.gated_backward(activation, &mut d_inner, &mut d_gate, &mut d_up);
        let inner = d_inner;
        self.grouped_weight(&assignment, wide, &d_down, &inner, experts.downs(), gradients);

        self.grouped_weight(&assignment, narrow, &d_gate, &rows, experts.gates(), gradients);
        self.grouped_weight(&assignment, narrow, &d_up, &rows, experts.ups(), gradients);
        let (gates, ups) = (self.of(experts.gates()), self.of(experts.ups()));
        let mut d_rows = d_down;
        device.grouped_linear_backward_input(&assignment, narrow, &d_gate, &gates, &mut d_rows, over);
        let add = Accumulate::Add;
        device.grouped_linear_backward_input(&assignment, narrow, &d_up, &ups, &mut d_rows, add);
        device.gather_experts_backward(&assignment, hidden, &d_rows, dx, over);

        let mut d_logits = self.pool.take(routing.rows * routing.experts)?;
        device.route_backward(routing, &assignment, &logits, &d_weights, &mut d_logits);
        self.linear_backward(mixture.router, routing.rows, x, &d_logits, 1.0, dx, add, gradients)
    }

    fn grouped_weight(
        &self,
        assignment: &D::Assignment,
        product: Product,
        dy: &D::Buffer,
        x: &D::Buffer,
        experts: Range<usize>,
        gradients: &mut Gradients<D>,
    ) {
        let count = experts.len();
        let mut of_experts: Vec<&mut D::Buffer> = gradients.of_range(experts).collect();
        // Experts of a layer are trained together or not at all.
        if of_experts.len() == count {
            self.device.grouped_linear_backward_weight(assignment, product, dy, x, &mut of_experts);
        }
    }

    fn of(&self, parameters: Range<usize>) -> Vec<&D::Buffer> {
        parameters.map(|index| self.parameters.buffer(index)).collect()
    }

    fn activation(&self, layer: usize) -> Activation {
        match self.config.layers[layer].feed_forward {
            FeedForward::Dense { activation, .. } | FeedForward::Experts { activation, .. } => activation,
        }
    }

    fn mixture<'a>(
        &self,
        layer: usize,
        rows: usize,
        router: &'a Linear,
        experts: ExpertPlaces,
    ) -> Mixture<'a> {
        let (chosen, renormalise, width) = match self.config.layers[layer].feed_forward {
            FeedForward::Experts { chosen, normalised, width, .. } => (chosen, normalised, width),
            FeedForward::Dense { width, .. } => (1, false, width),
        };
        let routing = Routing { rows, experts: experts.count, chosen, renormalise };
        Mixture { router, experts, routing, width, activation: self.activation(layer) }
    }
}

impl ExpertPlaces {
    fn gates(self) -> Range<usize> {
        self.gate..self.gate + self.count
    }

    fn ups(self) -> Range<usize> {
        self.up..self.up + self.count
    }

    fn downs(self) -> Range<usize> {
        self.down..self.down + self.count
    }
}

/// Into the experts' width and out of it.
fn products(rows: usize, hidden: usize, width: usize) -> (Product, Product) {
    let narrow = Product { rows, inputs: hidden, outputs: width, scale: 1.0 };
    (narrow, Product { inputs: width, outputs: hidden, ..narrow })
}
