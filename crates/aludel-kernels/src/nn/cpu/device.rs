//! Hands each operation of [`Device`] to its kernel, with the operands as slices.

use std::convert::Infallible;
use std::ops::Range;

use super::buffer::{Buffer, ValuesMut};
use super::{Cpu, Indices};
use crate::element::Element;
use crate::nn::adamw::split::{Masters, join, split};
use crate::nn::device::{
    Accumulate, Activation, Attention, Device, DeviceError, Direction, Heads, KnownNorm, Master, MomentsMut,
    Norm, ParameterUpdate, Product, Routing, Rows, SharedBytes, Span, StoredMoments, Update,
};
use crate::nn::linear::cpu::Group;
use crate::nn::{adamw, attention, elementwise, embed, experts, gated, linear, rms_norm, rotate};

/// Allocations from this size on are asked for before they are made: the language aborts where memory ends.
const LARGE: usize = 64 << 20;

impl Device for Cpu {
    type Buffer = Buffer;
    type Indices = Indices;
    type Assignment = experts::Assignment;
    type Moments = adamw::Moments;
    type Remainders = adamw::Remainders;
    type GradientNorm = KnownNorm;
    type Reading = Buffer;
    type Collective = Infallible;
    type Host = Infallible;
    type Layers = Infallible;

    fn name(&self) -> String {
        format!("CPU, {} threads", self.threads())
    }

    fn activation(&self) -> Element {
        Element::F32
    }

    fn meet(&self, _: &[u8], _: usize, _: usize) -> Result<Infallible, DeviceError> {
        let detail = "it is reached by way of the host".to_owned();
        Err(DeviceError::Failed { device: self.name(), detail })
    }

    fn sum_over(&self, collective: &Infallible, _: &mut [&mut Buffer]) -> Result<(), DeviceError> {
        match *collective {}
    }

    fn await_sums(&self, collective: &Infallible) -> Result<(), DeviceError> {
        match *collective {}
    }

    fn host_bytes<'a>(&self, host: &'a Infallible) -> Result<&'a [u8], DeviceError> {
        match *host {}
    }

    fn host_bytes_mut<'a>(&self, host: &'a mut Infallible) -> Result<&'a mut [u8], DeviceError> {
        match *host {}
    }

    fn bring(&self, layers: &Infallible, _: usize) {
        match *layers {}
    }

    fn spread_over(
        &self,
        collective: &Infallible,
        _: &mut [(usize, &mut Buffer)],
    ) -> Result<(), DeviceError> {
        match *collective {}
    }

    fn begin_reading(&self, buffer: Buffer) -> Result<Buffer, DeviceError> {
        Ok(buffer)
    }

    fn finish_reading(&self, reading: Buffer) -> Result<Vec<f32>, DeviceError> {
        self.read(&reading, 0..reading.len())
    }

    fn zeros(&self, len: usize, element: Element) -> Result<Buffer, DeviceError> {
        self.ask(len, element.size())?;
        Ok(Buffer::zeros(len, element))
    }

    fn import(&self, bytes: SharedBytes, element: Element) -> Result<Buffer, DeviceError> {
        Ok(Buffer::import(bytes, element))
    }

    fn indices(&self, values: &[u32]) -> Result<Indices, DeviceError> {
        Ok(Indices(values.to_vec()))
    }

    fn len(&self, buffer: &Buffer) -> usize {
        buffer.len()
    }

    fn element(&self, buffer: &Buffer) -> Element {
        buffer.element()
    }

    fn read(&self, buffer: &Buffer, range: Range<usize>) -> Result<Vec<f32>, DeviceError> {
        self.ask(range.len(), size_of::<f32>())?;
        let mut values = vec![0.0; range.len()];
        elementwise::cpu::copy(self, buffer.values().slice(range), ValuesMut::F32(&mut values));
        Ok(values)
    }

    fn write(&self, buffer: &mut Buffer, at: usize, values: &[f32]) -> Result<(), DeviceError> {
        buffer.values_mut().slice(at..at + values.len()).encode(values);
        Ok(())
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn copy(&self, from: &Buffer, to: &mut Buffer) {
        elementwise::cpu::copy(self, from.values(), to.values_mut());
    }

    fn copy_rows(&self, from: &Buffer, from_row: usize, to: &mut Buffer, to_row: usize, shape: Rows) {
        let Rows { rows, width } = shape;
        let from = from.values().slice(from_row * width..(from_row + rows) * width);
        elementwise::cpu::copy(self, from, to.values_mut().slice(to_row * width..(to_row + rows) * width));
    }

    fn fill(&self, buffer: &mut Buffer, value: f32) {
        elementwise::cpu::fill(self, buffer.values_mut(), value);
    }

    fn add(&self, x: &Buffer, scale: f32, y: &mut Buffer) {
        elementwise::cpu::add(self, x.values(), scale, y.floats_mut());
    }

    fn scale(&self, y: &mut Buffer, scale: f32) {
        elementwise::cpu::scale(self, y.floats_mut(), scale);
    }

    fn embed(&self, ids: &Indices, table: &Buffer, width: usize, scale: f32, y: &mut Buffer) {
        embed::cpu::forward(self, &ids.0, table.values(), width, scale, y.floats_mut());
    }

    fn embed_backward(&self, ids: &Indices, dy: &Buffer, width: usize, scale: f32, d_table: &mut Buffer) {
        embed::cpu::backward(self, &ids.0, dy.floats(), width, scale, d_table.floats_mut());
    }

    fn rms_norm(
        &self,
        norm: Norm,
        shape: Rows,
        x: &Buffer,
        weight: &Buffer,
        y: &mut Buffer,
        rstd: &mut Buffer,
    ) {
        let (y, rstd) = (y.floats_mut(), rstd.floats_mut());
        rms_norm::cpu::forward(self, norm, shape, x.floats(), weight.values(), y, rstd);
    }

    fn rms_norm_backward(
        &self,
        norm: Norm,
        shape: Rows,
        x: &Buffer,
        weight: &Buffer,
        rstd: &Buffer,
        dy: &Buffer,
        dx: &mut Buffer,
        into: Accumulate,
        d_weight: Option<&mut Buffer>,
    ) {
        let (x, weight, rstd, dy) = (x.floats(), weight.values(), rstd.floats(), dy.floats());
        let d_weight = d_weight.map(Buffer::floats_mut);
        rms_norm::cpu::backward(self, norm, shape, x, weight, rstd, dy, dx.floats_mut(), into, d_weight);
    }

    fn linear(
        &self,
        product: Product,
        x: &Buffer,
        w: &Buffer,
        bias: Option<&Buffer>,
        y: &mut Buffer,
        into: Accumulate,
    ) {
        let mut room = Vec::new();
        let bias = bias.map(|bias| bias.values().decoded(&mut room));
        linear::cpu::forward(self, product, &[whole(product, w)], x.floats(), bias, y.floats_mut(), into);
    }

    fn linear_backward_input(
        &self,
        product: Product,
        dy: &Buffer,
        w: &Buffer,
        dx: &mut Buffer,
        into: Accumulate,
    ) {
        linear::cpu::backward_input(self, product, &[whole(product, w)], dy.floats(), dx.floats_mut(), into);
    }

    fn linear_backward_weight(
        &self,
        product: Product,
        dy: &Buffer,
        x: &Buffer,
        dw: &mut Buffer,
        d_bias: Option<&mut Buffer>,
    ) {
        let rows = 0..product.rows;
        linear::cpu::backward_weight(self, product, &[rows], dy.floats(), x.floats(), &mut [dw.floats_mut()]);
        if let Some(d_bias) = d_bias {
            linear::cpu::backward_bias(self, product, dy.floats(), d_bias.floats_mut());
        }
    }

    fn rotate(
        &self,
        direction: Direction,
        shape: Heads,
        rotated: usize,
        cos: &Buffer,
        sin: &Buffer,
        positions: &Indices,
        x: &mut Buffer,
    ) {
        let (cos, sin) = (cos.floats(), sin.floats());
        rotate::cpu::rotate(self, direction, shape, rotated, cos, sin, &positions.0, x.floats_mut());
    }

    fn attention(
        &self,
        attention: Attention,
        spans: &[Span],
        q: &Buffer,
        k: &Buffer,
        v: &Buffer,
        y: &mut Buffer,
        lse: &mut Buffer,
    ) {
        let (q, k, v) = (q.floats(), k.floats(), v.floats());
        attention::cpu::forward(self, attention, spans, q, k, v, y.floats_mut(), lse.floats_mut());
    }

    fn attention_backward(
        &self,
        attention: Attention,
        spans: &[Span],
        q: &Buffer,
        k: &Buffer,
        v: &Buffer,
        y: &Buffer,
        lse: &Buffer,
        dy: &Buffer,
        dq: &mut Buffer,
        dk: &mut Buffer,
        dv: &mut Buffer,
    ) {
        attention::cpu::backward(
            self,
            attention,
            spans,
            q.floats(),
            k.floats(),
            v.floats(),
            y.floats(),
            lse.floats(),
            dy.floats(),
            dq.floats_mut(),
            dk.floats_mut(),
            dv.floats_mut(),
        );
    }

    fn gated(&self, activation: Activation, gate: &Buffer, up: &Buffer, y: &mut Buffer) {
        gated::cpu::forward(self, activation, gate.floats(), up.floats(), y.floats_mut());
    }

    fn gated_backward(&self, activation: Activation, dy: &mut Buffer, gate: &mut Buffer, up: &mut Buffer) {
        gated::cpu::backward(self, activation, dy.floats_mut(), gate.floats_mut(), up.floats_mut());
    }

    fn gradient_norm(&self, gradients: &[&Buffer], limit: Option<f64>) -> Result<KnownNorm, DeviceError> {
        let squares =
            gradients.iter().map(|gradient| elementwise::cpu::sum_of_squares(self, gradient.values()));
        Ok(KnownNorm::new(squares.sum::<f64>().sqrt(), limit))
    }

    fn read_norm(&self, norm: &KnownNorm) -> Result<f64, DeviceError> {
        Ok(norm.norm)
    }

    fn adamw(&self, update: Update, norm: Option<&KnownNorm>, parameters: &mut [ParameterUpdate<'_, Self>]) {
        let scale = norm.map_or(1.0, |norm| norm.scale);
        if scale.is_nan() {
            return;
        }
        let update = Update { gradient_scale: update.gradient_scale * scale, ..update };
        for ParameterUpdate { gradient, decays, master, moments } in parameters {
            let update = update.of(*decays);
            let gradient = gradient.floats();
            let master = match master {
                Master::Weights(weights) => Masters::Floats(weights.floats_mut()),
                Master::Split(weights, remainders) => Masters::Split(weights.bf16_mut(), &mut remainders.0),
            };
            match moments {
                MomentsMut::Whole([first, second]) => {
                    let (first, second) = (first.floats_mut(), second.floats_mut());
                    adamw::cpu::update(self, update, gradient, master, first, second);
                }
                MomentsMut::Eight(moments) => {
                    adamw::blockwise::update(self, update, gradient, master, moments);
                }
            }
        }
    }

    fn remainders(&self, len: usize) -> Result<adamw::Remainders, DeviceError> {
        self.ask(len, 2)?;
        Ok(adamw::Remainders(vec![0; len]))
    }

    fn read_master(
        &self,
        weights: &Buffer,
        remainders: &adamw::Remainders,
        range: Range<usize>,
    ) -> Result<Vec<f32>, DeviceError> {
        let pairs = weights.bf16()[range.clone()].iter().zip(&remainders.0[range]);
        Ok(pairs.map(|(&weight, &remainder)| join(weight, remainder)).collect())
    }

    fn write_master(
        &self,
        weights: &mut Buffer,
        remainders: Option<&mut adamw::Remainders>,
        at: usize,
        values: &[f32],
    ) -> Result<(), DeviceError> {
        for (weight, &value) in weights.bf16_mut()[at..].iter_mut().zip(values) {
            [*weight, _] = split(value);
        }
        let remainders = remainders.into_iter().flat_map(|remainders| &mut remainders.0[at..]);
        for (remainder, &value) in remainders.zip(values) {
            [_, *remainder] = split(value);
        }
        Ok(())
    }

    fn moments(&self, len: usize) -> Result<adamw::Moments, DeviceError> {
        self.ask(len, 2)?;
        Ok(adamw::Moments::zeros(len))
    }

    fn read_moments(&self, moments: &adamw::Moments) -> Result<StoredMoments, DeviceError> {
        Ok(moments.stored().clone())
    }

    fn restore_moments(
        &self,
        len: usize,
        stored: &StoredMoments,
    ) -> Result<Option<adamw::Moments>, DeviceError> {
        Ok(adamw::Moments::restore(len, stored))
    }

    fn route(
        &self,
        routing: Routing,
        logits: &Buffer,
        weights: &mut Buffer,
    ) -> Result<experts::Assignment, DeviceError> {
        Ok(experts::cpu::route(routing, logits.floats(), weights.floats_mut()))
    }

    fn route_backward(
        &self,
        routing: Routing,
        assignment: &experts::Assignment,
        logits: &Buffer,
        d_weights: &Buffer,
        d_logits: &mut Buffer,
    ) {
        let (logits, d_weights) = (logits.floats(), d_weights.floats());
        experts::cpu::route_backward(routing, assignment, logits, d_weights, d_logits.floats_mut());
    }

    fn gather_experts(&self, assignment: &experts::Assignment, width: usize, x: &Buffer, y: &mut Buffer) {
        experts::cpu::gather(self, assignment, width, x.floats(), y.floats_mut());
    }

    fn gather_experts_backward(
        &self,
        assignment: &experts::Assignment,
        width: usize,
        dy: &Buffer,
        dx: &mut Buffer,
        into: Accumulate,
    ) {
        experts::cpu::gather_backward(self, assignment, width, dy.floats(), dx.floats_mut(), into);
    }

    fn grouped_linear(
        &self,
        assignment: &experts::Assignment,
        product: Product,
        x: &Buffer,
        w: &[&Buffer],
        y: &mut Buffer,
        into: Accumulate,
    ) {
        let groups = groups(assignment, product, w);
        linear::cpu::forward(self, product, &groups, x.floats(), None, y.floats_mut(), into);
    }

    fn grouped_linear_backward_input(
        &self,
        assignment: &experts::Assignment,
        product: Product,
        dy: &Buffer,
        w: &[&Buffer],
        dx: &mut Buffer,
        into: Accumulate,
    ) {
        let groups = groups(assignment, product, w);
        linear::cpu::backward_input(self, product, &groups, dy.floats(), dx.floats_mut(), into);
    }

    fn grouped_linear_backward_weight(
        &self,
        assignment: &experts::Assignment,
        product: Product,
        dy: &Buffer,
        x: &Buffer,
        dw: &mut [&mut Buffer],
    ) {
        let mut dw: Vec<&mut [f32]> = dw.iter_mut().map(|dw| dw.floats_mut()).collect();
        let groups = assignment.groups();
        linear::cpu::backward_weight(self, product, &groups, dy.floats(), x.floats(), &mut dw);
    }

    fn combine_experts(
        &self,
        assignment: &experts::Assignment,
        width: usize,
        x: &Buffer,
        weights: &Buffer,
        y: &mut Buffer,
        into: Accumulate,
    ) {
        let (x, weights) = (x.floats(), weights.floats());
        experts::cpu::combine(self, assignment, width, x, weights, y.floats_mut(), into);
    }

    fn combine_experts_backward(
        &self,
        assignment: &experts::Assignment,
        width: usize,
        x: &Buffer,
        weights: &Buffer,
        dy: &Buffer,
        dx: &mut Buffer,
        d_weights: &mut Buffer,
    ) {
        let (x, weights, dy) = (x.floats(), weights.floats(), dy.floats());
        let (dx, d_weights) = (dx.floats_mut(), d_weights.floats_mut());
        experts::cpu::combine_backward(self, assignment, width, x, weights, dy, dx, d_weights);
    }
}

impl Cpu {
    /// Whether there is room for `len` elements of `size` bytes. Small allocations are not asked for.
    fn ask(&self, len: usize, size: usize) -> Result<(), DeviceError> {
        let out_of_memory = |bytes| DeviceError::OutOfMemory { device: self.name(), bytes };
        let bytes = len.checked_mul(size).ok_or_else(|| out_of_memory(u64::MAX))?;
        if bytes >= LARGE {
            let mut room = Vec::<u8>::new();
            room.try_reserve_exact(bytes).map_err(|_| out_of_memory(bytes as u64))?;
        }
        Ok(())
    }
}

fn whole(product: Product, w: &Buffer) -> Group<'_> {
    Group { rows: 0..product.rows, weight: w.values() }
}

fn groups<'w>(assignment: &experts::Assignment, product: Product, w: &[&'w Buffer]) -> Vec<Group<'w>> {
    let groups = assignment.groups();
    assert_eq!(groups.len(), w.len(), "weights of a grouped product");
    assert_eq!(groups.last().map_or(0, |last| last.end), product.rows, "rows of a grouped product");
    groups.into_iter().zip(w).map(|(rows, w)| Group { rows, weight: w.values() }).collect()
}
