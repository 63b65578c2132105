//! Adds up what goes into linear layers: the sum of `x x^T` over the rows of batches.
//!
//! In: batches. Out: a Gram matrix for every [`Site`], the place of an input that one or more weights share: queries, keys
//! and values have one, gate and up another. Sums are f32, of products that the device makes as it makes the gradient of a
//! weight. The model is walked as in a forward pass that keeps nothing, no farther than the last site that is asked for.

use std::ops::Range;

use aludel_kernels::element::Element;
use aludel_kernels::nn::{Device, DeviceError, Product};

use super::feed_forward::ExpertRows;
use super::pass::LayerTrace;
use super::{Decoder, Step};
use crate::batch::Batch;
use crate::error::Error;
use crate::names::FeedForwardPlaces;

/// An input of linear layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The tensors of a model folder that are multiplied with it.
    pub tensors: Vec<String>,
    /// Its elements.
    pub width: usize,
}

/// Gram matrices of consecutive sites.
pub struct Grams<D: Device> {
    first: usize,
    /// `[width, width]` each.
    sums: Vec<D::Buffer>,
}

impl<D: Device> Grams<D> {
    /// The sum of a site, by its position among [`Decoder::sites`].
    pub fn of(&self, site: usize) -> Option<&D::Buffer> {
        self.sums.get(site.checked_sub(self.first)?)
    }

    fn sites(&self) -> Range<usize> {
        self.first..self.first + self.sums.len()
    }
}

impl<D: Device> Decoder<D> {
    /// The inputs of all linear layers, in the order of the model; of a head only where it is not tied to the embedding,
    /// whose rows are looked up as well.
    pub fn sites(&self) -> Vec<Site> {
        let mut sites = Vec::new();
        let mut add = |weights: &[usize], width: usize| {
            let mut tensors: Vec<String> =
                weights.iter().filter_map(|&weight| self.tensor_of(weight)).collect();
            tensors.dedup();
            sites.push(Site { tensors, width });
        };
        for places in &self.places.layers {
            let [query, key, value] = [&places.query, &places.key, &places.value].map(|linear| linear.weight);
            add(&[query, key, value], places.query.inputs);
            add(&[places.output.weight], places.output.inputs);
            match &places.feed_forward {
                FeedForwardPlaces::Dense { gate, up, down } => {
                    add(&[gate.weight, up.weight], gate.inputs);
                    add(&[down.weight], down.inputs);
                }
                FeedForwardPlaces::Experts { router, experts } => {
                    add(&[router.weight], router.inputs);
                    let inner = self.parameters.at(experts.down).shape[1];
                    for expert in 0..experts.count {
                        add(&[experts.gate + expert, experts.up + expert], router.inputs);
                    }
                    for expert in 0..experts.count {
                        add(&[experts.down + expert], inner);
                    }
                }
            }
        }
        if self.places.head != self.places.embedding {
            add(&[self.places.head], self.config.hidden);
        }
        sites
    }

    /// Zeros for these sites.
    ///
    /// # Errors
    /// What the device says.
    pub fn grams(&self, sites: Range<usize>) -> Result<Grams<D>, DeviceError> {
        let all = self.sites();
        let zeros = |site: &Site| self.device.zeros(site.width * site.width, Element::F32);
        Ok(Grams { first: sites.start, sums: all[sites].iter().map(zeros).collect::<Result<_, _>>()? })
    }

    /// Adds what goes into the layers for every row of a batch.
    ///
    /// # Errors
    /// As [`Decoder::forward`].
    pub fn add_grams(&self, batch: &Batch, grams: &mut Grams<D>) -> Result<(), Error> {
        batch.check(self.config.vocabulary)?;
        self.pool.begin(batch.rows());
        let step = self.step(&batch.documents)?;
        let ids = self.device.indices(&batch.ids)?;
        let mut h = self.embed(&ids, batch.rows())?;
        let mut site = 0;
        for layer in 0..self.config.layers.len() {
            if site >= grams.sites().end {
                return Ok(());
            }
            let count = self.sites_of(layer);
            let (trace, next) = self.layer(layer, &step, h, None)?;
            if site + count > grams.first {
                self.add_layer(layer, &step, &trace, site, grams)?;
            }
            (h, site) = (next, site + count);
        }
        if grams.sites().contains(&site) {
            let (hidden, _) = self.last_norm(batch.rows(), &h)?;
            self.add_gram(batch.rows(), &hidden, self.config.hidden, site, grams);
        }
        Ok(())
    }

    fn sites_of(&self, layer: usize) -> usize {
        match &self.places.layers[layer].feed_forward {
            FeedForwardPlaces::Dense { .. } => 4,
            FeedForwardPlaces::Experts { experts, .. } => 3 + 2 * experts.count,
        }
    }

    fn add_layer(
        &self,
        layer: usize,
        step: &Step<D>,
        trace: &LayerTrace<D>,
        site: usize,
        grams: &mut Grams<D>,
    ) -> Result<(), DeviceError> {
        let (places, rows, hidden) = (&self.places.layers[layer], step.rows, self.config.hidden);
        let x = self.enter(places.attention_norms, rows, &trace.input)?;
        let x = x.as_ref().map_or(&*trace.input, |entered| &entered.x);
        self.add_gram(rows, x, hidden, site, grams);
        self.add_gram(rows, trace.attention.result(), places.output.inputs, site + 1, grams);
        let x = self.enter(places.feed_forward_norms, rows, &trace.middle)?;
        let x = x.as_ref().map_or(&*trace.middle, |entered| &entered.x);
        self.add_gram(rows, x, hidden, site + 2, grams);
        match &places.feed_forward {
            FeedForwardPlaces::Dense { down, .. } => {
                let inner = self.inner(layer, rows, &trace.feed_forward)?;
                self.add_gram(rows, &inner, down.inputs, site + 3, grams);
            }
            FeedForwardPlaces::Experts { experts, .. } => {
                let taken = self.expert_rows(layer, rows, x, &trace.feed_forward)?;
                let ExpertRows { assignment, slots, entered, inner, width } = &taken;
                let of_experts = [(entered, hidden), (inner, *width)];
                for (half, (x, width)) in of_experts.into_iter().enumerate() {
                    let first = site + 3 + half * experts.count;
                    let product = Product { rows: *slots, inputs: width, outputs: width, scale: 1.0 };
                    // All experts of a half are summed at once, so those that are not asked for are thrown away.
                    let wanted = first..first + experts.count;
                    if wanted.clone().any(|site| grams.sites().contains(&site)) {
                        self.add_of_experts(assignment, product, x, wanted, grams)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn add_of_experts(
        &self,
        assignment: &D::Assignment,
        product: Product,
        x: &D::Buffer,
        sites: Range<usize>,
        grams: &mut Grams<D>,
    ) -> Result<(), DeviceError> {
        let (start, end) = (sites.start, sites.end);
        let known = grams.sites();
        let zeros = || self.device.zeros(product.inputs * product.inputs, Element::F32);
        let before =
            (start..known.start.clamp(start, end)).map(|_| zeros()).collect::<Result<Vec<_>, _>>()?;
        let after = (known.end.clamp(start, end)..end).map(|_| zeros()).collect::<Result<Vec<_>, _>>()?;
        let (mut before, mut after) = (before, after);
        let own = start.max(known.start) - grams.first..end.min(known.end) - grams.first;
        let mut sums: Vec<&mut D::Buffer> =
            before.iter_mut().chain(&mut grams.sums[own]).chain(after.iter_mut()).collect();
        self.device.grouped_linear_backward_weight(assignment, product, x, x, &mut sums);
        Ok(())
    }

    fn add_gram(&self, rows: usize, x: &D::Buffer, width: usize, site: usize, grams: &mut Grams<D>) {
        if grams.sites().contains(&site) {
            // `X^T X` is the gradient of a weight whose outputs' gradient is its input.
            let product = Product { rows, inputs: width, outputs: width, scale: 1.0 };
            let sum = &mut grams.sums[site - grams.first];
            self.device.linear_backward_weight(product, x, x, sum, None);
        }
    }

    /// The tensors of a model folder, with their shapes, in the order of the model.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.stored.iter().map(|stored| (stored.name.as_str(), stored.shape.as_slice()))
    }

    /// The parameters whose rows a tensor of a model folder has, one after another.
    pub fn parts_of(&self, tensor: &str) -> Vec<&str> {
        let stored = self.stored.iter().find(|stored| stored.name == tensor);
        let parts = stored.into_iter().flat_map(|stored| &stored.parts);
        parts.map(|&part| self.parameters.at(part).name.as_str()).collect()
    }

    /// The tensor of a model folder that has a parameter's rows.
    pub(crate) fn tensor_of(&self, parameter: usize) -> Option<String> {
        let holds = |stored: &&crate::names::Stored| stored.parts.contains(&parameter);
        self.stored.iter().find(holds).map(|stored| stored.name.clone())
    }
}
