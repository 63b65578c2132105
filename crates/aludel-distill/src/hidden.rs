//! Brings chosen layers of the student towards layers of the teacher.
//!
//! In: the hidden terms of an objective and both models' shapes. Out: for every step, the terms' values and the gradients
//! of the student's hidden states. A term over several pairs of layers is their mean, so that its weight means the same for
//! any number of layers. Where widths differ, a pair has a projection of its own, which is trained with the student, saved
//! in checkpoints, and left out of the finished model. Formulas stand with the kernels.

use aludel_kernels::element::Element;
use aludel_kernels::loss::{HiddenGradient, HiddenLoss, HiddenStates, LossDevice, hidden_loss};
use aludel_kernels::nn::{Device, DeviceError};
use aludel_kernels::random::{StreamKey, uniform};
use aludel_model::{ModelConfig, Pass};
use sha2::{Digest, Sha256};

use crate::data::MicroBatch;
use crate::error::Error;
use crate::optimizer::Trained;
use crate::run::{Layers, Loss, Objective};

/// The hidden terms of an objective.
pub struct HiddenTerms<D: Device> {
    terms: Vec<Term<D>>,
    student_width: usize,
    teacher_width: usize,
}

struct Term<D: Device> {
    name: &'static str,
    loss: HiddenLoss,
    weight: f64,
    /// At least one.
    pairs: Vec<Pair<D>>,
}

/// A layer of each model, both counted from 1 as in [`Pass::state`].
struct Pair<D: Device> {
    student: usize,
    teacher: usize,
    projection: Option<Projection<D>>,
}

/// `[teacher_width, student_width]`.
struct Projection<D: Device> {
    weights: D::Buffer,
    gradient: D::Buffer,
}

/// Gradients of hidden states by the number of their layer.
pub type StateGradients<D> = Vec<(usize, <D as Device>::Buffer)>;

impl<D: LossDevice> HiddenTerms<D> {
    /// The terms of an objective between models of these shapes. Projections begin with random numbers of this seed.
    ///
    /// # Errors
    /// [`Error::Layers`] for a layer that a model does not have; what the device reports.
    pub fn new(
        device: &D,
        objective: &Objective,
        student: &ModelConfig,
        teacher: &ModelConfig,
        seed: u64,
    ) -> Result<Self, Error> {
        let widths = (student.hidden, teacher.hidden);
        let mut terms = Vec::new();
        for (place, term) in objective.hidden().enumerate() {
            let Some((name, loss, layers)) = kernel(&term.loss) else { continue };
            let needs_projection = widths.0 != widths.1 && loss != HiddenLoss::AttentionTransfer;
            let mut pairs = Vec::new();
            for (student, teacher) in pairs_of(layers, student.layers.len(), teacher.layers.len())? {
                let key = format!("projection.{place}.{student}");
                let projection =
                    needs_projection.then(|| Projection::new(device, widths, stream(seed, &key)));
                pairs.push(Pair { student, teacher, projection: projection.transpose()? });
            }
            terms.push(Term { name, loss, weight: term.weight, pairs });
        }
        Ok(Self { terms, student_width: widths.0, teacher_width: widths.1 })
    }

    /// No terms.
    pub fn none() -> Self {
        Self { terms: Vec::new(), student_width: 0, teacher_width: 0 }
    }

    /// How many terms there are.
    pub fn len(&self) -> usize {
        self.terms.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The terms' names, as in a run.
    pub fn term_names(&self) -> impl Iterator<Item = &'static str> {
        self.terms.iter().map(|term| term.name)
    }

    /// The weighted sum of the terms' values.
    pub fn value(&self, values: &[f64]) -> f64 {
        self.terms.iter().zip(values).map(|(term, value)| term.weight * value).sum()
    }

    /// Layers of the student whose hidden states are compared.
    pub fn student_states(&self) -> Vec<usize> {
        distinct(self.pairs().map(|pair| pair.student))
    }

    /// Layers of the teacher whose hidden states are compared.
    pub fn teacher_states(&self) -> Vec<usize> {
        distinct(self.pairs().map(|pair| pair.teacher))
    }

    /// The gradients of the student's hidden states for one micro-batch; those of projections are added up here, and
    /// `factor` times each term's sum over valid rows is added to `values`.
    ///
    /// # Errors
    /// What the device reports; [`Error::Internal`] when a pass lacks a state that was to be asked for.
    pub fn gradients(
        &mut self,
        device: &D,
        (student, teacher): (&Pass<D>, &Pass<D>),
        micro: &MicroBatch,
        factor: f64,
        values: &mut [f64],
    ) -> Result<StateGradients<D>, Error> {
        let mut gradients: StateGradients<D> = Vec::new();
        let missing = || Error::internal("a hidden state was not kept");
        for (term, value) in self.terms.iter_mut().zip(values) {
            let count = term.pairs.len() as f64;
            for pair in &mut term.pairs {
                let d_student = match gradients.iter().position(|(state, _)| *state == pair.student) {
                    Some(place) => &mut gradients[place].1,
                    None => {
                        let len = micro.labels.len() * self.student_width;
                        gradients.push((pair.student, device.zeros(len, device.activation())?));
                        let last = gradients.len() - 1;
                        &mut gradients[last].1
                    }
                };
                let (projection, d_projection) = match &mut pair.projection {
                    Some(Projection { weights, gradient }) => (Some(&*weights), Some(gradient)),
                    None => (None, None),
                };
                let states = HiddenStates {
                    student: student.state(pair.student).ok_or_else(missing)?,
                    student_width: self.student_width,
                    teacher: teacher.state(pair.teacher).ok_or_else(missing)?,
                    teacher_width: self.teacher_width,
                    projection,
                };
                let sum = hidden_loss(
                    device,
                    term.loss,
                    states,
                    &micro.labels,
                    &micro.batch.documents,
                    factor * term.weight / count,
                    Some(HiddenGradient { d_student, d_projection }),
                )?;
                *value += factor * sum / count;
            }
        }
        Ok(gradients)
    }

    /// Sets the projections' gradients to zero.
    pub fn clear_gradients(&mut self, device: &D) {
        for projection in self.projections_mut() {
            device.fill(&mut projection.gradient, 0.0);
        }
    }

    /// The projections' gradients, to be added to those of other processes.
    pub fn gradients_mut(&mut self) -> impl Iterator<Item = &mut D::Buffer> {
        self.projections_mut().map(|projection| &mut projection.gradient)
    }

    /// The projections, to be updated.
    pub fn trained(&mut self) -> impl Iterator<Item = Trained<'_, D>> {
        self.projections_mut().map(|Projection { weights, gradient }| Trained {
            weights,
            gradient,
            decays: true,
        })
    }

    /// The projections' names, in the order of [`HiddenTerms::trained`].
    pub fn names(&self) -> Vec<String> {
        let named = self.terms.iter().enumerate().flat_map(|(place, term)| {
            let pairs = term.pairs.iter().filter(|pair| pair.projection.is_some());
            pairs.map(move |pair| format!("projection.{place}.{}", pair.student))
        });
        named.collect()
    }

    /// The projections' weights.
    pub fn weights(&self) -> impl Iterator<Item = &D::Buffer> {
        self.pairs().filter_map(|pair| Some(&pair.projection.as_ref()?.weights))
    }

    /// As [`HiddenTerms::weights`], to be restored.
    pub fn weights_mut(&mut self) -> impl Iterator<Item = &mut D::Buffer> {
        self.projections_mut().map(|projection| &mut projection.weights)
    }

    fn pairs(&self) -> impl Iterator<Item = &Pair<D>> {
        self.terms.iter().flat_map(|term| &term.pairs)
    }

    fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection<D>> {
        let pairs = self.terms.iter_mut().flat_map(|term| &mut term.pairs);
        pairs.filter_map(|pair| pair.projection.as_mut())
    }
}

impl<D: Device> Projection<D> {
    /// Uniform in `+-1 / sqrt(student_width)`, as torch begins a linear layer.
    fn new(device: &D, (student, teacher): (usize, usize), key: StreamKey) -> Result<Self, DeviceError> {
        let len = student * teacher;
        let bound = 1.0 / (student as f32).sqrt();
        let values: Vec<f32> = (0..len as u64).map(|i| (2.0 * uniform(key, i) - 1.0) * bound).collect();
        let mut weights = device.zeros(len, Element::F32)?;
        device.write(&mut weights, 0, &values)?;
        Ok(Self { weights, gradient: device.zeros(len, Element::F32)? })
    }
}

fn kernel(loss: &Loss) -> Option<(&'static str, HiddenLoss, &Layers)> {
    match loss {
        Loss::HiddenMse { layers } => Some(("hidden_mse", HiddenLoss::MeanSquare, layers)),
        Loss::HiddenCosine { layers } => Some(("hidden_cosine", HiddenLoss::Cosine, layers)),
        Loss::AttentionTransfer { layers } => {
            Some(("attention_transfer", HiddenLoss::AttentionTransfer, layers))
        }
        _ => None,
    }
}

/// Pairs of layers counted from 1, of models of so many.
fn pairs_of(layers: &Layers, student: usize, teacher: usize) -> Result<Vec<(usize, usize)>, Error> {
    match layers {
        Layers::Every => Ok((1..=student).map(|layer| (layer, (layer * teacher / student).max(1))).collect()),
        Layers::Last => Ok(vec![(student, teacher)]),
        Layers::Pairs(pairs) => pairs
            .iter()
            .map(|&(s, t)| Ok((place(s, student, "student")?, place(t, teacher, "teacher")?)))
            .collect(),
    }
}

/// A layer counted from 0, counted from 1.
fn place(layer: u64, count: usize, whose: &'static str) -> Result<usize, Error> {
    if layer < count as u64 { Ok(layer as usize + 1) } else { Err(Error::Layers { layer, whose, count }) }
}

fn distinct(states: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut states: Vec<usize> = states.collect();
    states.sort_unstable();
    states.dedup();
    states
}

/// The key of the random numbers of something with a name.
fn stream(seed: u64, name: &str) -> StreamKey {
    let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize();
    let mut key = [0; 8];
    key.copy_from_slice(&digest[..8]);
    StreamKey(u64::from_le_bytes(key))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use aludel_kernels::loss::IGNORED;
    use aludel_kernels::nn::Cpu;
    use aludel_model::{Batch, Decoder, Keep, Use, WeightType};

    use super::*;
    use crate::run::ObjectiveTerm;

    #[test]
    fn layers_at_even_distances_end_with_the_last() {
        let pairs = |student, teacher| pairs_of(&Layers::Every, student, teacher).unwrap();
        assert_eq!(pairs(3, 6), [(1, 2), (2, 4), (3, 6)]);
        assert_eq!(pairs(2, 5), [(1, 2), (2, 5)]);
        assert_eq!(pairs(4, 2), [(1, 1), (2, 1), (3, 1), (4, 2)]);
        assert_eq!(pairs_of(&Layers::Last, 3, 7).unwrap(), [(3, 7)]);
    }

    /// The gradient of a projection is the slope of the objective's part, with weights, means and the step's factor in it.
    #[test]
    fn gradients_are_slopes_of_the_value() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/training");
        let device = Arc::new(Cpu::new(None).unwrap());
        let student =
            Decoder::open(&Path::new(golden).join("student"), Arc::clone(&device), Use::Frozen).unwrap();
        let text = std::fs::read_to_string(format!("{golden}/teacher/config.json")).unwrap();
        let text = text.replace("\"hidden_size\": 16", "\"hidden_size\": 24");
        let config = aludel_checkpoint::Config::parse(&text, Path::new("config.json")).unwrap();
        let teacher = Decoder::fresh(config, Arc::clone(&device), WeightType::Float32, 5).unwrap();
        let term = |loss, weight| ObjectiveTerm { loss, weight };
        let objective = Objective {
            terms: vec![
                term(Loss::HiddenMse { layers: Layers::Every }, 3.0),
                term(Loss::HiddenCosine { layers: Layers::Last }, 0.5),
            ],
        };
        let mut terms =
            HiddenTerms::new(device.as_ref(), &objective, student.config(), teacher.config(), 1).unwrap();
        assert_eq!(terms.names(), ["projection.0.1", "projection.0.2", "projection.1.2"]);
        let micro = MicroBatch {
            batch: Batch::pack([&[1, 2, 3, 4, 5][..], &[6, 7, 8]]),
            labels: vec![2, 3, IGNORED, 5, 6, 7, 8, IGNORED],
            ..MicroBatch::default()
        };
        let pass = student.forward(&micro.batch, Keep::Nothing, &terms.student_states()).unwrap();
        let taught = teacher.forward(&micro.batch, Keep::Nothing, &terms.teacher_states()).unwrap();
        let value = |terms: &mut HiddenTerms<Cpu>| {
            let mut values = [0.0; 2];
            terms.gradients(device.as_ref(), (&pass, &taught), &micro, 0.125, &mut values).unwrap();
            terms.value(&values)
        };
        terms.clear_gradients(device.as_ref());
        value(&mut terms);
        let slopes: Vec<Vec<f32>> =
            terms.projections_mut().map(|p| device.read(&p.gradient, 0..24 * 16).unwrap()).collect();
        for (place, slopes) in slopes.iter().enumerate() {
            let largest = slopes.iter().fold(0f32, |most, slope| most.max(slope.abs()));
            let element = slopes.iter().position(|slope| slope.abs() == largest).unwrap();
            let mut at = |step: f32| {
                let weights = terms.weights_mut().nth(place).unwrap();
                let before = device.read(weights, element..element + 1).unwrap();
                device.write(weights, element, &[before[0] + step]).unwrap();
                let value = value(&mut terms);
                let weights = terms.weights_mut().nth(place).unwrap();
                device.write(weights, element, &before).unwrap();
                value
            };
            let numeric = (at(0.01) - at(-0.01)) / 0.02;
            let slope = f64::from(largest.copysign(slopes[element]));
            assert!((numeric - slope).abs() < 0.01 * slope.abs(), "{place}: {numeric} is not {slope}");
        }
    }

    #[test]
    fn a_layer_that_is_not_there_is_named() {
        let pairs = |pairs: &[(u64, u64)]| pairs_of(&Layers::Pairs(pairs.to_vec()), 2, 3);
        assert_eq!(pairs(&[(0, 0), (1, 2)]).unwrap(), [(1, 1), (2, 3)]);
        let message = |result: Result<_, Error>| result.unwrap_err().to_string();
        assert_eq!(message(pairs(&[(2, 0)])), "layer 2 of the student is compared, which has layers 0 to 1");
        assert_eq!(message(pairs(&[(0, 3)])), "layer 3 of the teacher is compared, which has layers 0 to 2");
    }
}
