//! Declares what a distillation loss asks of a device beside the operations of a decoder.
//!
//! In: rows of logits or of hidden states on the device. Out: the gradient in place, and the values of each row in a
//! small buffer that is read once at the end. Nothing here gathers rows or multiplies matrices: [`head`](super::head) does.

use super::cpu::{sorted, sparse::run_row};
use super::objective::Objective;
use super::sorted::{Ranked, SortedRows};
use super::sparse::SparseRows;
use crate::nn::{Device, DeviceError, Rows};

/// Columns of a matrix of logits: all that are stored, and those that are tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Elements of a stored row (the padded vocabulary).
    pub stored: usize,
    /// Columns from here on are padding: they have the logit `-inf`, whatever is stored.
    pub valid: usize,
}

/// One call of [`LossDevice::loss_rows`].
#[derive(Clone, Copy, Debug)]
pub struct RowLoss<'a> {
    /// The terms.
    pub objective: &'a Objective,
    /// Rows of all buffers, T.
    pub rows: usize,
    /// The student's columns, V.
    pub student: Columns,
    /// The teacher's columns; divergences are over the first `min(student.valid, teacher.valid)` columns of both.
    pub teacher: Option<Columns>,
    /// The student's logits have gone through [`LossDevice::soft_cap`] with this cap: the gradient goes back through it.
    pub soft_cap: Option<f32>,
    /// Factor of the gradient: 1 / valid rows of the whole optimizer step.
    pub factor: f64,
    /// What is wanted.
    pub mode: Mode,
}

impl RowLoss<'_> {
    /// Values of a row.
    pub(super) fn columns(&self) -> usize {
        self.objective.terms().len() + Column::COUNT
    }

    /// Holds the lengths of the buffers of [`LossDevice::loss_rows`] against the shapes.
    ///
    /// # Panics
    /// They do not fit.
    pub(super) fn check(&self, labels: usize, student: usize, values: usize, teacher: Option<usize>) {
        assert!(!self.objective.is_sorted(), "sorted distances have a call of their own");
        assert!(self.student.valid <= self.student.stored, "more columns are valid than there are");
        assert_eq!(student, self.rows * self.student.stored, "student's logits");
        assert_eq!(values, self.rows * self.columns(), "values of the rows");
        assert_eq!(labels, self.rows, "labels");
        assert!(teacher.is_some() || !self.objective.needs_teacher(), "the divergences need a teacher");
        if let Some((shape, logits)) = self.teacher.zip(teacher) {
            assert!(shape.valid <= shape.stored, "more columns of the teacher are valid than there are");
            assert_eq!(logits, self.rows * shape.stored, "teacher's logits");
        }
    }
}

/// What a loss computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Values, and the gradient in place of the student's logits. Both KL at temperature 1 are not computed.
    Gradient,
    /// All values; the student's logits stay.
    Values,
}

/// What [`LossDevice::loss_rows`] writes for each row beside its terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// Cross-entropy of the student against the label, at temperature 1.
    CrossEntropy,
    /// 1 where the student's largest logit is the label's.
    Correct,
    /// 1 where student and teacher have their largest logit, of the common columns, in the same one.
    Agreement,
    /// `KL(teacher, student)` at temperature 1.
    ForwardKl,
    /// `KL(student, teacher)` at temperature 1.
    ReverseKl,
}

impl Column {
    /// How many there are.
    pub const COUNT: usize = 5;
}

/// A way to bring hidden states together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowDistance {
    /// `mean_i (s_i - t_i)^2`.
    MeanSquare,
    /// `1 - s.t / (|s| |t|)`, 1 with no gradient where either is all zeros.
    Cosine,
}

/// Bytes for logits where memory is that of the host.
const LOGIT_MEMORY: usize = 64 << 20;

/// A device that computes distillation losses.
pub trait LossDevice: Device {
    /// Bytes for the logits of the rows that are worked on at once. A constant of the kind of device, so that results never depend on
    /// the machine.
    fn logit_memory(&self) -> usize {
        LOGIT_MEMORY
    }

    /// `z = cap tanh(z / cap)` in place, on logits of the device's activation type.
    fn soft_cap(&self, cap: f32, logits: &mut Self::Buffer);

    /// Values and gradient of an objective for rows of logits.
    ///
    /// `student` is `[T, student.stored]` of the device's activation type; with [`Mode::Gradient`] it becomes
    /// `factor * d(sum of weighted terms)/dz`, zero in padding and in rows whose label is
    /// [`IGNORED`](super::objective::IGNORED). `teacher` is `[T, teacher.stored]` of any element type; it is given
    /// exactly where `teacher` columns are. Other labels are below `student.valid`. `values` (f32) is
    /// `[T, terms + Column::COUNT]`: each term's value (temperature's square included where asked for, weight not), then
    /// the [`Column`]s in order; zeros in ignored rows and where a value is not computed.
    fn loss_rows(
        &self,
        loss: RowLoss<'_>,
        labels: &Self::Indices,
        student: &mut Self::Buffer,
        teacher: Option<&Self::Buffer>,
        values: &mut Self::Buffer,
    );

    /// As [`LossDevice::loss_rows`] against a teacher of which some columns are known: row t is compared with row `rows[t]` of
    /// `teacher`. `loss.teacher` is not looked at. The default takes the logits to the host and back.
    ///
    /// # Errors
    /// What the device reports.
    fn sparse_rows(
        &self,
        loss: RowLoss<'_>,
        labels: &[u32],
        (teacher, rows): (&SparseRows, &[usize]),
        student: &mut Self::Buffer,
        values: &mut Self::Buffer,
    ) -> Result<(), DeviceError> {
        let mut logits = self.read(student, 0..self.len(student))?;
        let mut measured = vec![0.0; self.len(values)];
        let columns = loss.objective.terms().len() + Column::COUNT;
        let pieces =
            logits.chunks_exact_mut(loss.student.stored.max(1)).zip(measured.chunks_exact_mut(columns));
        for ((student, values), (&label, &row)) in pieces.zip(labels.iter().zip(rows)) {
            run_row(loss, teacher.columns, teacher.row(row), label, student, values);
        }
        if loss.mode == Mode::Gradient {
            self.write(student, 0, &logits)?;
        }
        self.write(values, 0, &measured)
    }

    /// As [`LossDevice::loss_rows`], of an objective of [sorted distances](super::sorted), whose gradient has a factor of its own;
    /// `loss.factor` is the labels'. `loss.teacher` is not looked at. Agreement and both KL are not computed. The default takes the logits
    /// to the host and back.
    ///
    /// # Errors
    /// What the device reports.
    fn sorted_rows(
        &self,
        loss: RowLoss<'_>,
        labels: &[u32],
        teacher: SortedRows<'_, Self::Buffer>,
        student: &mut Self::Buffer,
        values: &mut Self::Buffer,
    ) -> Result<(), DeviceError> {
        let mut logits = self.read(student, 0..self.len(student))?;
        let mut measured = vec![0.0; self.len(values)];
        let given = match teacher.teacher {
            Some(Ranked::Logits(logits, _)) => self.read(logits, 0..self.len(logits))?,
            _ => Vec::new(),
        };
        let columns = loss.objective.terms().len() + Column::COUNT;
        let pieces =
            logits.chunks_exact_mut(loss.student.stored.max(1)).zip(measured.chunks_exact_mut(columns));
        for ((student, values), (&label, &partner)) in pieces.zip(labels.iter().zip(teacher.partners)) {
            let row = teacher.teacher.zip(partner).map(|(ranked, row)| match ranked {
                Ranked::Logits(_, columns) => {
                    sorted::Teacher::Logits(&given[row * columns.stored..][..columns.valid])
                }
                Ranked::Known(rows) => sorted::Teacher::Known(rows.row(row), rows.columns),
            });
            sorted::run_row(loss, (row, teacher.factor), label, student, values);
        }
        if loss.mode == Mode::Gradient {
            self.write(student, 0, &logits)?;
        }
        self.write(values, 0, &measured)
    }

    /// What `f` makes of each row of logits, on the host, in the order of the rows. `logits` is of the device's activation type.
    ///
    /// # Errors
    /// What the device reports.
    fn map_rows<R: Send>(
        &self,
        columns: Columns,
        logits: &Self::Buffer,
        f: impl Fn(usize, &[f32]) -> R + Send + Sync,
    ) -> Result<Vec<R>, DeviceError> {
        let logits = self.read(logits, 0..self.len(logits))?;
        let rows = logits.chunks_exact(columns.stored.max(1)).enumerate();
        Ok(rows.map(|(row, logits)| f(row, &logits[..columns.valid])).collect())
    }

    /// Distance of each row of `x` from that of `target`, into `values` (f32, `[T]`), and `factor` times its gradient in
    /// place of `x`; zeros in rows whose label is [`IGNORED`](super::objective::IGNORED). `x` is of the device's activation
    /// type, `target` of any.
    #[expect(clippy::too_many_arguments, reason = "what the distance depends on")]
    fn distance_rows(
        &self,
        distance: RowDistance,
        shape: Rows,
        factor: f64,
        labels: &Self::Indices,
        target: &Self::Buffer,
        x: &mut Self::Buffer,
        values: &mut Self::Buffer,
    );

    /// The sum of squares of each row of `x`, of any element type, into `sums` (f32, `[T]`).
    fn row_energies(&self, shape: Rows, x: &Self::Buffer, sums: &mut Self::Buffer);

    /// `y[t, :] += factors[t] * x[t, :]`; `factors` is f32, `x` and `y` are of the device's activation type.
    fn add_rows(&self, shape: Rows, factors: &Self::Buffer, x: &Self::Buffer, y: &mut Self::Buffer);
}
