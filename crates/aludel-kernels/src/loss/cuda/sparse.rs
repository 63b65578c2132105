//! Takes losses against known columns on a CUDA device.
//!
//! In: rows of the student's logits on the device, known columns on the host. Out: as [`LossDevice::sparse_rows`] says. The columns of the rows that
//! are asked for, a few kilobytes each, are sent; the teacher is never spread over the vocabulary.
//!
//! [`LossDevice::sparse_rows`]: crate::loss::LossDevice::sparse_rows

use super::printed::Printed;
use super::{SPARSE, of_rows};
use crate::cuda::operation::Argument;
use crate::element::Element;
use crate::loss::device::RowLoss;
use crate::loss::sparse::{SparseRow, SparseRows};
use crate::nn::DeviceError;
use crate::nn::cuda::{Buffer, Cuda, Text};

/// Known columns of some rows, one after another.
#[derive(Debug, Default, PartialEq)]
struct Gathered {
    starts: Vec<u32>,
    ids: Vec<u32>,
    log_p: Vec<f32>,
    tails: Vec<f32>,
    log_sums: Vec<f32>,
    entropies: Vec<f32>,
    /// The teacher's likeliest column of each row, whether the student has it or not; none has the largest number.
    likeliest: Vec<u32>,
}

impl Gathered {
    /// Of columns below `common`.
    fn of<'a>(rows: impl Iterator<Item = SparseRow<'a>>, common: usize) -> Self {
        let mut gathered = Self { starts: vec![0], ..Self::default() };
        for row in rows {
            let count = row.ids.partition_point(|&id| (id as usize) < common);
            gathered.ids.extend(&row.ids[..count]);
            gathered.log_p.extend(&row.log_p[..count]);
            gathered.starts.push(gathered.ids.len() as u32);
            gathered.tails.extend(row.tails);
            gathered.log_sums.extend(row.log_sum);
            gathered.entropies.extend(row.entropy);
            gathered.likeliest.push(row.likeliest().unwrap_or(u32::MAX));
        }
        gathered
    }
}

pub(super) fn run(
    cuda: &Cuda,
    loss: RowLoss<'_>,
    labels: &[u32],
    (teacher, rows): (&SparseRows, &[usize]),
    student: &mut Buffer,
    values: &mut Buffer,
) -> Result<(), DeviceError> {
    let stored = loss.student.stored;
    assert_eq!((labels.len(), rows.len()), (loss.rows, loss.rows), "labels and rows of a teacher");
    assert_eq!(
        (student.len(), values.len()),
        (loss.rows * stored, loss.rows * loss.columns()),
        "rows of losses"
    );
    let common = teacher.columns.min(loss.student.valid);
    let gathered = Gathered::of(rows.iter().map(|&row| teacher.row(row)), common);
    let printed = Printed::of_known(&loss, teacher);
    let floats = |values: &[f32]| cuda.told(cuda.sent_now(bytemuck::cast_slice(values)));
    let numbers = |values: &[u32]| cuda.told(cuda.sent_now(bytemuck::cast_slice(values)));
    let (settings, labels) = (floats(&printed.settings)?, numbers(labels)?);
    let [starts, ids, likeliest] =
        [&gathered.starts, &gathered.ids, &gathered.likeliest].map(|list| numbers(list));
    let lists = [&gathered.log_p, &gathered.tails, &gathered.log_sums, &gathered.entropies];
    let [log_p, tails, log_sums, entropies] = lists.map(|list| floats(list));
    let (starts, ids, likeliest, log_p, tails) = (starts?, ids?, likeliest?, log_p?, tails?);
    let (log_sums, entropies) = (log_sums?, entropies?);
    // What is not there is told so.
    let given = |list: &[f32], address| Argument::Address(if list.is_empty() { 0 } else { address });
    let known = gathered.ids.len();
    let (Some(aside), Some(slopes)) = (cuda.scratch(known, Element::F32), cuda.scratch(known, Element::F32))
    else {
        return cuda.told(Ok(()));
    };
    let arguments = [
        Argument::Address(settings.address()),
        Argument::Address(labels.address()),
        Argument::Address(starts.address()),
        Argument::Address(ids.address()),
        Argument::Address(log_p.address()),
        Argument::Address(tails.address()),
        given(&gathered.log_sums, log_sums.address()),
        given(&gathered.entropies, entropies.address()),
        Argument::Address(likeliest.address()),
        student.halves(),
        Argument::Long(stored as i64),
        Argument::Int(loss.student.valid as i32),
        Argument::Int(common as i32),
        aside.floats(),
        slopes.floats(),
        values.floats(),
    ];
    let name = format!("sparse_rows {}", printed.defines);
    let text = Text { name: &name, defines: &printed.defines, parts: SPARSE };
    cuda.run(text, "sparse_rows", of_rows(loss.rows), &arguments);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::sparse::{Known, Tail};

    #[test]
    fn rows_that_are_asked_for_are_gathered_without_columns_that_the_student_lacks() {
        let rows = SparseRows {
            known: Known::Likeliest(Tail::Bucket),
            columns: 100,
            temperatures: vec![1.0, 2.0],
            starts: vec![0, 2, 2, 5],
            ids: vec![3, 90, 1, 40, 95],
            log_p: vec![-2.0, -1.0, -3.0, -0.5, -0.5],
            tails: vec![0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
            log_sums: vec![7.0, 8.0, 9.0],
            entropies: vec![],
        };
        let gathered = Gathered::of([2, 1, 0].iter().map(|&row| rows.row(row)), 80);
        let want = Gathered {
            starts: vec![0, 2, 2, 3],
            ids: vec![1, 40, 3],
            log_p: vec![-3.0, -0.5, -2.0],
            tails: vec![0.5, 0.6, 0.3, 0.4, 0.1, 0.2],
            log_sums: vec![9.0, 8.0, 7.0],
            entropies: vec![],
            // Columns that the student lacks may be the likeliest all the same.
            likeliest: vec![40, u32::MAX, 90],
        };
        assert_eq!(gathered, want);
    }
}
