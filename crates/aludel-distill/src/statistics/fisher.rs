//! Collects the diagonal of the empirical Fisher information: squares of the gradients of a model's log-likelihood.
//!
//! `F = sum_s (grad log p(s))^2 / T`, where `s` are the pieces of the data, each with the gradient of all of its tokens
//! together, and `T` is the number of tokens that they predict: information per token. Source: Matena and Raffel, "Merging
//! models with Fisher-weighted averaging" (2022), eq. 4, with the data's own tokens in the place of tokens drawn from the
//! model, and with the square of a sequence's gradient, not the sum of squares over its tokens. Gradients and sums are
//! f32.

use std::ops::Range;

use aludel_checkpoint::OutputTensor;
use aludel_kernels::loss::{HeadGradient, LabelTerm, LossDevice, Objective, Target, head_loss};
use aludel_model::{Batch, Decoder, Gradients, Keep};

use super::Data;
use super::share::{Unit, tensor};
use super::write::Output;
use crate::data::Document;
use crate::error::Error;

/// A unit for each layer, and one for each tensor outside of the layers.
pub(super) fn units<D: LossDevice>(model: &Decoder<D>) -> Vec<Unit> {
    let mut units: Vec<(String, Unit)> = Vec::new();
    for (name, shape) in model.tensors() {
        // A gradient and a square.
        let bytes = 2 * (shape.iter().product::<usize>() * size_of::<f32>()) as u64;
        let layer = layer_of(name).to_owned();
        let tensor = tensor(name.to_owned(), shape.to_vec());
        match units.iter_mut().find(|(known, _)| *known == layer) {
            Some((_, unit)) => {
                unit.tensors.push(tensor);
                unit.bytes += bytes;
            }
            None => units.push((layer, Unit { tensors: vec![tensor], bytes })),
        }
    }
    units.into_iter().map(|(_, unit)| unit).collect()
}

/// `model.layers.3.` of a name in a layer, else the whole of it.
fn layer_of(name: &str) -> &str {
    let end = name.strip_prefix(LAYERS).and_then(|rest| Some(LAYERS.len() + rest.find('.')? + 1));
    &name[..end.unwrap_or(name.len())]
}

const LAYERS: &str = "model.layers.";

/// Collects those of some units, and writes them.
pub(super) fn collect<D: LossDevice>(
    model: &mut Decoder<D>,
    units: &[Unit],
    data: Data<'_>,
    output: &mut Output,
) -> Result<(), Error> {
    let layers: Vec<&str> =
        units.iter().filter_map(|unit| Some(layer_of(&unit.tensors.first()?.name))).collect();
    model.train_only(|name| layers.contains(&layer_of(name)));
    let mut sums = Sums::new(model)?;
    let mut done = 0;
    data.pieces.each(Some(data.tokens), data.settings.cancel, |piece| {
        sums.add(model, &piece)?;
        done += piece.ids.len() as u64;
        (data.on_tokens)(done);
        Ok(())
    })?;
    if sums.predicted == 0 {
        return Err(Error::NoTargets);
    }
    for OutputTensor { name, shape, .. } in units.iter().flat_map(|unit| &unit.tensors) {
        let parts = model.parts_of(name);
        output.write(
            std::slice::from_ref(name),
            |elements| Ok(sums.read(&parts, elements)),
            shape.iter().product(),
        )?;
    }
    model.train_only(|_| false);
    Ok(())
}

/// Squares, one array for each parameter that is collected.
struct Sums<D: LossDevice> {
    gradients: Gradients<D>,
    names: Vec<String>,
    squares: Vec<Vec<f32>>,
    objective: Objective,
    /// Tokens that were predicted.
    predicted: u64,
}

impl<D: LossDevice> Sums<D> {
    fn new(model: &Decoder<D>) -> Result<Self, Error> {
        let trained = || model.parameters().trainable();
        Ok(Self {
            gradients: model.gradients()?,
            names: trained().map(|parameter| parameter.name.clone()).collect(),
            squares: trained().map(|parameter| vec![0.0; parameter.elements()]).collect(),
            objective: Objective::new(vec![], Some(LabelTerm { weight: 1.0 }), Target::Teacher)?,
            predicted: 0,
        })
    }

    /// Adds the squares of one piece.
    fn add(&mut self, model: &Decoder<D>, piece: &Document) -> Result<(), Error> {
        if piece.targets() == 0 {
            return Ok(());
        }
        let device = model.device().as_ref();
        self.predicted += piece.targets() as u64;
        self.gradients.clear(device);
        let batch = Batch::pack([piece.ids.as_slice()]);
        let pass = model.forward(&batch, Keep::Blocks, &[])?;
        let mut d_hidden = device.zeros(batch.rows() * model.config().hidden, device.activation())?;
        let gradient = HeadGradient {
            d_hidden: &mut d_hidden,
            d_weight: model.head_gradient(&mut self.gradients),
            d_bias: None,
        };
        let (head, labels) = (model.head(), &piece.labels);
        let student = (&head, pass.hidden());
        // The sum over the tokens of the piece: each of them counts once.
        head_loss(
            device,
            &self.objective,
            student,
            None,
            labels,
            1.0,
            Some(gradient),
            device.logit_memory(),
        )?;
        model.backward(pass, &d_hidden, &[], &mut self.gradients)?;
        for (gradient, squares) in self.gradients.iter().zip(&mut self.squares) {
            for start in (0..squares.len()).step_by(PIECE) {
                let end = squares.len().min(start + PIECE);
                let values = device.read(gradient, start..end)?;
                squares[start..end].iter_mut().zip(values).for_each(|(sum, value)| *sum += value * value);
            }
        }
        Ok(())
    }

    /// Elements of a tensor that these parameters make up, one after another.
    fn read(&self, parts: &[&str], elements: Range<usize>) -> Vec<f32> {
        let known = |part: &&str| self.names.iter().position(|name| name == part);
        let squares = parts.iter().filter_map(known).flat_map(|part| &self.squares[part]);
        let mean = |square: &f32| (f64::from(*square) / self.predicted as f64) as f32;
        squares.skip(elements.start).take(elements.len()).map(mean).collect()
    }
}

/// Elements that are on the host at a time.
const PIECE: usize = 1 << 20;
