//! Computes the losses on a CUDA device: a block of threads to a row of logits.
//!
//! In and out: as [`LossDevice`] says, on buffers in the device's memory. The kernel of an objective is printed for its kinds of terms and
//! the number of its temperatures; numbers are told it, so that an annealed target compiles nothing anew. A row is looked at two or three times, as on
//! the CPU, of which most is found in the device's cache: rows kept in the memories of neighbouring multiprocessors (clusters) were slower.
//!
//! Modules: `printed` (objectives as kernels see them), `sparse` (teachers of which some columns are known). Sorted distances go over the host.

mod printed;
mod sparse;

use super::device::{LossDevice, RowDistance, RowLoss};
use super::sparse::SparseRows;
use crate::cuda::driver::{Argument, Grid};
use crate::nn::cuda::{Buffer, Cuda, Indices, Text};
use crate::nn::{DeviceError, Rows};
use printed::Printed;

/// 2048 rows of both models' logits at a vocabulary of 128 k: enough for products at their full rate.
const LOGIT_MEMORY: usize = 1100 << 20;

const COLUMNS: &str = include_str!("columns.cu");
const ROWS: &[&str] = &[COLUMNS, include_str!("rows.cu")];
const SPARSE: &[&str] = &[COLUMNS, include_str!("sparse.cu")];

const fn text() -> Text<'static> {
    Text { name: "loss", defines: "", parts: &[include_str!("kernels.cu")] }
}

/// A block of as many threads as `columns.cu` says for each row.
const fn of_rows(rows: usize) -> Grid {
    Grid { blocks: [rows as u32, 1, 1], threads: 512, shared: 0 }
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
        let printed = Printed::of_rows(&loss, teacher.map(|(_, logits)| logits.element()), is_aligned);
        let Some(settings) = self.sent(bytemuck::cast_slice(&printed.settings)) else { return };
        let common = teacher.map_or(valid, |(shape, _)| shape.valid.min(valid));
        let arguments = [
            Argument::Address(settings.address()),
            labels.argument(),
            student.halves(),
            Argument::Long(stored as i64),
            Argument::Int(valid as i32),
            teacher.map_or(Argument::Address(0), |(_, logits)| logits.argument()),
            Argument::Long(teacher.map_or(0, |(shape, _)| shape.stored as i64)),
            Argument::Int(common as i32),
            values.floats(),
        ];
        let name = format!("loss_rows {}", printed.defines);
        let text = Text { name: &name, defines: &printed.defines, parts: ROWS };
        self.run(text, "loss_rows", of_rows(loss.rows), &arguments);
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
