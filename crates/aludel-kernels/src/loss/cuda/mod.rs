//! Computes the losses on a CUDA device: a block of threads to a row of logits.
//!
//! In and out: as [`LossDevice`] says, on buffers in the device's memory. The kernel of an objective is printed for its kinds of terms and
//! the number of its temperatures; numbers are told it, so that an annealed target compiles nothing anew. A row is looked at two or three times, as on
//! the CPU. On Hopper a cluster of blocks shares it and holds it in shared memory, so that it is read once, where trials say that this is faster.
//!
//! Modules: `printed` (objectives as kernels see them), `sharing` (blocks of a row), `sparse` (teachers of which some columns are known), `sorted`
//! (distances of sorted probabilities).

mod printed;
mod sharing;
mod sorted;
mod sparse;

use super::device::{LossDevice, RowDistance, RowLoss};
use super::sorted::SortedRows;
use super::sparse::SparseRows;
use crate::cuda::operation::{Argument, Grid};
use crate::nn::cuda::{Buffer, Cuda, Indices, Text};
use crate::nn::{DeviceError, Rows};
use printed::Printed;
use sharing::{Call, NOT_SHARED, Places};

/// 2048 rows of both models' logits at a vocabulary of 128 k: enough for products at their full rate.
const LOGIT_MEMORY: usize = 1100 << 20;

const COLUMNS: &str = include_str!("columns.cu");
const ROWS: &[&str] = &[COLUMNS, include_str!("rows.cu")];
const SPARSE: &[&str] = &[COLUMNS, include_str!("sparse.cu")];

const fn text() -> Text<'static> {
    Text { name: "loss", defines: "", parts: &[include_str!("kernels.cu")] }
}

/// Of a block, where trials choose no other number.
const THREADS: usize = 512;

/// A block for each row.
const fn of_rows(rows: usize) -> Grid {
    Grid { blocks: [rows as u32, 1, 1], threads: THREADS as u32, shared: 0 }
}

impl LossDevice for Cuda {
    fn logit_memory(&self) -> usize {
        LOGIT_MEMORY
    }

    fn soft_cap(&self, cap: f32, logits: &mut Buffer) {
        let arguments = [logits.halves(), Argument::Float(cap), Argument::Long(logits.len() as i64)];
        self.each(text(), "soft_cap", logits.len(), &arguments);
    }

    fn loss_rows(
        &self,
        loss: RowLoss<'_>,
        labels: &Indices,
        student: &mut Buffer,
        teacher: Option<&Buffer>,
        values: &mut Buffer,
    ) {
        let (stored, valid) = (loss.student.stored, loss.student.valid);
        loss.check(labels.len(), student.len(), values.len(), teacher.map(Buffer::len));
        let teacher = loss.teacher.zip(teacher);
        let is_aligned = [stored, teacher.map_or(0, |(shape, _)| shape.stored)]
            .iter()
            .all(|stored| stored.is_multiple_of(8));
        let common = teacher.map_or(valid, |(shape, _)| shape.valid.min(valid));
        let element = teacher.map(|(_, logits)| logits.element());
        let Printed { settings, .. } = Printed::of_rows(&loss, element, is_aligned, NOT_SHARED);
        let Some(settings) = self.sent(bytemuck::cast_slice(&settings)) else { return };
        let call = Call { cuda: self, loss, element, is_aligned, common, settings };
        let teacher = teacher.map(|(_, logits)| logits);
        let places = Places {
            rows: loss.rows,
            labels: labels.argument(),
            student: student.halves(),
            teacher: teacher.map_or(Argument::Address(0), Buffer::argument),
            values: values.floats(),
        };
        self.keep(call.start(call.sharing(labels, student, teacher), places));
    }

    fn sparse_rows(
        &self,
        loss: RowLoss<'_>,
        labels: &[u32],
        teacher: (&SparseRows, &[usize]),
        student: &mut Buffer,
        values: &mut Buffer,
    ) -> Result<(), DeviceError> {
        sparse::run(self, loss, labels, teacher, student, values)
    }

    fn sorted_rows(
        &self,
        loss: RowLoss<'_>,
        labels: &[u32],
        teacher: SortedRows<'_, Buffer>,
        student: &mut Buffer,
        values: &mut Buffer,
    ) -> Result<(), DeviceError> {
        sorted::run(self, loss, labels, teacher, student, values)
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
        assert_eq!((values.len(), labels.len()), (rows, rows), "values and labels of the rows");
        let arguments = [
            Argument::Int(i32::from(distance == RowDistance::Cosine)),
            Argument::Float(factor as f32),
            labels.argument(),
            target.argument(),
            target.type_argument(),
            x.halves(),
            Argument::Long(width as i64),
            values.floats(),
        ];
        self.each_row(text(), "distance_rows", rows, &arguments);
    }

    fn row_energies(&self, shape: Rows, x: &Buffer, sums: &mut Buffer) {
        let Rows { rows, width } = shape;
        assert_eq!((x.len(), sums.len()), (rows * width, rows), "rows and their energies");
        let arguments = [x.argument(), x.type_argument(), Argument::Long(width as i64), sums.floats()];
        self.each_row(crate::nn::elementwise::cuda::text(), "row_energies", rows, &arguments);
    }

    fn add_rows(&self, shape: Rows, factors: &Buffer, x: &Buffer, y: &mut Buffer) {
        let Rows { rows, width } = shape;
        assert_eq!((x.len(), y.len(), factors.len()), (rows * width, rows * width, rows), "rows to add");
        let numbers = [Argument::Long(rows as i64), Argument::Long(width as i64)];
        let arguments = [factors.floats(), x.halves(), y.halves(), numbers[0], numbers[1]];
        self.each(crate::nn::elementwise::cuda::text(), "add_rows", rows * width, &arguments);
    }
}

#[cfg(test)]
mod tests;
