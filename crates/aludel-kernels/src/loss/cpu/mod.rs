//! Computes the losses on the CPU: rows of logits in parallel, each by itself.
//!
//! In and out: as [`LossDevice`] says, on buffers in memory. Which instructions run is decided in `dispatch`, and nothing here
//! knows threads but by [`Cpu`].
//!
//! Reading order: `plan` (terms sorted), `row` (the passes over a row), `block` and `softmax` (their state), `lanes` (inner
//! loops), `elementary` (functions), `sparse` (rows against known columns), `sorted` (against sorted probabilities), `extract` (what a cache keeps of a row).

mod block;
mod dispatch;
pub(in crate::loss) mod elementary;
pub(in crate::loss) mod extract;
mod lanes;
mod plan;
mod row;
mod softmax;
pub(in crate::loss) mod sorted;
pub(in crate::loss) mod sparse;

use self::plan::Plan;
use self::row::Row;
use super::device::{Columns, LossDevice, RowDistance, RowLoss};
use super::objective::IGNORED;
use super::sorted::{Ranked, SortedRows};
use super::sparse::SparseRows;
use crate::nn::cpu::{Buffer, Cpu, Indices, dispatch as nn};
use crate::nn::{DeviceError, Rows};

/// Arithmetic of one column of one row, for deciding whether threads are worth it.
const OPERATIONS: usize = 100;

/// Elements of a soft cap that one thread works on without a break.
const CHUNK: usize = 16 * 1024;

impl LossDevice for Cpu {
    fn soft_cap(&self, cap: f32, logits: &mut Buffer) {
        let logits = logits.floats_mut();
        let operations = logits.len() * OPERATIONS / 4;
        let pieces = logits.chunks_mut(CHUNK).collect();
        self.each(pieces, operations, |piece| dispatch::soft_cap(cap, piece));
    }

    fn loss_rows(
        &self,
        loss: RowLoss<'_>,
        labels: &Indices,
        student: &mut Buffer,
        teacher: Option<&Buffer>,
        values: &mut Buffer,
    ) {
        let stored = loss.student.stored;
        loss.check(labels.0.len(), student.len(), values.len(), teacher.map(Buffer::len));
        let teacher = loss.teacher.zip(teacher).map(|(shape, logits)| (shape.stored, logits.values()));
        let plan = Plan::new(&RowLoss { teacher: loss.teacher.filter(|_| teacher.is_some()), ..loss });
        let students = student.floats_mut().chunks_exact_mut(stored.max(1));
        let rows =
            students.zip(values.floats_mut().chunks_exact_mut(loss.columns())).zip(&labels.0).enumerate();
        let rows = rows.map(|(at, ((student, values), &label))| {
            let teacher = teacher.map(|(stored, logits)| logits.slice(at * stored..(at + 1) * stored));
            Row { student, teacher, label, values }
        });
        let operations = loss.rows * loss.student.valid * OPERATIONS;
        self.each(rows.collect(), operations, |row| row.run(&plan));
    }

    fn sparse_rows(
        &self,
        loss: RowLoss<'_>,
        labels: &[u32],
        (teacher, rows): (&SparseRows, &[usize]),
        student: &mut Buffer,
        values: &mut Buffer,
    ) -> Result<(), DeviceError> {
        let (stored, columns) = (loss.student.stored, loss.columns());
        assert_eq!(
            (student.len(), values.len()),
            (loss.rows * stored, loss.rows * columns),
            "rows and values"
        );
        assert_eq!((labels.len(), rows.len()), (loss.rows, loss.rows), "labels and rows of the teacher");
        let students = student.floats_mut().chunks_exact_mut(stored.max(1));
        let pieces = students.zip(values.floats_mut().chunks_exact_mut(columns)).zip(labels.iter().zip(rows));
        self.each(
            pieces.collect(),
            loss.rows * loss.student.valid * OPERATIONS,
            |((student, values), (&label, &row))| {
                sparse::run_row(loss, teacher.columns, teacher.row(row), label, student, values);
            },
        );
        Ok(())
    }

    fn sorted_rows(
        &self,
        loss: RowLoss<'_>,
        labels: &[u32],
        teacher: SortedRows<'_, Buffer>,
        student: &mut Buffer,
        values: &mut Buffer,
    ) -> Result<(), DeviceError> {
        let (stored, columns) = (loss.student.stored, loss.columns());
        let lengths = (student.len(), values.len());
        assert_eq!(lengths, (loss.rows * stored, loss.rows * columns), "rows and values");
        assert_eq!((labels.len(), teacher.partners.len()), (loss.rows, loss.rows), "labels and partners");
        let students = student.floats_mut().chunks_exact_mut(stored.max(1));
        let pieces = students.zip(values.floats_mut().chunks_exact_mut(columns));
        let pieces = pieces.zip(labels.iter().zip(teacher.partners)).collect();
        // Sorting is as much work as everything else.
        let operations = 2 * loss.rows * loss.student.valid * OPERATIONS;
        self.each(pieces, operations, |((student, values), (&label, &partner))| {
            let mut room = Vec::new();
            let row = teacher.teacher.zip(partner).map(|(ranked, row)| match ranked {
                Ranked::Logits(logits, columns) => {
                    let start = row * columns.stored;
                    let logits = logits.values().slice(start..start + columns.valid);
                    sorted::Teacher::Logits(logits.decoded(&mut room))
                }
                Ranked::Known(rows) => sorted::Teacher::Known(rows.row(row), rows.columns),
            });
            sorted::run_row(loss, (row, teacher.factor), label, student, values);
        });
        Ok(())
    }

    fn map_rows<R: Send>(
        &self,
        columns: Columns,
        logits: &Buffer,
        f: impl Fn(usize, &[f32]) -> R + Send + Sync,
    ) -> Result<Vec<R>, DeviceError> {
        let rows: Vec<_> = logits.floats().chunks_exact(columns.stored.max(1)).enumerate().collect();
        let operations = logits.len() * OPERATIONS / 10;
        Ok(self.map(rows, operations, |(row, logits)| f(row, &logits[..columns.valid])))
    }

    fn distance_rows(
        &self,
        distance: RowDistance,
        shape: Rows,
        factor: f64,
        labels: &Indices,
        target: &Buffer,
        x: &mut Buffer,
        values: &mut Buffer,
    ) {
        let Rows { rows, width } = shape;
        assert_eq!((x.len(), target.len()), (rows * width, rows * width), "rows to compare");
        assert_eq!((values.len(), labels.0.len()), (rows, rows), "values and labels of the rows");
        let target = target.values();
        let pieces = x.floats_mut().chunks_exact_mut(width.max(1)).zip(values.floats_mut()).zip(&labels.0);
        let operations = rows * width * OPERATIONS / 10;
        self.each(pieces.enumerate().collect(), operations, |(row, ((x, value), &label))| {
            if label == IGNORED {
                x.fill(0.0);
                *value = 0.0;
                return;
            }
            let mut room = Vec::new();
            let target = target.slice(row * width..(row + 1) * width).decoded(&mut room);
            *value = match distance {
                RowDistance::MeanSquare => dispatch::mean_square(factor, target, x),
                RowDistance::Cosine => dispatch::cosine(factor, target, x),
            } as f32;
        });
    }

    fn row_energies(&self, shape: Rows, x: &Buffer, sums: &mut Buffer) {
        let Rows { rows, width } = shape;
        assert_eq!((x.len(), sums.len()), (rows * width, rows), "rows and their energies");
        let x = x.values();
        let pieces = sums.floats_mut().iter_mut().enumerate().collect();
        self.each(pieces, rows * width, |(row, sum)| {
            let mut room = Vec::new();
            *sum = nn::sum_of_squares(x.slice(row * width..(row + 1) * width).decoded(&mut room)) as f32;
        });
    }

    fn add_rows(&self, shape: Rows, factors: &Buffer, x: &Buffer, y: &mut Buffer) {
        let Rows { rows, width } = shape;
        assert_eq!((x.len(), y.len(), factors.len()), (rows * width, rows * width, rows), "rows to add");
        let x = x.floats().chunks_exact(width.max(1));
        let pieces = y.floats_mut().chunks_exact_mut(width.max(1)).zip(x).zip(factors.floats());
        self.each(pieces.collect(), rows * width, |((y, x), &factor)| nn::add(x, factor, y));
    }
}
