//! Fuses the head of a decoder with the objective: logits exist for a few rows at a time.
//!
//! In: final hidden states and head of the student, the teacher's or its logits, labels. Out: sums of values over the
//! rows, the gradient of the hidden states, and the head's own gradient added up. Rows whose label is ignored cost nothing:
//! only the others are gathered into chunks. Neither a `[T, V]` buffer of logits nor one of their gradients ever exists.

use super::device::{Column, Columns, LossDevice, Mode, RowLoss};
use super::objective::{IGNORED, Objective};
use super::sorted::{Ranked, SortedRows};
use super::sparse::SparseRows;
use crate::element::Element;
use crate::nn::{Accumulate, DeviceError, Product, Rows};

/// The last layer of a decoder: `z = cap(scale * h w^T + bias)` with `cap(x) = soft_cap * tanh(x / soft_cap)`.
#[derive(Debug)]
pub struct Head<'a, B> {
    /// `[V, D]`; a tied head's is the embedding.
    pub weight: &'a B,
    /// `[V]`.
    pub bias: Option<&'a B>,
    /// V, padding included.
    pub vocabulary: usize,
    /// Columns from here on are padding, masked with `-inf`.
    pub valid: usize,
    /// D.
    pub width: usize,
    /// Factor of the product; not of the bias.
    pub scale: f32,
    /// Bound of the logits' magnitude (Gemma 2).
    pub soft_cap: Option<f32>,
}

impl<B> Clone for Head<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Head<'_, B> {}

impl<B> Head<'_, B> {
    fn columns(&self) -> Columns {
        Columns { stored: self.vocabulary, valid: self.valid }
    }

    fn product(&self, rows: usize) -> Product {
        Product { rows, inputs: self.width, outputs: self.vocabulary, scale: self.scale }
    }
}

/// Where the gradient of a head goes.
#[derive(Debug)]
pub struct HeadGradient<'a, B> {
    /// `[T, D]`, overwritten; of the device's activation type.
    pub d_hidden: &'a mut B,
    /// `[V, D]`, f32, added to; none where the head is frozen.
    pub d_weight: Option<&'a mut B>,
    /// `[V]`, f32, added to; used only together with `d_weight`.
    pub d_bias: Option<&'a mut B>,
}

/// Where the teacher's rows come from.
#[derive(Debug)]
#[non_exhaustive]
pub enum TeacherRows<'a, B> {
    /// A live teacher: its logits are made chunk by chunk.
    Hidden {
        /// The teacher's head.
        head: Head<'a, B>,
        /// `[T, D_teacher]`, after the final norm.
        hidden: &'a B,
    },
    /// Logits that are already there, soft cap included.
    Logits {
        /// `[T, columns.stored]`, of any element type.
        logits: &'a B,
        /// Its columns.
        columns: Columns,
    },
    /// Some columns of every row; logits are not made.
    Sparse(&'a SparseRows),
    /// Logits that are stored in another form, and made chunk by chunk.
    Stored {
        /// Gives them, soft cap included.
        source: &'a dyn LogitSource,
        /// Columns of a row.
        columns: usize,
    },
    /// Rows of a teacher that has other tokens, for an objective of [sorted distances](super::sorted).
    Aligned(Aligned<'a, B>),
}

/// The rows of a teacher that has other tokens, beside the student's.
#[derive(Debug)]
pub struct Aligned<'a, B> {
    /// Its rows, as many as it has tokens; none where no row has a partner. Not aligned again.
    pub teacher: Option<&'a TeacherRows<'a, B>>,
    /// For each of the student's T rows, the teacher's that speaks of what follows the same text.
    pub partners: &'a [Option<usize>],
    /// Factor of the gradient of the terms: 1 / rows of the whole optimizer step that are not ignored and have a partner.
    pub factor: f64,
}

impl<B> Clone for TeacherRows<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for TeacherRows<'_, B> {}

impl<B> Clone for Aligned<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Aligned<'_, B> {}

/// Gives rows of logits.
pub trait LogitSource: std::fmt::Debug + Sync {
    /// Writes a row, counted from 0 with the ignored ones, into `to`.
    fn row(&self, row: usize, to: &mut [f32]);
}

impl<B> TeacherRows<'_, B> {
    fn columns(&self) -> Columns {
        match self {
            Self::Hidden { head, .. } => head.columns(),
            Self::Logits { columns, .. } => *columns,
            Self::Aligned(Aligned { teacher, .. }) => {
                teacher.map_or(Columns { stored: 0, valid: 0 }, |teacher| teacher.columns())
            }
            Self::Sparse(SparseRows { columns, .. }) | Self::Stored { columns, .. } => {
                Columns { stored: *columns, valid: *columns }
            }
        }
    }
}

/// Sums over the rows that were not ignored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeadReport {
    /// How many rows.
    pub rows: u64,
    /// Of these, rows that the terms are about: all, but for those without a partner under sorted distances.
    pub compared: u64,
    /// Each term's value, temperature's square included where asked for, weight not.
    pub terms: Vec<f64>,
    /// Cross-entropy of the student against the labels at temperature 1, whether or not it is in the objective.
    pub cross_entropy: f64,
    /// Rows in which the student's first choice is the label.
    pub correct: u64,
    /// Rows in which student and teacher have the same first choice; 0 without a teacher.
    pub agreement: u64,
    /// `KL(teacher, student)` at temperature 1; 0 without a teacher and where a gradient was asked for.
    pub forward_kl: f64,
    /// `KL(student, teacher)`, likewise.
    pub reverse_kl: f64,
}

impl HeadReport {
    /// The objective's value: the sum over rows of the weighted terms.
    pub fn value(&self, objective: &Objective) -> f64 {
        let terms = objective.terms().iter().zip(&self.terms);
        let distilled: f64 = terms.map(|(term, value)| f64::from(term.weight) * value).sum();
        distilled + objective.labels().map_or(0.0, |labels| f64::from(labels.weight) * self.cross_entropy)
    }

    /// Mean of each term over the rows that it is about.
    pub fn means(&self) -> impl Iterator<Item = f64> {
        let rows = self.compared.max(1) as f64;
        self.terms.iter().map(move |sum| sum / rows)
    }

    /// The weighted sum of the means of the terms alone.
    pub fn distilled(&self, objective: &Objective) -> f64 {
        objective.terms().iter().zip(self.means()).map(|(term, mean)| f64::from(term.weight) * mean).sum()
    }

    /// The objective's mean over rows; terms are averaged over the rows that they are about.
    pub fn mean(&self, objective: &Objective) -> f64 {
        let labels = objective.labels().map_or(0.0, |labels| f64::from(labels.weight));
        self.distilled(objective) + labels * self.cross_entropy / self.rows.max(1) as f64
    }

    /// Adds the sums of other rows under the same objective.
    pub fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.compared += other.compared;
        self.terms.resize(other.terms.len().max(self.terms.len()), 0.0);
        for (sum, value) in self.terms.iter_mut().zip(&other.terms) {
            *sum += value;
        }
        self.cross_entropy += other.cross_entropy;
        self.correct += other.correct;
        self.agreement += other.agreement;
        self.forward_kl += other.forward_kl;
        self.reverse_kl += other.reverse_kl;
    }

    /// All sums, one after another, to be added to those of the same objective elsewhere.
    pub fn sums(&self) -> Vec<f64> {
        let Self { rows, compared, terms, cross_entropy, correct, agreement, forward_kl, reverse_kl } = self;
        let counts = [*rows, *compared, *correct, *agreement].map(|count| count as f64);
        counts
            .into_iter()
            .chain([*cross_entropy, *forward_kl, *reverse_kl])
            .chain(terms.iter().copied())
            .collect()
    }

    /// From what [`HeadReport::sums`] makes, of which `sums` may have more at its end for further terms; `None` where there are fewer.
    pub fn of_sums(sums: &[f64]) -> Option<Self> {
        let (&[rows, compared, correct, agreement, cross_entropy, forward_kl, reverse_kl], terms) =
            sums.split_first_chunk()?;
        let [rows, compared, correct, agreement] =
            [rows, compared, correct, agreement].map(|count| count as u64);
        Some(Self {
            rows,
            compared,
            terms: terms.to_vec(),
            cross_entropy,
            correct,
            agreement,
            forward_kl,
            reverse_kl,
        })
    }

    /// Adds rows as [`LossDevice::loss_rows`] wrote them, one after another: the sums do not depend on chunks.
    fn add_rows(
        &mut self,
        terms: usize,
        values: &[f32],
        labels: &[u32],
        is_compared: impl Fn(usize) -> bool,
    ) {
        self.terms.resize(terms, 0.0);
        for (at, (row, &label)) in values.chunks_exact(terms + Column::COUNT).zip(labels).enumerate() {
            if label == IGNORED {
                continue;
            }
            self.compared += u64::from(is_compared(at));
            let column = |column: Column| f64::from(row[terms + column as usize]);
            let flag = |column: Column| u64::from(row[terms + column as usize] == 1.0);
            self.rows += 1;
            for (sum, &value) in self.terms.iter_mut().zip(row) {
                *sum += f64::from(value);
            }
            self.cross_entropy += column(Column::CrossEntropy);
            self.correct += flag(Column::Correct);
            self.agreement += flag(Column::Agreement);
            self.forward_kl += column(Column::ForwardKl);
            self.reverse_kl += column(Column::ReverseKl);
        }
    }
}

/// Bytes for [`head_loss`] that keep all it allocates under 200 MB, whatever the vocabulary: what the library of products
/// packs comes on top. A vocabulary of 151936 has 137 rows of both models' logits in a chunk.
pub const HEAD_MEMORY: usize = 160 << 20;

/// What a head's loss has measured, on its way to the host.
pub struct Measured<D: LossDevice> {
    values: D::Reading,
    terms: usize,
    /// Labels and partners of each chunk.
    chunks: Vec<(Vec<u32>, Vec<Option<usize>>)>,
}

impl<D: LossDevice> Measured<D> {
    /// The sums, once they are there; what was asked for later is not waited for.
    ///
    /// # Errors
    /// What the device reports.
    pub fn report(self, device: &D) -> Result<HeadReport, DeviceError> {
        let Self { values, terms, chunks } = self;
        let values = device.finish_reading(values)?;
        let mut report = HeadReport { terms: vec![0.0; terms], ..HeadReport::default() };
        let mut rest = values.as_slice();
        for (labels, partners) in chunks {
            let (values, others) = rest.split_at(labels.len() * (terms + Column::COUNT));
            report.add_rows(terms, values, &labels, |at| partners[at].is_some());
            rest = others;
        }
        Ok(report)
    }
}

/// Value and gradient of an objective through the head; the value is not waited for.
///
/// `student` is the head and the hidden states `[T, D]` after the final norm; `teacher` is needed where the objective
/// [needs one](Objective::needs_teacher), and reported on wherever it is given. `labels` has T entries, already shifted:
/// row t's is the token that row t predicts, or [`IGNORED`]. `factor` multiplies the gradient (not the report): 1 / valid
/// rows of the whole optimizer step. Without `gradient` only values are computed, both KL at temperature 1 included.
///
/// Chunks have as many rows as fit `memory` bytes of logits and gathered hidden states ([`HEAD_MEMORY`]), and at least one. The report is the
/// same bits for any `memory`; `d_weight` is a sum over chunks and may round differently.
///
/// # Errors
/// What the device reports.
///
/// # Panics
/// Where a label is neither [`IGNORED`] nor below the student's `valid`, where the objective needs a teacher and there is
/// none, or where lengths do not match: bugs of the caller.
#[expect(clippy::too_many_arguments, reason = "what the loss depends on")]
pub fn head_loss<D: LossDevice>(
    device: &D,
    objective: &Objective,
    student: (&Head<'_, D::Buffer>, &D::Buffer),
    teacher: Option<&TeacherRows<'_, D::Buffer>>,
    labels: &[u32],
    factor: f64,
    mut gradient: Option<HeadGradient<'_, D::Buffer>>,
    memory: usize,
) -> Result<Measured<D>, DeviceError> {
    let (head, hidden) = student;
    let (teacher, aligned) = match teacher {
        Some(TeacherRows::Aligned(aligned)) => (aligned.teacher, Some(aligned)),
        other => (other, None),
    };
    assert_eq!(
        aligned.is_some(),
        objective.is_sorted(),
        "sorted distances are of aligned rows, others are not"
    );
    assert!(aligned.is_none_or(|aligned| aligned.partners.len() == labels.len()), "partners and labels");
    assert_eq!(device.len(hidden), labels.len() * head.width, "hidden states and labels differ in rows");
    check_labels(objective, teacher.is_some() || aligned.is_some(), labels, head.valid);
    if let Some(gradient) = &mut gradient {
        device.fill(gradient.d_hidden, 0.0);
    }
    let rows =
        looked_at(device, labels, !matches!(teacher, Some(TeacherRows::Stored { .. })) && aligned.is_none());
    let columns = objective.terms().len() + Column::COUNT;
    let (mut measured, mut chunk, mut done) = (Vec::new(), None, 0);
    let mut all_values = device.zeros(rows.len() * columns, Element::F32)?;
    for rows in rows.chunks(chunk_rows(device, head, teacher, rows.len(), memory)) {
        // A last chunk of fewer rows gets buffers of its own, after the others are gone.
        let mut buffers = match chunk.take().filter(|chunk: &Chunk<D>| chunk.rows == rows.len()) {
            Some(buffers) => buffers,
            None => Chunk::new(device, head, teacher, rows.len(), gradient.is_some())?,
        };
        let mut values = device.zeros(rows.len() * columns, Element::F32)?;
        let labels: Vec<u32> = rows.iter().map(|&row| labels[row]).collect();
        let partner = |&row: &usize| aligned.map_or(Some(row), |aligned| aligned.partners[row]);
        let partners: Vec<Option<usize>> = rows.iter().map(partner).collect();
        // A row without a partner is made beside any: it is not looked at.
        let asked: Vec<usize> = partners.iter().map(|partner| partner.unwrap_or(0)).collect();
        buffers.forward(device, head, (hidden, rows), (teacher, &asked))?;
        let loss = RowLoss {
            objective,
            rows: rows.len(),
            student: head.columns(),
            teacher: teacher.map(TeacherRows::columns),
            soft_cap: head.soft_cap,
            factor,
            mode: if gradient.is_some() { Mode::Gradient } else { Mode::Values },
        };
        if let Some(aligned) = aligned {
            let (student, values) = (&mut buffers.student, &mut values);
            let made = buffers.teacher.as_ref().map(|chunk| &chunk.logits);
            let teacher = ranked(teacher, made);
            let places: Vec<Option<usize>> = match teacher {
                // Logits lie where their partners do.
                Some(Ranked::Logits(..)) => {
                    partners.iter().enumerate().map(|(at, partner)| partner.map(|_| at)).collect()
                }
                _ => partners.clone(),
            };
            let sorted = SortedRows { partners: &places, teacher, factor: aligned.factor };
            device.sorted_rows(loss, &labels, sorted, student, values)?;
        } else if let Some(TeacherRows::Sparse(teacher)) = teacher {
            let (student, values) = (&mut buffers.student, &mut values);
            device.sparse_rows(loss, &labels, (teacher, rows), student, values)?;
        } else {
            let indices = device.indices(&labels)?;
            let given = buffers.teacher.as_ref().map(|teacher| &teacher.logits);
            device.loss_rows(loss, &indices, &mut buffers.student, given, &mut values);
        }
        if let Some(gradient) = &mut gradient {
            buffers.backward(device, head, rows, gradient);
        }
        device.copy_rows(&values, 0, &mut all_values, done, Rows { rows: rows.len(), width: columns });
        done += rows.len();
        measured.push((labels, partners));
        chunk = Some(buffers);
    }
    Ok(Measured {
        values: device.begin_reading(all_values)?,
        terms: objective.terms().len(),
        chunks: measured,
    })
}

/// What sorted distances look at: the logits that were made of a chunk, or known columns.
fn ranked<'a, B>(teacher: Option<&'a TeacherRows<'_, B>>, made: Option<&'a B>) -> Option<Ranked<'a, B>> {
    match (teacher?, made) {
        (TeacherRows::Sparse(rows), _) => Some(Ranked::Known(rows)),
        (teacher, Some(logits)) => Some(Ranked::Logits(logits, teacher.columns())),
        (_, None) => None,
    }
}

/// What `f` makes of the logits of some rows of hidden states, in the order of `rows`; it is given a row's place in `rows` and its valid
/// columns.
///
/// # Errors
/// What the device reports.
pub fn map_logits<D: LossDevice, R: Send>(
    device: &D,
    states: (&Head<'_, D::Buffer>, &D::Buffer),
    rows: &[usize],
    memory: usize,
    f: impl Fn(usize, &[f32]) -> R + Send + Sync,
) -> Result<Vec<R>, DeviceError> {
    let mut all = Vec::with_capacity(rows.len());
    each_logits(device, states, rows, memory, f, |made| {
        all.extend(made);
        Ok(())
    })
    .map(|()| all)
}

/// The same, chunk by chunk: what `f` made of one is taken before the next is computed.
///
/// # Errors
/// What the device reports, and what taking fails by.
pub fn each_logits<D: LossDevice, R: Send, E: From<DeviceError>>(
    device: &D,
    (head, hidden): (&Head<'_, D::Buffer>, &D::Buffer),
    rows: &[usize],
    memory: usize,
    f: impl Fn(usize, &[f32]) -> R + Send + Sync,
    mut take: impl FnMut(Vec<R>) -> Result<(), E>,
) -> Result<(), E> {
    let most = chunk_rows(device, head, None, rows.len(), memory);
    // Of all chunks but a shorter last one: memory that is new takes as long to come as a product to fill it.
    let mut buffers = None;
    for (at, chunk) in rows.chunks(most).enumerate() {
        let (mut gathered, mut to) = match buffers.take() {
            Some(buffers) if chunk.len() == most => buffers,
            _ => (
                device.zeros(chunk.len() * head.width, device.activation())?,
                device.zeros(chunk.len() * head.vocabulary, device.activation())?,
            ),
        };
        device.gather_rows(hidden, chunk, head.width, &mut gathered);
        logits(device, head, chunk.len(), &gathered, &mut to);
        take(device.map_rows(head.columns(), &to, |row, logits| f(at * most + row, logits))?)?;
        buffers = Some((gathered, to));
    }
    Ok(())
}

/// Value and gradient of an objective from logits that are already there.
///
/// As [`head_loss`], with `student` `[T, columns.stored]` after any soft cap; with [`Mode::Gradient`] the gradient takes
/// its place. `teacher` is `[T, columns.stored]` of its own columns.
///
/// # Errors
/// What the device reports.
///
/// # Panics
/// As [`head_loss`].
pub fn logits_loss<D: LossDevice>(
    device: &D,
    objective: &Objective,
    student: (Columns, &mut D::Buffer),
    teacher: Option<(Columns, &D::Buffer)>,
    labels: &[u32],
    factor: f64,
    mode: Mode,
) -> Result<HeadReport, DeviceError> {
    let (columns, logits) = student;
    check_labels(objective, teacher.is_some(), labels, columns.valid);
    let terms = objective.terms().len();
    let mut values = device.zeros(labels.len() * (terms + Column::COUNT), Element::F32)?;
    let loss = RowLoss {
        objective,
        rows: labels.len(),
        student: columns,
        teacher: teacher.map(|(columns, _)| columns),
        soft_cap: None,
        factor,
        mode,
    };
    let indices = device.indices(labels)?;
    device.loss_rows(loss, &indices, logits, teacher.map(|(_, logits)| logits), &mut values);
    let mut report = HeadReport { terms: vec![0.0; terms], ..HeadReport::default() };
    report.add_rows(terms, &device.read(&values, 0..device.len(&values))?, labels, |_| true);
    Ok(report)
}

fn check_labels(objective: &Objective, has_teacher: bool, labels: &[u32], valid: usize) {
    assert!(has_teacher || !objective.needs_teacher(), "the objective's divergences need a teacher");
    let fits = |&label: &u32| label == IGNORED || (label as usize) < valid;
    assert!(labels.iter().all(fits), "a label is not one of the student's {valid} tokens");
}

/// Rows that have a label; where they can be, others besides, whose gradient is zero, so that there is a regular number.
fn looked_at<D: LossDevice>(device: &D, labels: &[u32], can_be_others: bool) -> Vec<usize> {
    let is_ignored = |row: &usize| labels[*row] == IGNORED;
    let learned = labels.iter().filter(|&&label| label != IGNORED).count();
    let more = if can_be_others { device.regular_rows(learned) - learned } else { 0 };
    let others: Vec<usize> = (0..labels.len()).filter(is_ignored).take(more).collect();
    // As many as there are in all, or none: a number of its own is as good as any.
    let last = others.last().filter(|_| others.len() == more).copied();
    (0..labels.len()).filter(|row| !is_ignored(row) || last.is_some_and(|last| *row <= last)).collect()
}

/// How many rows of logits and gathered hidden states fit the memory: as equal chunks as can be.
fn chunk_rows<D: LossDevice>(
    device: &D,
    head: &Head<'_, D::Buffer>,
    teacher: Option<&TeacherRows<'_, D::Buffer>>,
    rows: usize,
    memory: usize,
) -> usize {
    let activation = device.activation().size();
    let of_teacher = match teacher {
        None => 0,
        Some(TeacherRows::Hidden { head, .. }) => (head.vocabulary + head.width) * activation,
        Some(TeacherRows::Logits { logits, columns }) => columns.stored * device.element(logits).size(),
        Some(TeacherRows::Stored { columns, .. }) => columns * Element::F32.size(),
        Some(TeacherRows::Sparse(_) | TeacherRows::Aligned(_)) => 0,
    };
    let of_row = (head.vocabulary + 2 * head.width) * activation + of_teacher;
    let most = (memory / of_row).max(1);
    rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
}

/// The buffers of one chunk of rows, used again for the next.
struct Chunk<D: LossDevice> {
    rows: usize,
    hidden: D::Buffer,
    d_hidden: Option<D::Buffer>,
    student: D::Buffer,
    teacher: Option<TeacherChunk<D>>,
}

struct TeacherChunk<D: LossDevice> {
    hidden: Option<D::Buffer>,
    logits: D::Buffer,
}

impl<D: LossDevice> Chunk<D> {
    fn new(
        device: &D,
        head: &Head<'_, D::Buffer>,
        teacher: Option<&TeacherRows<'_, D::Buffer>>,
        rows: usize,
        with_gradient: bool,
    ) -> Result<Self, DeviceError> {
        let activations = |width: usize| device.zeros(rows * width, device.activation());
        let teacher = match teacher {
            None | Some(TeacherRows::Sparse(_) | TeacherRows::Aligned(_)) => None,
            Some(TeacherRows::Stored { columns, .. }) => {
                Some(TeacherChunk { hidden: None, logits: device.zeros(rows * columns, Element::F32)? })
            }
            Some(TeacherRows::Hidden { head, .. }) => Some(TeacherChunk {
                hidden: Some(activations(head.width)?),
                logits: activations(head.vocabulary)?,
            }),
            Some(TeacherRows::Logits { logits, columns }) => Some(TeacherChunk {
                hidden: None,
                logits: device.zeros(rows * columns.stored, device.element(logits))?,
            }),
        };
        Ok(Self {
            rows,
            hidden: activations(head.width)?,
            d_hidden: with_gradient.then(|| activations(head.width)).transpose()?,
            student: activations(head.vocabulary)?,
            teacher,
        })
    }

    /// Makes the logits of the student's `rows`, and of as many of the teacher's.
    fn forward(
        &mut self,
        device: &D,
        head: &Head<'_, D::Buffer>,
        (hidden, rows): (&D::Buffer, &[usize]),
        (teacher, asked): (Option<&TeacherRows<'_, D::Buffer>>, &[usize]),
    ) -> Result<(), DeviceError> {
        device.gather_rows(hidden, rows, head.width, &mut self.hidden);
        logits(device, head, rows.len(), &self.hidden, &mut self.student);
        let rows = asked;
        match (teacher, &mut self.teacher) {
            (
                Some(TeacherRows::Hidden { head, hidden }),
                Some(TeacherChunk { hidden: Some(gathered), logits: to }),
            ) => {
                device.gather_rows(hidden, rows, head.width, gathered);
                logits(device, head, rows.len(), gathered, to);
            }
            (Some(TeacherRows::Logits { logits, columns }), Some(chunk)) => {
                device.gather_rows(logits, rows, columns.stored, &mut chunk.logits);
            }
            (Some(TeacherRows::Stored { source, columns }), Some(chunk)) => {
                let mut room = vec![0.0; *columns];
                for (at, &row) in rows.iter().enumerate() {
                    source.row(row, &mut room);
                    device.write(&mut chunk.logits, at * columns, &room)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes the gradient of the logits, which is where the student's logits were, back through the head.
    fn backward(
        &mut self,
        device: &D,
        head: &Head<'_, D::Buffer>,
        rows: &[usize],
        gradient: &mut HeadGradient<'_, D::Buffer>,
    ) {
        let product = head.product(rows.len());
        if let Some(d_hidden) = &mut self.d_hidden {
            device.linear_backward_input(
                product,
                &self.student,
                head.weight,
                d_hidden,
                Accumulate::Overwrite,
            );
            device.scatter_rows(d_hidden, rows, head.width, gradient.d_hidden);
        }
        if let Some(d_weight) = gradient.d_weight.as_deref_mut() {
            let d_bias = gradient.d_bias.as_deref_mut();
            device.linear_backward_weight(product, &self.student, &self.hidden, d_weight, d_bias);
        }
    }
}

fn logits<D: LossDevice>(
    device: &D,
    head: &Head<'_, D::Buffer>,
    rows: usize,
    hidden: &D::Buffer,
    to: &mut D::Buffer,
) {
    device.linear(head.product(rows), hidden, head.weight, head.bias, to, Accumulate::Overwrite);
    if let Some(cap) = head.soft_cap {
        device.soft_cap(cap, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Device;
    use crate::nn::cpu::Cpu;

    #[test]
    fn chunks_of_a_large_vocabulary_stay_under_200_megabytes() {
        let device = Cpu::new(None).unwrap();
        let weight = device.zeros(0, Element::F32).unwrap();
        let head = Head {
            weight: &weight,
            bias: None,
            vocabulary: 151_936,
            valid: 151_936,
            width: 576,
            scale: 1.0,
            soft_cap: None,
        };
        let teacher_head = Head { vocabulary: 152_064, width: 8192, ..head };
        let teacher = TeacherRows::Hidden { head: teacher_head, hidden: &weight };
        let rows = chunk_rows(&device, &head, Some(&teacher), 2048, HEAD_MEMORY);
        let bytes = rows * 4 * (151_936 + 152_064 + 2 * 576 + 8192);
        assert!(rows >= 120 && bytes <= HEAD_MEMORY, "{rows} rows, {bytes} bytes");
        // Equal chunks: 16 of 128, not 15 of 133 and one of 53.
        assert_eq!(rows, 2048usize.div_ceil(2048usize.div_ceil(HEAD_MEMORY / (bytes / rows))));
        assert_eq!(chunk_rows(&device, &head, Some(&teacher), 2048, 0), 1);
        assert_eq!(chunk_rows(&device, &head, Some(&teacher), 0, HEAD_MEMORY), 1);
        assert_eq!(chunk_rows(&device, &head, None, 7, HEAD_MEMORY), 7);
    }
}
