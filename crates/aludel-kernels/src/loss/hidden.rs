//! Brings hidden states of the student towards the teacher's.
//!
//! In: hidden states of one layer of each, for the rows of a step, and where widths differ a learned projection. Out: a sum
//! over the valid rows, and gradients added to those of the student's hidden states and of the projection. Which layers are
//! paired is the caller's.

use std::ops::Range;

use super::device::{LossDevice, RowDistance};
use super::objective::IGNORED;
use crate::element::Element;
use crate::nn::{Accumulate, DeviceError, Product, Rows};

/// A distance between hidden states `s` and `t` of one layer pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HiddenLoss {
    /// `mean_i (s_i - t_i)^2` of each row (Jiao et al. 2020, TinyBERT, equation 8).
    MeanSquare,
    /// `1 - cos(s, t)` of each row (Sanh et al. 2019, DistilBERT). A row of zeros has cosine 0 and no gradient.
    Cosine,
    /// Activation-based attention transfer (Zagoruyko and Komodakis 2017, equation 2 with `F_sum^2` and p = 2): the
    /// map of a document gives each of its rows the energy `a_r = sum_i s_ri^2`; the loss of the document is
    /// `|a_s / |a_s| - a_t / |a_t||^2`, and it counts once for every valid row, so that the mean over valid rows weighs
    /// documents by their length. The paper's maps run over positions of an image, these over the valid rows of a
    /// document; squared as in the authors' experiments. Widths need not agree; nothing of size T x T exists.
    AttentionTransfer,
}

/// Hidden states of one pair of layers.
#[derive(Debug)]
pub struct HiddenStates<'a, B> {
    /// `[T, student_width]`, of the device's activation type.
    pub student: &'a B,
    /// Elements of a student's row.
    pub student_width: usize,
    /// `[T, teacher_width]`, of any type.
    pub teacher: &'a B,
    /// Elements of a teacher's row.
    pub teacher_width: usize,
    /// `[teacher_width, student_width]`: the student's rows are multiplied by its transpose first. Needed where widths
    /// differ, except by [`HiddenLoss::AttentionTransfer`], which has no use for it.
    pub projection: Option<&'a B>,
}

impl<B> Clone for HiddenStates<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for HiddenStates<'_, B> {}

/// Where the gradients go.
#[derive(Debug)]
pub struct HiddenGradient<'a, B> {
    /// `[T, student_width]`, of the device's activation type, added to.
    pub d_student: &'a mut B,
    /// `[teacher_width, student_width]`, f32, added to.
    pub d_projection: Option<&'a mut B>,
}

/// Value and gradient of a distance between hidden states.
///
/// Rows whose label is [`IGNORED`] contribute nothing. `documents` are the rows of each document, in order, none twice; only
/// [`HiddenLoss::AttentionTransfer`] looks at them. `factor` multiplies the gradients (not the value): weight / valid rows of
/// the whole optimizer step. Returns the sum over valid rows.
///
/// # Errors
/// What the device reports.
///
/// # Panics
/// Where lengths do not match, or widths differ without a projection that is needed: bugs of the caller.
pub fn hidden_loss<D: LossDevice>(
    device: &D,
    loss: HiddenLoss,
    states: HiddenStates<'_, D::Buffer>,
    labels: &[u32],
    documents: &[Range<usize>],
    factor: f64,
    gradient: Option<HiddenGradient<'_, D::Buffer>>,
) -> Result<f64, DeviceError> {
    assert_eq!(device.len(states.student), labels.len() * states.student_width, "student's rows and labels");
    assert_eq!(device.len(states.teacher), labels.len() * states.teacher_width, "teacher's rows and labels");
    match loss {
        HiddenLoss::MeanSquare => distance(device, RowDistance::MeanSquare, states, labels, factor, gradient),
        HiddenLoss::Cosine => distance(device, RowDistance::Cosine, states, labels, factor, gradient),
        HiddenLoss::AttentionTransfer => {
            attention_transfer(device, states, labels, documents, factor, gradient)
        }
    }
}

fn distance<D: LossDevice>(
    device: &D,
    distance: RowDistance,
    states: HiddenStates<'_, D::Buffer>,
    labels: &[u32],
    factor: f64,
    gradient: Option<HiddenGradient<'_, D::Buffer>>,
) -> Result<f64, DeviceError> {
    let HiddenStates { student, student_width, teacher, teacher_width, projection } = states;
    let rows = labels.len();
    let product = Product { rows, inputs: student_width, outputs: teacher_width, scale: 1.0 };
    let mut compared = device.zeros(rows * teacher_width, device.activation())?;
    match projection {
        Some(weight) => device.linear(product, student, weight, None, &mut compared, Accumulate::Overwrite),
        None => {
            assert_eq!(student_width, teacher_width, "widths differ, and there is no projection");
            device.copy(student, &mut compared);
        }
    }
    let mut values = device.zeros(rows, Element::F32)?;
    let shape = Rows { rows, width: teacher_width };
    let indices = device.indices(labels)?;
    device.distance_rows(distance, shape, factor, &indices, teacher, &mut compared, &mut values);
    if let Some(HiddenGradient { d_student, d_projection }) = gradient {
        match projection {
            Some(weight) => {
                device.linear_backward_input(product, &compared, weight, d_student, Accumulate::Add);
                if let Some(d_weight) = d_projection {
                    device.linear_backward_weight(product, &compared, student, d_weight, None);
                }
            }
            None => device.add(&compared, 1.0, d_student),
        }
    }
    Ok(device.read(&values, 0..rows)?.into_iter().map(f64::from).sum())
}

fn attention_transfer<D: LossDevice>(
    device: &D,
    states: HiddenStates<'_, D::Buffer>,
    labels: &[u32],
    documents: &[Range<usize>],
    factor: f64,
    gradient: Option<HiddenGradient<'_, D::Buffer>>,
) -> Result<f64, DeviceError> {
    let rows = labels.len();
    let energies = |x: &D::Buffer, width: usize| {
        let mut sums = device.zeros(rows, Element::F32)?;
        device.row_energies(Rows { rows, width }, x, &mut sums);
        device.read(&sums, 0..rows)
    };
    let student = energies(states.student, states.student_width)?;
    let teacher = energies(states.teacher, states.teacher_width)?;
    let mut value = 0.0;
    let mut factors = vec![0.0; rows];
    for document in documents {
        let valid: Vec<usize> = document.clone().filter(|&row| labels[row] != IGNORED).collect();
        let (loss, slopes) = map_distance(&valid, &student, &teacher);
        let count = valid.len() as f64;
        value += count * loss;
        for (&row, slope) in valid.iter().zip(slopes) {
            factors[row] = (factor * count * 2.0 * slope) as f32;
        }
    }
    if let Some(HiddenGradient { d_student, .. }) = gradient {
        let mut on_device = device.zeros(rows, Element::F32)?;
        device.write(&mut on_device, 0, &factors)?;
        let shape = Rows { rows, width: states.student_width };
        device.add_rows(shape, &on_device, states.student, d_student);
    }
    Ok(value)
}

/// `|a_s / |a_s| - a_t / |a_t||^2` over these rows, and its slopes by `a_s`. A map of zeros stays zero, without a slope.
fn map_distance(rows: &[usize], student: &[f32], teacher: &[f32]) -> (f64, Vec<f64>) {
    let unit = |energies: &[f32]| {
        let map: Vec<f64> = rows.iter().map(|&row| f64::from(energies[row])).collect();
        let norm = map.iter().map(|a| a * a).sum::<f64>().sqrt();
        let inverse = if norm > 0.0 { 1.0 / norm } else { 0.0 };
        (map.into_iter().map(|a| a * inverse).collect::<Vec<f64>>(), inverse)
    };
    let ((student, inverse), (teacher, _)) = (unit(student), unit(teacher));
    let differences: Vec<f64> = student.iter().zip(teacher).map(|(s, t)| s - t).collect();
    let along: f64 = student.iter().zip(&differences).map(|(s, x)| s * x).sum();
    let slopes = student.iter().zip(&differences).map(|(s, x)| 2.0 * inverse * (x - s * along)).collect();
    (differences.iter().map(|x| x * x).sum(), slopes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_of_maps_are_those_of_their_distance() {
        let student = [0.3, 2.0, 9.0, 1.1, 0.7f32];
        let teacher = [1.3, 1.0, 9.0, 0.2, 0.0f32];
        let rows = [0, 1, 3, 4];
        let (value, slopes) = map_distance(&rows, &student, &teacher);
        assert!((0.0..=2.0).contains(&value) && value > 0.1, "{value}");
        for (&row, slope) in rows.iter().zip(slopes) {
            let step = 1.0 / 1024.0;
            let at = |step: f32| {
                let mut moved = student;
                moved[row] += step;
                map_distance(&rows, &moved, &teacher).0
            };
            let numeric = (at(step) - at(-step)) / (2.0 * f64::from(step));
            assert!((numeric - slope).abs() < 1e-5, "{row}: {numeric} {slope}");
        }
    }

    #[test]
    fn maps_of_zeros_have_no_slope() {
        let (value, slopes) = map_distance(&[0, 1], &[0.0, 0.0], &[1.0, 0.0]);
        assert_eq!((value, slopes), (1.0, vec![0.0, 0.0]));
        assert_eq!(map_distance(&[], &[], &[]), (0.0, vec![]));
        let same = map_distance(&[0, 1], &[2.0, 4.0], &[1.0, 2.0]);
        assert!(same.0 < 1e-30, "a map has no scale: {}", same.0);
    }
}
