//! Hands out lengths for buffers, and does nothing for operations.

use std::convert::Infallible;
use std::ops::Range;

use super::{Buffer, Share, Tally};
use crate::element::Element;
use crate::loss::device::{LossDevice, RowDistance, RowLoss};
use crate::loss::sorted::{SortedRows, counting_bytes};
use crate::loss::sparse::SparseRows;
use crate::nn::device::{
    Accumulate, Activation, AsideMoments, AsideUpdate, Attention, Device, DeviceError, Direction, Heads,
    LARGE_BUFFER, LayerWeights, Missing, Norm, PIECE_ASIDE, ParameterUpdate, Product, Routing, Rows,
    SharedBytes, Span, StoredMoments, Update,
};
use crate::nn::rows::padded_rows;

/// Lengths of numbers are not counted: there are few.
type Indices = ();

/// Moments in eight bits of so many elements.
#[derive(Debug)]
pub struct Moments {
    len: usize,
    _share: Share,
}

/// Bytes of the host's memory.
#[derive(Debug)]
pub struct Host {
    _share: Share,
}

/// Room for two layers.
#[derive(Debug)]
pub struct Layers {
    _places: [Share; 2],
    _aside: Share,
}

impl Tally {
    /// Something is written to a buffer: it is there from now on.
    fn touch(&self, buffer: &mut Buffer) {
        if std::mem::take(&mut buffer.is_empty) {
            buffer.share = Some(self.device.take((buffer.len * buffer.element.size()) as u64));
        }
    }

    fn moments_of(&self, len: usize) -> Moments {
        let bytes = 2 * (len + 4 * StoredMoments::scales(len));
        Moments { len, _share: self.device.take(bytes as u64) }
    }
}

impl Device for Tally {
    type Buffer = Buffer;
    type Indices = Indices;
    type Assignment = ();
    type Moments = Moments;
    type Remainders = Share;
    type GradientNorm = ();
    type Reading = Buffer;
    type Collective = Infallible;
    type Host = Host;
    type Layers = Layers;

    fn name(&self) -> String {
        "a count of memory".to_owned()
    }

    fn activation(&self) -> Element {
        self.like.activation
    }

    fn free_memory(&self) -> Option<u64> {
        self.like.has_memory.then(|| u64::MAX - self.now())
    }

    fn missing(&self) -> &'static [Missing] {
        self.like.missing
    }

    fn is_blank(&self) -> bool {
        true
    }

    fn meet(&self, _: &[u8], _: usize, _: usize) -> Result<Infallible, DeviceError> {
        Err(DeviceError::Failed { device: self.name(), detail: "it meets no other".to_owned() })
    }

    fn sum_over(&self, collective: &Infallible, _: &mut [&mut Buffer]) -> Result<(), DeviceError> {
        match *collective {}
    }

    fn await_sums(&self, collective: &Infallible) -> Result<(), DeviceError> {
        match *collective {}
    }

    fn spread_over(
        &self,
        collective: &Infallible,
        _: &mut [(usize, &mut Buffer)],
    ) -> Result<(), DeviceError> {
        match *collective {}
    }

    fn host(&self, bytes: usize) -> Result<Option<Host>, DeviceError> {
        Ok(self.like.has_memory.then(|| Host { _share: self.host.take(bytes as u64) }))
    }

    fn host_bytes<'a>(&self, _: &'a Host) -> Result<&'a [u8], DeviceError> {
        Ok(&[])
    }

    fn host_bytes_mut<'a>(&self, _: &'a mut Host) -> Result<&'a mut [u8], DeviceError> {
        Ok(&mut [])
    }

    /// Counts two places for pieces.
    fn adamw_aside(&self, updates: &mut [AsideUpdate<'_, Self>]) -> Result<(), DeviceError> {
        let of = |one: &AsideUpdate<'_, Self>| {
            let (len, master) = (one.gradient.len.min(PIECE_ASIDE), one.master.is_some());
            match one.moments {
                AsideMoments::Whole(_) => len * (8 + 4 * usize::from(master)),
                AsideMoments::Eight(_) => {
                    2 * (len + 4 * StoredMoments::scales(len)) + 4 * len * usize::from(master)
                }
            }
        };
        self.count(2 * updates.iter().map(of).max().unwrap_or(0) as u64);
        Ok(())
    }

    fn layers(&self, layers: &[LayerWeights]) -> Result<Option<(Layers, Vec<Vec<Buffer>>)>, DeviceError> {
        if !self.like.has_memory {
            return Ok(None);
        }
        let bytes =
            |layer: &LayerWeights| layer.iter().map(|(bytes, _)| (**bytes).as_ref().len() as u64).sum();
        let all: Vec<u64> = layers.iter().map(bytes).collect();
        let place = || self.device.take(all.iter().copied().max().unwrap_or(0));
        let _places = [place(), place()];
        let buffer = |(bytes, element): &(SharedBytes, Element)| Buffer {
            len: (**bytes).as_ref().len() / element.size(),
            element: *element,
            share: None,
            is_empty: false,
        };
        let buffers = layers.iter().map(|layer| layer.iter().map(buffer).collect());
        Ok(Some((Layers { _places, _aside: self.host.take(all.iter().sum()) }, buffers.collect())))
    }

    fn begin_reading(&self, buffer: Buffer) -> Result<Buffer, DeviceError> {
        Ok(buffer)
    }

    fn finish_reading(&self, reading: Buffer) -> Result<Vec<f32>, DeviceError> {
        Ok(vec![0.0; reading.len])
    }

    fn zeros(&self, len: usize, element: Element) -> Result<Buffer, DeviceError> {
        let share = self.device.take((len * element.size()) as u64);
        Ok(Buffer { len, element, share: Some(share), is_empty: false })
    }

    fn shares_memory(&self) -> bool {
        self.like.has_memory
    }

    /// Counted where the device has a memory of its own; elsewhere it is used where it lies.
    fn import(&self, bytes: SharedBytes, element: Element) -> Result<Buffer, DeviceError> {
        let len = (*bytes).as_ref().len() / element.size();
        let share = self.like.has_memory.then(|| self.device.take((len * element.size()) as u64));
        Ok(Buffer { len, element, share, is_empty: false })
    }

    fn indices(&self, _: &[u32]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn len(&self, buffer: &Buffer) -> usize {
        buffer.len
    }

    fn element(&self, buffer: &Buffer) -> Element {
        buffer.element
    }

    fn read(&self, _: &Buffer, range: Range<usize>) -> Result<Vec<f32>, DeviceError> {
        Ok(vec![0.0; range.len()])
    }

    fn gradient_norm(&self, _: &[&Buffer], _: Option<f64>) -> Result<(), DeviceError> {
        Ok(())
    }

    fn read_norm(&self, (): &()) -> Result<f64, DeviceError> {
        Ok(0.0)
    }

    fn moments(&self, len: usize) -> Result<Moments, DeviceError> {
        Ok(self.moments_of(len))
    }

    fn read_moments(&self, moments: &Moments) -> Result<StoredMoments, DeviceError> {
        Ok(crate::nn::adamw::blockwise::zeros(moments.len))
    }

    fn restore_moments(&self, len: usize, _: &StoredMoments) -> Result<Option<Moments>, DeviceError> {
        Ok(Some(self.moments_of(len)))
    }

    fn route(&self, _: Routing, _: &Buffer, _: &mut Buffer) -> Result<(), DeviceError> {
        Ok(())
    }

    fn bring(&self, _: &Layers, _: usize) {}

    fn write(&self, _: &mut Buffer, _: usize, _: &[f32]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn copy(&self, _: &Buffer, to: &mut Buffer) {
        self.touch(to);
    }

    fn copy_rows(&self, _: &Buffer, _: usize, _: &mut Buffer, _: usize, _: Rows) {}

    fn regular_rows(&self, rows: usize) -> usize {
        if self.like.has_memory { padded_rows(rows) } else { rows }
    }

    fn fill(&self, buffer: &mut Buffer, value: f32) {
        let is_large = buffer.len * buffer.element.size() >= LARGE_BUFFER;
        if value.to_bits() == 0 && is_large && self.shares_memory() && buffer.share.take().is_some() {
            buffer.is_empty = true;
        }
    }

    fn add(&self, _: &Buffer, _: f32, y: &mut Buffer) {
        self.touch(y);
    }

    fn scale(&self, _: &mut Buffer, _: f32) {}

    fn embed(&self, _: &Indices, _: &Buffer, _: usize, _: f32, _: &mut Buffer) {}

    fn embed_backward(&self, _: &Indices, _: &Buffer, _: usize, _: f32, d_table: &mut Buffer) {
        self.touch(d_table);
    }

    fn rms_norm(&self, _: Norm, _: Rows, _: &Buffer, _: &Buffer, _: &mut Buffer, _: &mut Buffer) {}

    fn rms_norm_backward(
        &self,
        _: Norm,
        _: Rows,
        _: &Buffer,
        _: &Buffer,
        _: &Buffer,
        _: &Buffer,
        dx: &mut Buffer,
        _: Accumulate,
        d_weight: Option<&mut Buffer>,
    ) {
        self.touch(dx);
        d_weight.into_iter().for_each(|buffer| self.touch(buffer));
    }

    fn linear(&self, _: Product, _: &Buffer, _: &Buffer, _: Option<&Buffer>, _: &mut Buffer, _: Accumulate) {}

    fn linear_backward_input(&self, _: Product, _: &Buffer, _: &Buffer, dx: &mut Buffer, _: Accumulate) {
        self.touch(dx);
    }

    fn linear_backward_weight(
        &self,
        _: Product,
        _: &Buffer,
        _: &Buffer,
        d_weight: &mut Buffer,
        d_bias: Option<&mut Buffer>,
    ) {
        self.touch(d_weight);
        d_bias.into_iter().for_each(|buffer| self.touch(buffer));
    }

    fn rotate(&self, _: Direction, _: Heads, _: usize, _: &Buffer, _: &Buffer, _: &Indices, _: &mut Buffer) {}

    fn attention(
        &self,
        _: Attention,
        _: &[Span],
        _: &Buffer,
        _: &Buffer,
        _: &Buffer,
        _: &mut Buffer,
        _: &mut Buffer,
    ) {
    }

    fn attention_backward(
        &self,
        _: Attention,
        _: &[Span],
        _: &Buffer,
        _: &Buffer,
        _: &Buffer,
        _: &Buffer,
        _: &Buffer,
        _: &Buffer,
        _: &mut Buffer,
        _: &mut Buffer,
        _: &mut Buffer,
    ) {
    }

    fn gated(&self, _: Activation, _: &Buffer, _: &Buffer, _: &mut Buffer) {}

    fn gated_backward(&self, _: Activation, _: &mut Buffer, _: &mut Buffer, _: &mut Buffer) {}

    fn adamw(&self, _: Update, _: Option<&()>, _: &mut [ParameterUpdate<'_, Self>]) {}

    fn remainders(&self, len: usize) -> Result<Share, DeviceError> {
        Ok(self.device.take(2 * len as u64))
    }

    fn read_master(&self, _: &Buffer, _: &Share, range: Range<usize>) -> Result<Vec<f32>, DeviceError> {
        Ok(vec![0.0; range.len()])
    }

    fn write_master(
        &self,
        _: &mut Buffer,
        _: Option<&mut Share>,
        _: usize,
        _: &[f32],
    ) -> Result<(), DeviceError> {
        Ok(())
    }

    fn route_backward(&self, _: Routing, _: &(), _: &Buffer, _: &Buffer, _: &mut Buffer) {}

    fn gather_experts(&self, _: &(), _: usize, _: &Buffer, _: &mut Buffer) {}

    fn gather_experts_backward(&self, _: &(), _: usize, _: &Buffer, _: &mut Buffer, _: Accumulate) {}

    fn grouped_linear(&self, _: &(), _: Product, _: &Buffer, _: &[&Buffer], _: &mut Buffer, _: Accumulate) {}

    fn grouped_linear_backward_input(
        &self,
        _: &(),
        _: Product,
        _: &Buffer,
        _: &[&Buffer],
        _: &mut Buffer,
        _: Accumulate,
    ) {
    }

    fn grouped_linear_backward_weight(
        &self,
        _: &(),
        _: Product,
        _: &Buffer,
        _: &Buffer,
        _: &mut [&mut Buffer],
    ) {
    }

    fn combine_experts(&self, _: &(), _: usize, _: &Buffer, _: &Buffer, _: &mut Buffer, _: Accumulate) {}

    fn combine_experts_backward(
        &self,
        _: &(),
        _: usize,
        _: &Buffer,
        _: &Buffer,
        _: &Buffer,
        _: &mut Buffer,
        _: &mut Buffer,
    ) {
    }
}

impl LossDevice for Tally {
    fn logit_memory(&self) -> usize {
        self.like.logit_memory
    }

    fn sparse_rows(
        &self,
        _: RowLoss<'_>,
        _: &[u32],
        _: (&SparseRows, &[usize]),
        _: &mut Buffer,
        _: &mut Buffer,
    ) -> Result<(), DeviceError> {
        Ok(())
    }

    fn sorted_rows(
        &self,
        loss: RowLoss<'_>,
        _: &[u32],
        _: SortedRows<'_, Buffer>,
        _: &mut Buffer,
        _: &mut Buffer,
    ) -> Result<(), DeviceError> {
        if self.like.has_memory {
            self.count(counting_bytes(loss.rows) as u64);
        }
        Ok(())
    }

    fn soft_cap(&self, _: f32, _: &mut Buffer) {}

    fn loss_rows(&self, _: RowLoss<'_>, _: &Indices, _: &mut Buffer, _: Option<&Buffer>, _: &mut Buffer) {}

    fn distance_rows(
        &self,
        _: RowDistance,
        _: Rows,
        _: f64,
        _: &Indices,
        _: &Buffer,
        _: &mut Buffer,
        _: &mut Buffer,
    ) {
    }

    fn row_energies(&self, _: Rows, _: &Buffer, _: &mut Buffer) {}

    fn add_rows(&self, _: Rows, _: &Buffer, _: &Buffer, _: &mut Buffer) {}
}
