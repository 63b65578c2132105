//! Continues a text, one token at a time, with a cache of keys and values.
//!
//! In: the tokens of a prompt. Out: further tokens, until one that ends the text or as many as were asked for. It knows no
//! text: tokenizers are elsewhere.

use aludel_kernels::nn::{Accumulate, Device, Product, Rows};

use crate::decoder::{Decoder, KeyValueCache};
use crate::error::Error;
use crate::sample::Sampling;

/// A text in the making; an iterator over its new tokens.
pub struct Generation<'m, D: Device> {
    decoder: &'m Decoder<D>,
    cache: KeyValueCache<D>,
    sampling: Sampling,
    /// Tokens that the cache does not have yet.
    pending: Vec<u32>,
    chosen: u64,
    left: usize,
    ends: Vec<u32>,
    /// The last row of hidden states, and its logits.
    row: D::Buffer,
    logits: D::Buffer,
}

impl<'m, D: Device> Generation<'m, D> {
    /// Begins after `prompt`, for at most `most` tokens. `ends` are tokens that end the text; they are not given out.
    ///
    /// # Errors
    /// [`Error::Batch`] for an empty prompt or a token that is not in the vocabulary; what the device says, for one where
    /// there is no memory for the cache.
    pub fn new(
        decoder: &'m Decoder<D>,
        prompt: &[u32],
        most: usize,
        ends: &[u32],
        sampling: Sampling,
    ) -> Result<Self, Error> {
        let device = decoder.device();
        let head = decoder.head();
        Ok(Self {
            cache: decoder.cache(prompt.len() + most)?,
            row: device.zeros(head.width, device.activation())?,
            logits: device.zeros(head.vocabulary, device.activation())?,
            decoder,
            sampling,
            pending: prompt.to_vec(),
            chosen: 0,
            left: most,
            ends: ends.to_vec(),
        })
    }

    /// Logits of the token after the last one.
    fn next_logits(&mut self) -> Result<Vec<f32>, Error> {
        let device = self.decoder.device();
        let head = self.decoder.head();
        let rows = self.pending.len();
        let extension = self.decoder.extend(&mut self.cache, &self.pending)?;
        self.pending.clear();
        let shape = Rows { rows: 1, width: head.width };
        device.copy_rows(extension.hidden(), rows.saturating_sub(1), &mut self.row, 0, shape);
        let product = Product { rows: 1, inputs: head.width, outputs: head.vocabulary, scale: head.scale };
        device.linear(product, &self.row, head.weight, head.bias, &mut self.logits, Accumulate::Overwrite);
        let mut logits = device.read(&self.logits, 0..head.valid)?;
        if let Some(cap) = head.soft_cap {
            logits.iter_mut().for_each(|logit| *logit = cap * (*logit / cap).tanh());
        }
        Ok(logits)
    }
}

impl<D: Device> Iterator for Generation<'_, D> {
    type Item = Result<u32, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let logits = match self.next_logits() {
            Ok(logits) => logits,
            Err(error) => {
                self.left = 0;
                return Some(Err(error));
            }
        };
        let token = self.sampling.choose(&logits, self.chosen).filter(|token| !self.ends.contains(token));
        let Some(token) = token else {
            self.left = 0;
            return None;
        };
        self.chosen += 1;
        self.pending.push(token);
        Some(Ok(token))
    }
}
