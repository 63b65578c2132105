//! Hands each operation of [`Device`] to its kernel.

use std::ops::Range;

use super::aside::{self, Host};
use super::buffer::{Buffer, Indices};
use super::context::Cuda;
use super::layers::{self, Layers};
use crate::cuda::collective::{self, Collective};
use crate::cuda::driver::Mark;
use crate::element::Element;
use crate::nn::adamw::cuda::GradientNorm;
use crate::nn::device::{
    Accumulate, Activation, AsideUpdate, Attention, Device, DeviceError, Direction, Heads, LARGE_BUFFER,
    LayerWeights, Missing, Norm, ParameterUpdate, Product, Routing, Rows, SharedBytes, Span, StoredMoments,
    Update,
};
use crate::nn::elementwise::cuda::Named;
use crate::nn::linear::cuda::Onto;
use crate::nn::rows::padded_rows;
use crate::nn::{adamw, attention, elementwise, embed, gated, linear, rms_norm, rotate};

/// A buffer that is read as it was at a point of the stream.
#[derive(Debug)]
pub struct Reading {
    buffer: Buffer,
    there: Mark,
}

/// What a device without the operation never has.
#[derive(Debug)]
pub enum Never {}

impl Device for Cuda {
    type Buffer = Buffer;
    type Indices = Indices;
    type Assignment = Never;
    type Moments = adamw::cuda::Moments;
    type Remainders = adamw::cuda::Remainders;
    type GradientNorm = GradientNorm;
    type Reading = Reading;
    type Collective = Collective;
    type Host = Host;
    type Layers = Layers;

    fn name(&self) -> String {
        self.facts().name.clone()
    }

    fn activation(&self) -> Element {
        Element::BF16
    }

    fn free_memory(&self) -> Option<u64> {
        self.driver.free_memory().ok()
    }

    fn peak_memory(&self) -> Option<u64> {
        self.driver.peak_of_blocks().ok()
    }

    fn missing(&self) -> &'static [Missing] {
        &[Missing::Experts, Missing::HeadsOfOddWidth]
    }

    fn meeting(&self) -> Result<Option<Vec<u8>>, DeviceError> {
        self.told(collective::meeting().map(Some))
    }

    fn meet(&self, meeting: &[u8], rank: usize, size: usize) -> Result<Collective, DeviceError> {
        self.told(Collective::meet(&self.stream, meeting, rank, size))
    }

    fn sum_over(&self, collective: &Collective, buffers: &mut [&mut Buffer]) -> Result<(), DeviceError> {
        let array = |buffer: &&mut Buffer| (buffer.address(), buffer.len, buffer.element);
        let arrays: Vec<(u64, usize, Element)> = buffers.iter().map(array).collect();
        let sum = || {
            self.beside.follow(&self.stream.mark()?)?;
            collective.sum(&self.beside, &arrays)
        };
        self.told(sum())
    }

    fn await_sums(&self, _: &Collective) -> Result<(), DeviceError> {
        self.told(self.beside.mark().and_then(|mark| self.stream.follow(&mark)))
    }

    fn host(&self, bytes: usize) -> Result<Option<Host>, DeviceError> {
        aside::host(self, bytes).map(Some)
    }

    fn host_bytes<'a>(&self, host: &'a Host) -> Result<&'a [u8], DeviceError> {
        aside::read(self, host)
    }

    fn host_bytes_mut<'a>(&self, host: &'a mut Host) -> Result<&'a mut [u8], DeviceError> {
        aside::write(self, host)
    }

    fn adamw_aside(&self, updates: &mut [AsideUpdate<'_, Self>]) -> Result<(), DeviceError> {
        aside::update(self, updates)
    }

    fn layers(&self, layers: &[LayerWeights]) -> Result<Option<(Layers, Vec<Vec<Buffer>>)>, DeviceError> {
        layers::layers(self, layers).map(Some)
    }

    fn bring(&self, layers: &Layers, layer: usize) {
        layers::bring(self, layers, layer);
    }

    fn spread_over(
        &self,
        collective: &Collective,
        buffers: &mut [(usize, &mut Buffer)],
    ) -> Result<(), DeviceError> {
        let bytes = |buffer: &Buffer| (buffer.address(), buffer.len * buffer.element.size());
        let arrays: Vec<_> = buffers.iter().map(|(owner, buffer)| (*owner, bytes(buffer))).collect();
        self.told(collective.spread(&self.stream, &arrays))
    }

    fn begin_reading(&self, buffer: Buffer) -> Result<Reading, DeviceError> {
        buffer.block();
        let there = self.told(self.stream.mark())?;
        Ok(Reading { buffer, there })
    }

    fn finish_reading(&self, Reading { buffer, there }: Reading) -> Result<Vec<f32>, DeviceError> {
        Ok(buffer.element.decode(&self.taken_since(buffer.block(), &there)?))
    }

    fn zeros(&self, len: usize, element: Element) -> Result<Buffer, DeviceError> {
        let mut buffer = self.room(len, element)?;
        buffer.clear();
        Ok(buffer)
    }

    fn room(&self, len: usize, element: Element) -> Result<Buffer, DeviceError> {
        let block = self.stream.block(len * element.size());
        self.told(block.map(|block| self.buffer(block, len, element)))
    }

    fn shares_memory(&self) -> bool {
        true
    }

    fn import(&self, bytes: SharedBytes, element: Element) -> Result<Buffer, DeviceError> {
        let raw = (*bytes).as_ref();
        let len = raw.len() / element.size();
        let block = self.sent_now(&raw[..len * element.size()]);
        self.told(block.map(|block| self.buffer(block, len, element)))
    }

    fn indices(&self, values: &[u32]) -> Result<Indices, DeviceError> {
        self.told(self.numbers(values))
    }

    fn len(&self, buffer: &Buffer) -> usize {
        buffer.len
    }

    fn element(&self, buffer: &Buffer) -> Element {
        buffer.element
    }

    fn read(&self, buffer: &Buffer, range: Range<usize>) -> Result<Vec<f32>, DeviceError> {
        let size = buffer.element.size();
        let mut bytes = vec![0; range.len() * size];
        self.told(self.stream.take(buffer.block(), range.start * size, &mut bytes))?;
        Ok(buffer.element.decode(&bytes))
    }

    fn write(&self, buffer: &mut Buffer, at: usize, values: &[f32]) -> Result<(), DeviceError> {
        let bytes = buffer.element.encode(values);
        self.told(self.stream.put(&bytes, buffer.block(), at * buffer.element.size()))
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.told(self.stream.synchronize())
    }

    fn copy(&self, from: &Buffer, to: &mut Buffer) {
        assert_eq!(from.len, to.len, "lengths of a copy");
        self.convert((from, 0), (to, 0), from.len);
    }

    fn copy_rows(&self, from: &Buffer, from_row: usize, to: &mut Buffer, to_row: usize, shape: Rows) {
        let Rows { rows, width } = shape;
        self.convert((from, from_row * width), (to, to_row * width), rows * width);
    }

    fn gather_rows(&self, from: &Buffer, rows: &[usize], width: usize, to: &mut Buffer) {
        elementwise::cuda::move_rows(self, from, (rows, Named::Sources), width, to);
    }

    fn scatter_rows(&self, from: &Buffer, rows: &[usize], width: usize, to: &mut Buffer) {
        elementwise::cuda::move_rows(self, from, (rows, Named::Targets), width, to);
    }

    fn regular_rows(&self, rows: usize) -> usize {
        padded_rows(rows)
    }

    fn fill(&self, buffer: &mut Buffer, value: f32) {
        if value.to_bits() != 0 {
            elementwise::cuda::fill(self, buffer, value);
        } else if buffer.len * buffer.element.size() >= LARGE_BUFFER {
            buffer.empty();
        } else {
            buffer.clear();
        }
    }

    fn add(&self, x: &Buffer, scale: f32, y: &mut Buffer) {
        elementwise::cuda::add(self, x, scale, y);
    }

    fn scale(&self, y: &mut Buffer, scale: f32) {
        elementwise::cuda::scale(self, y, scale);
    }

    fn embed(&self, ids: &Indices, table: &Buffer, width: usize, scale: f32, y: &mut Buffer) {
        embed::cuda::forward(self, ids, table, width, scale, y);
    }

    fn embed_backward(&self, ids: &Indices, dy: &Buffer, width: usize, scale: f32, d_table: &mut Buffer) {
        embed::cuda::backward(self, ids, dy, width, scale, d_table);
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
        rms_norm::cuda::forward(self, norm, shape, x, weight, y, rstd);
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
        rms_norm::cuda::backward(self, norm, shape, x, weight, rstd, dy, dx, into, d_weight);
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
        linear::cuda::forward(self, product, x, w, bias, y, Onto::Itself(into));
    }

    fn linear_onto(
        &self,
        product: Product,
        x: &Buffer,
        w: &Buffer,
        bias: Option<&Buffer>,
        base: &Buffer,
        y: &mut Buffer,
    ) {
        linear::cuda::forward(self, product, x, w, bias, y, Onto::Other(base));
    }

    fn linear_backward_input(
        &self,
        product: Product,
        dy: &Buffer,
        w: &Buffer,
        dx: &mut Buffer,
        into: Accumulate,
    ) {
        linear::cuda::backward_input(self, product, dy, w, dx, into);
    }

    fn linear_backward_weight(
        &self,
        product: Product,
        dy: &Buffer,
        x: &Buffer,
        dw: &mut Buffer,
        d_bias: Option<&mut Buffer>,
    ) {
        linear::cuda::backward_weight(self, product, dy, x, dw, d_bias);
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
        rotate::cuda::rotate(self, direction, shape, rotated, [cos, sin], positions, x);
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
        attention::cuda::forward(self, attention, spans, [q, k, v], y, lse);
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
        attention::cuda::backward(self, attention, spans, [q, k, v], [y, lse, dy], [dq, dk, dv]);
    }

    fn gated(&self, activation: Activation, gate: &Buffer, up: &Buffer, y: &mut Buffer) {
        gated::cuda::forward(self, activation, gate, up, y);
    }

    fn gated_backward(&self, activation: Activation, dy: &mut Buffer, gate: &mut Buffer, up: &mut Buffer) {
        gated::cuda::backward(self, activation, dy, gate, up);
    }

    fn gradient_norm(&self, gradients: &[&Buffer], limit: Option<f64>) -> Result<GradientNorm, DeviceError> {
        adamw::cuda::gradient_norm(self, gradients, limit)
    }

    fn read_norm(&self, norm: &GradientNorm) -> Result<f64, DeviceError> {
        adamw::cuda::read_norm(self, norm)
    }

    fn adamw(
        &self,
        update: Update,
        norm: Option<&GradientNorm>,
        parameters: &mut [ParameterUpdate<'_, Self>],
    ) {
        adamw::cuda::update_all(self, update, norm, parameters);
    }

    fn remainders(&self, len: usize) -> Result<adamw::cuda::Remainders, DeviceError> {
        adamw::cuda::remainders(self, len)
    }

    fn read_master(
        &self,
        weights: &Buffer,
        remainders: &adamw::cuda::Remainders,
        range: Range<usize>,
    ) -> Result<Vec<f32>, DeviceError> {
        adamw::cuda::read_master(self, weights, remainders, range)
    }

    fn write_master(
        &self,
        weights: &mut Buffer,
        remainders: Option<&mut adamw::cuda::Remainders>,
        at: usize,
        values: &[f32],
    ) -> Result<(), DeviceError> {
        adamw::cuda::write_master(self, weights, remainders, at, values)
    }

    fn moments(&self, len: usize) -> Result<adamw::cuda::Moments, DeviceError> {
        adamw::cuda::moments(self, &adamw::blockwise::zeros(len))
    }

    fn read_moments(&self, moments: &adamw::cuda::Moments) -> Result<StoredMoments, DeviceError> {
        adamw::cuda::stored(self, moments)
    }

    fn restore_moments(
        &self,
        len: usize,
        stored: &StoredMoments,
    ) -> Result<Option<adamw::cuda::Moments>, DeviceError> {
        let fits = adamw::blockwise::are_of(len, stored);
        fits.then(|| adamw::cuda::moments(self, stored)).transpose()
    }

    fn route(&self, _: Routing, _: &Buffer, _: &mut Buffer) -> Result<Never, DeviceError> {
        let detail = "mixtures of experts are not computed on CUDA devices".to_owned();
        Err(DeviceError::Failed { device: self.name(), detail })
    }

    fn route_backward(&self, _: Routing, assignment: &Never, _: &Buffer, _: &Buffer, _: &mut Buffer) {
        match *assignment {}
    }

    fn gather_experts(&self, assignment: &Never, _: usize, _: &Buffer, _: &mut Buffer) {
        match *assignment {}
    }

    fn gather_experts_backward(
        &self,
        assignment: &Never,
        _: usize,
        _: &Buffer,
        _: &mut Buffer,
        _: Accumulate,
    ) {
        match *assignment {}
    }

    fn grouped_linear(
        &self,
        assignment: &Never,
        _: Product,
        _: &Buffer,
        _: &[&Buffer],
        _: &mut Buffer,
        _: Accumulate,
    ) {
        match *assignment {}
    }

    fn grouped_linear_backward_input(
        &self,
        assignment: &Never,
        _: Product,
        _: &Buffer,
        _: &[&Buffer],
        _: &mut Buffer,
        _: Accumulate,
    ) {
        match *assignment {}
    }

    fn grouped_linear_backward_weight(
        &self,
        assignment: &Never,
        _: Product,
        _: &Buffer,
        _: &Buffer,
        _: &mut [&mut Buffer],
    ) {
        match *assignment {}
    }

    fn combine_experts(
        &self,
        assignment: &Never,
        _: usize,
        _: &Buffer,
        _: &Buffer,
        _: &mut Buffer,
        _: Accumulate,
    ) {
        match *assignment {}
    }

    fn combine_experts_backward(
        &self,
        assignment: &Never,
        _: usize,
        _: &Buffer,
        _: &Buffer,
        _: &Buffer,
        _: &mut Buffer,
        _: &mut Buffer,
    ) {
        match *assignment {}
    }
}
