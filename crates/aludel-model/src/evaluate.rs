//! Scores documents: how well a model predicts them, and how near it is to another.
//!
//! In: packed documents with a label for every row. Out: sums over the rows that count. Logits exist for a few rows at a
//! time only.

use aludel_kernels::loss::{HeadReport, LossDevice, Objective, TeacherRows, head_loss};

use crate::batch::Batch;
use crate::decoder::{Decoder, Keep};
use crate::error::Error;

/// Scores one batch. `labels` has the token that each row predicts, or [`aludel_kernels::loss::IGNORED`]. With a
/// `teacher`, the report has its divergence from the student and their agreement as well, over the tokens that both have.
///
/// # Errors
/// [`Error::Batch`] for ids or labels that are not in a vocabulary, or as many labels as there are not rows; what the
/// device says.
pub fn score<D: LossDevice>(
    student: &Decoder<D>,
    teacher: Option<&Decoder<D>>,
    objective: &Objective,
    batch: &Batch,
    labels: &[u32],
) -> Result<HeadReport, Error> {
    check_labels(labels, batch.rows(), student.head().valid)?;
    let taught = teacher.map(|teacher| teacher.forward(batch, Keep::Nothing, &[])).transpose()?;
    let rows = teacher
        .zip(taught.as_ref())
        .map(|(teacher, pass)| TeacherRows::Hidden { head: teacher.head(), hidden: pass.hidden() });
    score_against(student, rows.as_ref(), objective, batch, labels)
}

/// As [`score`], with the teacher's rows given.
///
/// # Errors
/// As [`score`].
pub fn score_against<D: LossDevice>(
    student: &Decoder<D>,
    teacher: Option<&TeacherRows<'_, D::Buffer>>,
    objective: &Objective,
    batch: &Batch,
    labels: &[u32],
) -> Result<HeadReport, Error> {
    check_labels(labels, batch.rows(), student.head().valid)?;
    let pass = student.forward(batch, Keep::Nothing, &[])?;
    let rows = (&student.head(), pass.hidden());
    let device = student.device().as_ref();
    let measured = head_loss(device, objective, rows, teacher, labels, 1.0, None, device.logit_memory())?;
    Ok(measured.report(device)?)
}

fn check_labels(labels: &[u32], rows: usize, valid: usize) -> Result<(), Error> {
    if labels.len() != rows {
        return Err(Error::batch(format!("{} labels were given for {rows} rows", labels.len())));
    }
    let is_wrong = |&&label: &&u32| label != aludel_kernels::loss::IGNORED && label as usize >= valid;
    match labels.iter().find(is_wrong) {
        Some(label) => Err(Error::batch(format!("label {label} is not below the vocabulary of {valid}"))),
        None => Ok(()),
    }
}
