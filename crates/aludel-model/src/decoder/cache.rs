//! Keeps keys and values of one document, so that a further token costs one row.
//!
//! Under a scaling of rotary embedding that depends on the document's length (dynamic, longrope), rows are turned for the
//! length at which they were added, as transformers does; beyond the length that the model was made for, generation so
//! differs a little from a forward pass over the whole document.

use std::sync::Arc;

use aludel_kernels::nn::{Device, DeviceError, Span};

use super::rotary::Stretch;
use super::{Decoder, Step};
use crate::batch::check_ids;
use crate::error::Error;
use crate::pool::Held;

/// Keys and values of the document so far.
pub struct KeyValueCache<D: Device> {
    layers: Vec<LayerCache<D>>,
    len: usize,
    capacity: usize,
}

/// Of one layer: `[capacity, K, E]` each.
pub(super) struct LayerCache<D: Device> {
    pub(super) keys: D::Buffer,
    pub(super) values: D::Buffer,
}

/// Hidden states of the rows that were added.
pub struct Extension<D: Device> {
    hidden: Held<D>,
}

impl<D: Device> Extension<D> {
    /// After the last norm, `[rows, D]`.
    pub fn hidden(&self) -> &D::Buffer {
        &self.hidden
    }
}

impl<D: Device> KeyValueCache<D> {
    /// Tokens in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The most tokens that it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl<D: Device> Decoder<D> {
    /// An empty cache for a document of up to `capacity` tokens: `2 capacity K E` activations for each layer.
    ///
    /// Errors: what the device says.
    pub fn cache(&self, capacity: usize) -> Result<KeyValueCache<D>, DeviceError> {
        let element = self.device.activation();
        let layer = |width: usize| {
            let buffer = || self.device.zeros(capacity.saturating_mul(width), element);
            Ok(LayerCache { keys: buffer()?, values: buffer()? })
        };
        let layers = self.config.layers.iter().map(|config| layer(config.attention.key_width()));
        Ok(KeyValueCache { layers: layers.collect::<Result<_, DeviceError>>()?, len: 0, capacity })
    }

    /// Appends tokens to the document; returns their hidden states.
    ///
    /// Errors: [`Error::Batch`] for no tokens, one that is not in the vocabulary, or more than the cache has room for; what
    /// the device says.
    pub fn extend(&self, cache: &mut KeyValueCache<D>, ids: &[u32]) -> Result<Extension<D>, Error> {
        check_ids(ids, self.config.vocabulary)?;
        let (first, rows) = (cache.len, ids.len());
        if rows > cache.capacity - first {
            let detail = format!("{rows} tokens do not fit a cache of {} with {first} in it", cache.capacity);
            return Err(Error::batch(detail));
        }
        self.pool.begin(rows);
        let rotations = self.rotary.rotations(&self.device, &[Stretch { first, count: rows }])?;
        let spans = vec![Span { queries: 0..rows, keys: 0..first + rows }];
        let step = Step { rows, spans, rotations };
        let mut h = self.embed(&self.device.indices(ids)?, rows)?;
        for (layer, layer_cache) in cache.layers.iter_mut().enumerate() {
            h = self.layer(layer, &step, h, Some(layer_cache))?.1;
        }
        cache.len += rows;
        let (hidden, _) = self.last_norm(rows, &Arc::clone(&h))?;
        Ok(Extension { hidden })
    }
}
