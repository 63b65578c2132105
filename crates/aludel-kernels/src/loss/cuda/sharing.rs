//! Decides how many blocks share a row of logits, and whether they hold it.
//!
//! In: the shape of a call. Out: a [`Sharing`]. For many columns it is chosen by trials (`cuda/choices`) on copies of the rows at hand, always as many, so that
//! it depends on columns and objective, not on the number of rows. What counts is one block that reads its row again: sharing that a device refuses loses.

use super::printed::Printed;
use super::{ROWS, THREADS, of_rows};
use crate::cuda::CudaError;
use crate::cuda::choices::{Output, Question, Rule, Trials, Way, own_version};
use crate::cuda::driver::Block;
use crate::cuda::operation::{Argument, Grid};
use crate::element::Element;
use crate::loss::device::RowLoss;
use crate::nn::cuda::{Buffer, Cuda, Indices, Text};

/// How blocks share a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sharing {
    /// Blocks of a cluster.
    pub(super) blocks: usize,
    /// Threads of a block.
    pub(super) threads: usize,
    /// How many times eight columns of each model a thread holds; 0 where rows are read again.
    pub(super) pieces: usize,
    /// Bytes that a block holds.
    pub(super) shared: usize,
}

pub(super) const NOT_SHARED: Sharing = Sharing { blocks: 1, threads: THREADS, pieces: 0, shared: 0 };

/// Bytes that three blocks on a multiprocessor can have each.
const MOST_SHARED: usize = 72 << 10;

/// Bytes that a block can have beside the kernel's own.
const MOST_TRIED: usize = 200 << 10;

const BLOCKS: [usize; 4] = [1, 2, 4, 8];

/// Threads of a block whose every thread has twice as much to do between two meetings of all.
const FEWER: usize = 256;

/// Rows of trials: two for each multiprocessor of an H100.
const TRIED: usize = 264;

/// What a column of a model takes, about, in multiplications and additions.
const WORK: usize = 100;

impl Sharing {
    /// Blocks that hold as many columns of so many models.
    const fn held(columns: usize, models: usize, blocks: usize, threads: usize) -> Self {
        let pieces = columns.div_ceil(8 * threads * blocks);
        Self { blocks, threads, pieces, shared: pieces * models * threads * 16 }
    }

    /// The fewest blocks that hold as many columns of both models, or of one.
    pub(super) fn of(columns: usize, models: usize) -> Self {
        let held = BLOCKS.map(|blocks| Self::held(columns, models, blocks, THREADS));
        held.into_iter().find(|sharing| sharing.shared <= MOST_SHARED).unwrap_or(NOT_SHARED)
    }

    /// What is tried for as many columns, the one that counts first.
    pub(super) fn tried(columns: usize, models: usize) -> Vec<Self> {
        let held = [THREADS, FEWER].into_iter().flat_map(|threads| {
            let held = BLOCKS.map(|blocks| Self::held(columns, models, blocks, threads));
            // More blocks than hold one piece each do not hold less.
            let enough = held.iter().position(|sharing| sharing.pieces <= 1).map_or(held.len(), |at| at + 1);
            held.into_iter().take(enough)
        });
        let held = held.filter(|sharing| sharing.shared <= MOST_TRIED);
        [NOT_SHARED, Self { blocks: 2, ..NOT_SHARED }].into_iter().chain(held).collect()
    }

    fn way(self) -> Way {
        let held = if self.pieces > 0 { "held" } else { "read again" };
        let words = vec![self.blocks as u64, self.pieces as u64, self.threads as u64];
        Way { words, text: format!("{} blocks of {} threads to a row, {held}", self.blocks, self.threads) }
    }
}

/// What is asked of rows, wherever they lie.
pub(super) struct Call<'a> {
    pub(super) cuda: &'a Cuda,
    pub(super) loss: RowLoss<'a>,
    /// The type of a teacher's logits.
    pub(super) element: Option<Element>,
    /// Whether rows are for eight columns at once.
    pub(super) is_aligned: bool,
    /// Columns that both models have.
    pub(super) common: usize,
    pub(super) settings: Block,
}

/// Where rows lie; a teacher that is not there is at 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    pub(super) rows: usize,
    pub(super) labels: Argument,
    pub(super) student: Argument,
    pub(super) teacher: Argument,
    pub(super) values: Argument,
}

impl Call<'_> {
    pub(super) fn start(&self, sharing: Sharing, places: Places) -> Result<(), CudaError> {
        let Self { cuda, loss, element, is_aligned, common, settings } = self;
        let printed = Printed::of_rows(loss, *element, *is_aligned, sharing);
        let Places { rows, labels, student, teacher, values } = places;
        let teacher_stored = loss.teacher.filter(|_| element.is_some()).map_or(0, |shape| shape.stored);
        let arguments = [
            Argument::Address(settings.address()),
            labels,
            student,
            Argument::Long(loss.student.stored as i64),
            Argument::Int(loss.student.valid as i32),
            teacher,
            Argument::Long(teacher_stored as i64),
            Argument::Int(*common as i32),
            values,
        ];
        let name = format!("loss_rows {}", printed.defines);
        let text = Text { name: &name, defines: &printed.defines, parts: ROWS };
        let grid = Grid {
            threads: sharing.threads as u32,
            shared: sharing.shared as u32,
            ..of_rows(rows * sharing.blocks)
        };
        cuda.start(text, "loss_rows", grid, &arguments)
    }

    /// How the rows are shared.
    pub(super) fn sharing(&self, labels: &Indices, student: &Buffer, teacher: Option<&Buffer>) -> Sharing {
        let is_bf16 = self.element.is_none_or(|element| element == Element::BF16);
        if !(self.is_aligned && is_bf16 && self.cuda.has_warpgroups()) {
            return NOT_SHARED;
        }
        let models = 1 + usize::from(teacher.is_some());
        let choices = &self.cuda.choices;
        if self.loss.rows == 0 || !choices.rule().takes((self.common * models * TRIED * WORK) as f64) {
            return Sharing::of(self.common, models);
        }
        let tried = Sharing::tried(self.common, models);
        let ways: Vec<Way> = tried.iter().map(|sharing| sharing.way()).collect();
        let at = choices.choose(&self.question(models), &ways, || {
            let rows = if choices.rule() == Rule::Everything { self.loss.rows } else { TRIED };
            let copies = Copies::of(self, rows, labels, student, teacher)?;
            let run = |way: usize| self.start(tried[way], copies.places(rows));
            Trials {
                stream: &self.cuda.stream,
                prepare: &|| copies.restore(self.cuda),
                run: &run,
                outputs: &copies.outputs(),
            }
            .outcome(tried.len())
        });
        tried[at]
    }

    fn question(&self, models: usize) -> Question {
        let Printed { defines, .. } = Printed::of_rows(&self.loss, self.element, self.is_aligned, NOT_SHARED);
        let (columns, objective) = (self.common, &crate::gpu::name_of(&[&defines])[..12]);
        Question {
            kernel: "loss_rows",
            shape: format!("{columns} columns of {models} models, objective {objective}"),
            version: own_version(),
        }
    }
}

/// Copies of rows that trials are run on.
struct Copies {
    labels: Block,
    given: Block,
    student: Block,
    teacher: Option<Block>,
    values: Block,
}

impl Copies {
    /// So many rows of those at hand, over and over.
    fn of(
        call: &Call<'_>,
        rows: usize,
        labels: &Indices,
        student: &Buffer,
        teacher: Option<&Buffer>,
    ) -> Result<Self, CudaError> {
        let Call { cuda, loss, .. } = call;
        let stream = &cuda.stream;
        let copy = |from: &Buffer| {
            let row = from.len() / loss.rows * from.element().size();
            let to = stream.spare_block(rows * row)?;
            for start in (0..rows).step_by(loss.rows) {
                let bytes = loss.rows.min(rows - start) * row;
                stream.copy_between((from.block(), 0), (&to, start * row), bytes)?;
            }
            Ok::<_, CudaError>(to)
        };
        let labels: Vec<u32> = labels.host().iter().copied().cycle().take(rows).collect();
        let given = copy(student)?;
        Ok(Self {
            labels: cuda.sent_now(bytemuck::cast_slice(&labels))?,
            student: stream.spare_block(given.bytes())?,
            given,
            teacher: teacher.map(copy).transpose()?,
            values: stream.spare_block(rows * loss.columns() * size_of::<f32>())?,
        })
    }

    /// Gradients take the place of logits.
    fn restore(&self, cuda: &Cuda) -> Result<(), CudaError> {
        cuda.stream.copy_between((&self.given, 0), (&self.student, 0), self.given.bytes())
    }

    fn places(&self, rows: usize) -> Places {
        let place = |block: &Block| Argument::Address(block.address());
        Places {
            rows,
            labels: place(&self.labels),
            student: place(&self.student),
            teacher: self.teacher.as_ref().map_or(Argument::Address(0), place),
            values: place(&self.values),
        }
    }

    fn outputs(&self) -> [Output<'_>; 2] {
        let output = |block, element| Output { block, element };
        [output(&self.student, Element::BF16), output(&self.values, Element::F32)]
    }
}
