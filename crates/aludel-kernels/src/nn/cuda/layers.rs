//! Brings the weights of one layer after another from the host's memory, where all of them do not fit the device's.
//!
//! In: the weights of each layer. Out: buffers, of which those of every second layer share their memory: a layer's own weights are in them from
//! [`Device::bring`](crate::nn::Device::bring) on, until that of the layer after the next. While one layer is computed the next is copied.

use std::sync::Mutex;

use super::buffer::Buffer;
use super::context::{Cuda, lock};
use crate::cuda::CudaError;
use crate::cuda::driver::{Block, Mark, Pinned, Stream};
use crate::nn::device::{DeviceError, LayerWeights};

/// Layers that lie in the host's memory.
#[derive(Debug)]
pub struct Layers {
    host: Vec<Pinned>,
    places: [Block; 2],
    standing: Mutex<[Standing; 2]>,
    up: Stream,
}

/// What lies in a place.
#[derive(Debug, Default)]
struct Standing {
    layer: Option<usize>,
    /// It is there from here on.
    there: Option<Mark>,
}

impl Drop for Layers {
    fn drop(&mut self) {
        // A failure is one of the device, which every later call reports.
        let _ = self.up.synchronize();
    }
}

/// What arrays begin at multiples of, as kernels and the library of products want it.
const ALIGNMENT: usize = 256;

pub(super) fn layers(
    cuda: &Cuda,
    layers: &[LayerWeights],
) -> Result<(Layers, Vec<Vec<Buffer>>), DeviceError> {
    cuda.told(made(cuda, layers))
}

fn made(cuda: &Cuda, layers: &[LayerWeights]) -> Result<(Layers, Vec<Vec<Buffer>>), CudaError> {
    let length = |layer: &LayerWeights| {
        layer.iter().map(|(bytes, _)| (**bytes).as_ref().len().next_multiple_of(ALIGNMENT)).sum::<usize>()
    };
    let most = layers.iter().map(length).max().unwrap_or(0);
    let places = [cuda.stream.block(most)?, cuda.stream.block(most)?];
    let mut host = Vec::new();
    let mut buffers = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let mut pinned = cuda.driver.pinned(length(layer))?;
        let (to, mut at, mut own) = (pinned.bytes()?, 0, Vec::new());
        for (bytes, element) in layer {
            let bytes = (**bytes).as_ref();
            to[at..at + bytes.len()].copy_from_slice(bytes);
            let block = places[number % 2].part(at, bytes.len());
            own.push(cuda.buffer(block, bytes.len() / element.size(), *element));
            at += bytes.len().next_multiple_of(ALIGNMENT);
        }
        host.push(pinned);
        buffers.push(own);
    }
    Ok((Layers { host, places, standing: Mutex::default(), up: cuda.up.clone() }, buffers))
}

pub(super) fn bring(cuda: &Cuda, layers: &Layers, layer: usize) {
    cuda.keep(brought(cuda, layers, layer));
}

fn brought(cuda: &Cuda, layers: &Layers, layer: usize) -> Result<(), CudaError> {
    let mut standing = lock(&layers.standing);
    // What was submitted so far are the uses of the layers before.
    let used = cuda.stream.mark()?;
    let mut copy = |place: usize, wanted: usize| {
        if standing[place].layer != Some(wanted) {
            layers.up.follow(&used)?;
            let pinned = &layers.host[wanted];
            let bytes = pinned.read()?.len();
            layers.up.send_pinned(pinned, 0..bytes, &layers.places[place])?;
            standing[place] = Standing { layer: Some(wanted), there: Some(layers.up.mark()?) };
        }
        Ok(())
    };
    copy(layer % 2, layer)?;
    let next = (layer + 1) % layers.host.len();
    if next % 2 != layer % 2 {
        copy(next % 2, next)?;
    }
    match &standing[layer % 2].there {
        Some(there) => cuda.stream.follow(there),
        None => Ok(()),
    }
}
