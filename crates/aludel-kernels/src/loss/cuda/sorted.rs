//! Takes distances of sorted probabilities on a CUDA device, from counts of the values that 16 bits have: nothing is sorted.
//!
//! In: rows of the student's logits and of its teacher's on the device, or known columns on the host. Out: as [`LossDevice::sorted_rows`] says.
//! Logits are bf16, or f16 of a teacher. The scratch ([`counting_bytes`]) is that of the blocks that run at once, whatever the number of rows.
//!
//! [`LossDevice::sorted_rows`]: crate::loss::LossDevice::sorted_rows

use crate::cuda::driver::Block;
use crate::cuda::operation::{Argument, Grid};
use crate::element::Element;
use crate::loss::cpu::sorted::Told;
use crate::loss::device::{Column, Mode, RowLoss};
use crate::loss::objective::Term;
use crate::loss::sorted::{BLOCKS, Ranked, SortedRows, counting_bytes};
use crate::loss::sparse::SparseRows;
use crate::nn::DeviceError;
use crate::nn::cuda::{Buffer, Cuda, Text};

/// Of a block: as many as there are, since one block has a multiprocessor for itself.
const THREADS: usize = 1024;
/// A row without a partner.
const NO_PARTNER: u32 = u32::MAX;

pub(super) fn text(defines: &str) -> Text<'_> {
    Text { name: "sorted_rows", defines, parts: &[include_str!("sorted.cu")] }
}

pub(super) fn defines() -> String {
    format!("#define THREADS {THREADS}\n")
}

/// What stands at the ranks of a teacher of which columns are known: of every term, one after another.
#[derive(Debug, Default, PartialEq)]
struct KnownRanks {
    /// Of the rows that are asked for; the first ranks of all rows are one after another.
    starts: Vec<u32>,
    p: Vec<f32>,
    /// Of each of those rows, at each later rank.
    rests: Vec<f32>,
    goes_on: bool,
    partners: Vec<u32>,
}

impl KnownRanks {
    fn of(rows: &SparseRows, partners: &[Option<usize>], terms: &[Term]) -> Self {
        let mut ranks = Self { starts: vec![0], ..Self::default() };
        let (mut p, mut rests) = (vec![Vec::new(); terms.len()], vec![Vec::new(); terms.len()]);
        for partner in partners {
            let Some(row) = *partner else {
                ranks.partners.push(NO_PARTNER);
                continue;
            };
            ranks.partners.push(ranks.starts.len() as u32 - 1);
            for (term, (p, rests)) in terms.iter().zip(p.iter_mut().zip(&mut rests)) {
                let told = Told::of_known(rows.row(row), rows.columns, term.temperature);
                p.extend(told.p);
                rests.push(told.rest);
                ranks.goes_on = told.goes_on;
            }
            ranks.starts.push(p.first().map_or(0, |p| p.len() as u32));
        }
        (ranks.p, ranks.rests) = (p.concat(), rests.concat());
        ranks
    }
}

/// The teacher's part of a kernel's arguments, and what they point to.
struct Sent {
    arguments: Vec<Argument>,
    partners: Block,
    _blocks: Vec<Block>,
}

pub(super) fn run(
    cuda: &Cuda,
    loss: RowLoss<'_>,
    labels: &[u32],
    sorted: SortedRows<'_, Buffer>,
    student: &Buffer,
    values: &Buffer,
) -> Result<(), DeviceError> {
    let (rows, terms) = (loss.rows, loss.objective.terms());
    let (stored, columns) = (loss.student.stored, terms.len() + Column::COUNT);
    assert_eq!((labels.len(), sorted.partners.len()), (rows, rows), "labels and partners of the rows");
    assert_eq!((student.len(), values.len()), (rows * stored, rows * columns), "rows of losses");
    if rows == 0 {
        return Ok(());
    }
    let settings = settings(terms, sorted.factor);
    let settings = cuda.told(cuda.sent_now(bytemuck::cast_slice(&settings)))?;
    let labels = cuda.told(cuda.sent_now(bytemuck::cast_slice(labels)))?;
    let teacher = send(cuda, sorted, terms)?;
    let scratch = cuda.told(cuda.stream.block(counting_bytes(rows)))?;
    let of_labels = loss.objective.labels().map_or(0.0, |labels| f64::from(labels.weight) * loss.factor);
    let mut arguments = vec![
        Argument::Address(settings.address()),
        Argument::Int(terms.len() as i32),
        Argument::Int(rows as i32),
        Argument::Address(labels.address()),
        Argument::Address(teacher.partners.address()),
        student.halves(),
        Argument::Long(stored as i64),
        Argument::Int(loss.student.valid as i32),
    ];
    arguments.extend(teacher.arguments);
    arguments.extend([
        Argument::Float(of_labels as f32),
        Argument::Float(loss.soft_cap.unwrap_or(0.0)),
        Argument::Int(i32::from(loss.mode == Mode::Gradient)),
        Argument::Address(scratch.address()),
        values.floats(),
        Argument::Int(columns as i32),
    ]);
    let blocks = rows.min(BLOCKS) as u32;
    let grid = Grid { blocks: [blocks, 1, 1], threads: THREADS as u32, shared: 0 };
    cuda.run(text(&defines()), "sorted_rows", grid, &arguments);
    Ok(())
}

/// Three numbers of each term, as `sorted.cu` has them.
fn settings(terms: &[Term], factor: f64) -> Vec<f32> {
    let of_term = |term: &Term| {
        let inverse = 1.0 / f64::from(term.temperature);
        let gradient = factor * f64::from(term.weight) * term.squared_temperature() * inverse;
        [inverse as f32, term.squared_temperature() as f32, gradient as f32]
    };
    terms.iter().flat_map(of_term).collect()
}

fn send(cuda: &Cuda, sorted: SortedRows<'_, Buffer>, terms: &[Term]) -> Result<Sent, DeviceError> {
    let numbers = |values: &[u32]| cuda.told(cuda.sent_now(bytemuck::cast_slice(values)));
    let given: Vec<u32> =
        sorted.partners.iter().map(|partner| partner.map_or(NO_PARTNER, |row| row as u32)).collect();
    // Logits, their type, stored and valid columns; starts, ranks and how many there are, rests and how many, and whether ranks go on.
    let logits = |address, element, stored: usize, valid: usize| {
        vec![address, element, Argument::Long(stored as i64), Argument::Int(valid as i32)]
    };
    let known = |[starts, p, rests]: [u64; 3], total: usize, rows: usize, goes_on: bool| {
        let numbers =
            [Argument::Long(total as i64), Argument::Int(rows as i32), Argument::Int(i32::from(goes_on))];
        let [total, rows, goes_on] = numbers;
        [Argument::Address(starts), Argument::Address(p), total, Argument::Address(rests), rows, goes_on]
    };
    let nothing = Argument::Address(0);
    match sorted.teacher {
        Some(Ranked::Logits(teacher, shape)) => {
            assert_ne!(teacher.element(), Element::F32, "logits have 16 bits");
            let mut arguments =
                logits(teacher.argument(), teacher.type_argument(), shape.stored, shape.valid);
            arguments.extend(known([0; 3], 0, 0, true));
            Ok(Sent { arguments, partners: numbers(&given)?, _blocks: vec![] })
        }
        Some(Ranked::Known(rows)) => {
            let ranks = KnownRanks::of(rows, sorted.partners, terms);
            let blocks = vec![
                numbers(&ranks.starts)?,
                numbers(bytemuck::cast_slice(&ranks.p))?,
                numbers(bytemuck::cast_slice(&ranks.rests))?,
            ];
            let total = ranks.starts.last().map_or(0, |&end| end as usize);
            let mut arguments = logits(nothing, Argument::Int(0), 0, rows.columns);
            let addresses = [blocks[0].address(), blocks[1].address(), blocks[2].address()];
            arguments.extend(known(addresses, total, ranks.starts.len() - 1, ranks.goes_on));
            Ok(Sent { arguments, partners: numbers(&ranks.partners)?, _blocks: blocks })
        }
        None => {
            assert!(sorted.partners.iter().all(Option::is_none), "partners of no teacher");
            let mut arguments = logits(nothing, Argument::Int(0), 0, 0);
            arguments.extend(known([0; 3], 0, 0, true));
            Ok(Sent { arguments, partners: numbers(&given)?, _blocks: vec![] })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::objective::Divergence;
    use crate::loss::sparse::{Known, Tail};

    #[test]
    fn ranks_of_rows_that_are_asked_for_stand_term_by_term() {
        let rows = SparseRows {
            known: Known::Likeliest(Tail::Bucket),
            columns: 6,
            temperatures: vec![1.0],
            starts: vec![0, 1, 3],
            ids: vec![0, 2, 4],
            log_p: [0.5f32, 0.25, 0.5].iter().map(|p| p.ln()).collect(),
            tails: vec![0.5, 0.25],
            log_sums: vec![],
            entropies: vec![],
        };
        let term = Term {
            divergence: Divergence::SortedDistance,
            weight: 1.0,
            temperature: 1.0,
            scale_by_t2: false,
        };
        let ranks = KnownRanks::of(&rows, &[Some(1), None, Some(0)], &[term, term]);
        assert_eq!((ranks.starts, ranks.partners), (vec![0, 2, 3], vec![0, NO_PARTNER, 1]));
        assert_eq!(ranks.p, [0.5, 0.25, 0.5, 0.5, 0.25, 0.5]);
        assert_eq!(ranks.rests, [0.0625, 0.1, 0.0625, 0.1]);
        assert!(ranks.goes_on);
    }
}
