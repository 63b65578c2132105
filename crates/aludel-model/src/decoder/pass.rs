//! Walks through the layers, forward and backward, keeping what [`Keep`] says.
//!
//! A layer that was not kept is computed anew in the backward pass from the hidden states that went into it, by the same
//! operations in the same order: gradients are the same to the bit.

use std::sync::Arc;

use aludel_kernels::nn::{Accumulate, Device, DeviceError, Span};

use super::attention::AttentionTrace;
use super::cache::LayerCache;
use super::feed_forward::FeedForwardTrace;
use super::half::AfterTrace;
use super::rotary::Stretch;
use super::{Decoder, Step};
use crate::batch::Batch;
use crate::error::Error;
use crate::parameters::Gradients;
use crate::pool::Held;

/// What a forward pass leaves for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: there will be no backward pass.
    Nothing,
    /// All that it needs.
    Everything,
    /// What goes into each layer; the rest is computed anew, one layer at a time.
    Blocks,
    /// What goes into every n-th layer; n layers at a time are computed anew. 0 counts as 1.
    Every(usize),
}

/// Is told of each stage of a backward pass that is over.
pub type Passed<'a, D> = dyn FnMut(usize, &mut Gradients<D>) + 'a;

/// The outcome of a forward pass.
pub struct Pass<D: Device> {
    hidden: Held<D>,
    /// What went into the last norm, and its roots.
    last: Arc<Held<D>>,
    rstd: Held<D>,
    states: Vec<(usize, Arc<Held<D>>)>,
    step: Step<D>,
    ids: D::Indices,
    kept: Kept<D>,
}

enum Kept<D: Device> {
    Nothing,
    Layers(Vec<LayerTrace<D>>),
    /// What goes into the first layer of each group of so many.
    Inputs(usize, Vec<Arc<Held<D>>>),
}

/// What the backward pass of one layer needs.
pub(super) struct LayerTrace<D: Device> {
    pub(super) input: Arc<Held<D>>,
    pub(super) attention: AttentionTrace<D>,
    after_attention: Option<AfterTrace<D>>,
    pub(super) middle: Arc<Held<D>>,
    pub(super) feed_forward: FeedForwardTrace<D>,
    after_feed_forward: Option<AfterTrace<D>>,
}

impl<D: Device> Pass<D> {
    /// Hidden states after the last norm, `[T, D]`.
    pub fn hidden(&self) -> &D::Buffer {
        &self.hidden
    }

    /// Hidden states `[T, D]` that layer `index` left, counted from 1, where they were asked for; 0 is what went into the
    /// first layer. The last norm is not applied.
    pub fn state(&self, index: usize) -> Option<&D::Buffer> {
        self.states.iter().find(|(state, _)| *state == index).map(|(_, held)| &***held)
    }
}

impl<D: Device> Decoder<D> {
    /// Runs documents through the model. `states` are the numbers of the layers whose hidden states are wanted (see
    /// [`Pass::state`]).
    ///
    /// Errors: [`Error::Batch`] for an empty batch, an id that is not in the vocabulary, documents that do not cover the rows,
    /// or a state that does not exist; what the device says.
    pub fn forward(&self, batch: &Batch, keep: Keep, states: &[usize]) -> Result<Pass<D>, Error> {
        batch.check(self.config.vocabulary)?;
        let layers = self.config.layers.len();
        if let Some(state) = states.iter().find(|&&state| state > layers) {
            return Err(Error::batch(format!("state {state} was asked for of {layers} layers")));
        }
        let rows = batch.rows();
        self.pool.begin(rows);
        let step = self.step(&batch.documents)?;
        let ids = self.device.indices(&batch.ids)?;
        let mut h = self.embed(&ids, rows)?;
        let mut kept = match keep {
            Keep::Nothing => Kept::Nothing,
            Keep::Everything => Kept::Layers(Vec::with_capacity(layers)),
            Keep::Blocks => Kept::Inputs(1, Vec::new()),
            Keep::Every(count) => Kept::Inputs(count.max(1), Vec::new()),
        };
        let mut found = Vec::new();
        for layer in 0..layers {
            if states.contains(&layer) {
                found.push((layer, Arc::clone(&h)));
            }
            if let Kept::Inputs(count, inputs) = &mut kept
                && layer.is_multiple_of(*count)
            {
                inputs.push(Arc::clone(&h));
            }
            let (trace, next) = self.layer(layer, &step, h, None)?;
            h = next;
            if let Kept::Layers(traces) = &mut kept {
                traces.push(trace);
            }
        }
        if states.contains(&layers) {
            found.push((layers, Arc::clone(&h)));
        }
        let (hidden, rstd) = self.last_norm(rows, &h)?;
        Ok(Pass { hidden, last: h, rstd, states: found, step, ids, kept })
    }

    /// Adds to the gradients of the trained parameters what follows from `d_hidden`, the gradient of [`Pass::hidden`], and
    /// `d_states`, gradients of hidden states by the number of their layer (any of them, asked for or not). The head's own
    /// gradient is the loss's business; where head and embedding are tied, both add to the same buffer.
    ///
    /// Errors: [`Error::Batch`] where the forward pass kept nothing; what the device says.
    pub fn backward(
        &self,
        pass: Pass<D>,
        d_hidden: &D::Buffer,
        d_states: &[(usize, D::Buffer)],
        gradients: &mut Gradients<D>,
    ) -> Result<(), Error> {
        self.backward_in_stages(pass, d_hidden, d_states, gradients, &mut |_, _| {})
    }

    /// As [`Decoder::backward`]; `passed` is called after every stage of [`Decoder::stages`], and may take gradients that are final.
    ///
    /// Errors: as [`Decoder::backward`].
    pub fn backward_in_stages(
        &self,
        pass: Pass<D>,
        d_hidden: &D::Buffer,
        d_states: &[(usize, D::Buffer)],
        gradients: &mut Gradients<D>,
        passed: &mut Passed<'_, D>,
    ) -> Result<(), Error> {
        let Pass { hidden, last, rstd, states, step, ids, kept } = pass;
        drop((hidden, states));
        let rows = step.rows;
        let mut dh = self.pool.take(rows * self.config.hidden)?;
        let (shape, over) = (self.hidden_rows(rows), Accumulate::Overwrite);
        self.normalise_backward(self.places.norm, shape, &last, &rstd, d_hidden, &mut dh, over, gradients);
        drop((last, rstd));
        passed(0, gradients);
        match kept {
            Kept::Nothing => return Err(Error::batch("its forward pass kept nothing for a backward pass")),
            Kept::Layers(traces) => {
                self.layers_backward(0, traces, &step, d_states, &mut dh, gradients, passed)?;
            }
            Kept::Inputs(count, mut inputs) => {
                while let Some(input) = inputs.pop() {
                    let first = inputs.len() * count;
                    let end = (first + count).min(self.config.layers.len());
                    let traces = self.again(first, end, &step, input)?;
                    self.layers_backward(first, traces, &step, d_states, &mut dh, gradients, passed)?;
                }
            }
        }
        self.add_state(0, d_states, &mut dh);
        if let Some(d_table) = gradients.of(self.places.embedding) {
            self.device.embed_backward(&ids, &dh, self.config.hidden, self.config.embedding_scale, d_table);
        }
        passed(self.config.layers.len() + 1, gradients);
        Ok(())
    }

    pub(super) fn embed(&self, ids: &D::Indices, rows: usize) -> Result<Arc<Held<D>>, DeviceError> {
        let mut h = self.pool.take(rows * self.config.hidden)?;
        let table = self.parameters.buffer(self.places.embedding);
        self.device.embed(ids, table, self.config.hidden, self.config.embedding_scale, &mut h);
        Ok(Arc::new(h))
    }

    pub(super) fn last_norm(&self, rows: usize, h: &Held<D>) -> Result<(Held<D>, Held<D>), DeviceError> {
        let mut hidden = self.pool.take(rows * self.config.hidden)?;
        let mut rstd = self.pool.take_f32(rows)?;
        self.normalise(self.places.norm, self.hidden_rows(rows), h, &mut hidden, &mut rstd);
        Ok((hidden, rstd))
    }

    pub(super) fn step(&self, documents: &[std::ops::Range<usize>]) -> Result<Step<D>, DeviceError> {
        let spans = documents.iter().map(|rows| Span { queries: rows.clone(), keys: rows.clone() }).collect();
        let stretches: Vec<Stretch> =
            documents.iter().map(|rows| Stretch { first: 0, count: rows.len() }).collect();
        let rotations = self.rotary.rotations(&self.device, &stretches)?;
        let rows = documents.last().map_or(0, |rows| rows.end);
        Ok(Step { rows, spans, rotations })
    }

    /// One layer.
    pub(super) fn layer(
        &self,
        layer: usize,
        step: &Step<D>,
        input: Arc<Held<D>>,
        cache: Option<&mut LayerCache<D>>,
    ) -> Result<(LayerTrace<D>, Arc<Held<D>>), DeviceError> {
        let mut trace = self.most_of_layer(layer, step, input, cache)?;
        let norms = self.places.layers[layer].feed_forward_norms;
        let (output, after) = self.leave(norms, step.rows, &trace.middle, |out, into| {
            self.feed_forward_output(layer, step.rows, &trace.feed_forward, out, into)
        })?;
        trace.after_feed_forward = after;
        Ok((trace, output))
    }

    /// One layer without its last product, which its own backward pass needs only where a norm follows it.
    fn most_of_layer(
        &self,
        layer: usize,
        step: &Step<D>,
        input: Arc<Held<D>>,
        cache: Option<&mut LayerCache<D>>,
    ) -> Result<LayerTrace<D>, DeviceError> {
        self.bring(layer);
        let (places, rows) = (&self.places.layers[layer], step.rows);
        let norms = places.attention_norms;
        let attention = {
            let x = self.enter(norms, rows, &input)?;
            self.attention(layer, step, x.as_ref().map_or(&input, |entered| &entered.x), cache)?
        };
        let (middle, after_attention) = self.leave(norms, rows, &input, |out, into| {
            self.attention_output(layer, rows, &attention, out, into)
        })?;
        let feed_forward = {
            let x = self.enter(places.feed_forward_norms, rows, &middle)?;
            self.feed_forward(layer, rows, x.as_ref().map_or(&middle, |entered| &entered.x))?
        };
        let after_feed_forward = None;
        Ok(LayerTrace { input, attention, after_attention, middle, feed_forward, after_feed_forward })
    }

    /// The traces of layers that were not kept.
    fn again(
        &self,
        first: usize,
        end: usize,
        step: &Step<D>,
        mut h: Arc<Held<D>>,
    ) -> Result<Vec<LayerTrace<D>>, DeviceError> {
        let mut traces = Vec::with_capacity(end - first);
        for layer in first..end {
            let is_last = layer + 1 == end;
            if is_last && self.places.layers[layer].feed_forward_norms.after.is_none() {
                traces.push(self.most_of_layer(layer, step, Arc::clone(&h), None)?);
            } else {
                let (trace, next) = self.layer(layer, step, h, None)?;
                traces.push(trace);
                h = next;
            }
        }
        Ok(traces)
    }

    /// Turns `dh`, the gradient of what the last of these layers left, into that of what went into the first.
    #[expect(clippy::too_many_arguments, reason = "what the gradient depends on")]
    fn layers_backward(
        &self,
        first: usize,
        mut traces: Vec<LayerTrace<D>>,
        step: &Step<D>,
        d_states: &[(usize, D::Buffer)],
        dh: &mut Held<D>,
        gradients: &mut Gradients<D>,
        passed: &mut Passed<'_, D>,
    ) -> Result<(), DeviceError> {
        while let Some(trace) = traces.pop() {
            let layer = first + traces.len();
            self.add_state(layer + 1, d_states, dh);
            self.layer_backward(layer, step, trace, dh, gradients)?;
            passed(self.config.layers.len() - layer, gradients);
        }
        Ok(())
    }

    fn layer_backward(
        &self,
        layer: usize,
        step: &Step<D>,
        trace: LayerTrace<D>,
        dh: &mut Held<D>,
        gradients: &mut Gradients<D>,
    ) -> Result<(), DeviceError> {
        let (places, rows) = (&self.places.layers[layer], step.rows);
        let LayerTrace { input, attention, after_attention, middle, feed_forward, after_feed_forward } =
            trace;
        let (norms, after) = (places.feed_forward_norms, after_feed_forward);
        self.half_backward(norms, rows, &middle, after, dh, gradients, |x, d, scale, dx, gradients| {
            self.feed_forward_backward(layer, rows, x, feed_forward, d, scale, dx, gradients)
        })?;
        drop(middle);
        let (norms, after) = (places.attention_norms, after_attention);
        self.half_backward(norms, rows, &input, after, dh, gradients, |x, d, scale, dx, gradients| {
            self.attention_backward(layer, step, x, attention, d, scale, dx, gradients)
        })
    }

    /// Adds the gradients of one state.
    fn add_state(&self, state: usize, d_states: &[(usize, D::Buffer)], dh: &mut D::Buffer) {
        for (_, d) in d_states.iter().filter(|(index, _)| *index == state) {
            self.device.add(d, 1.0, dh);
        }
    }
}
