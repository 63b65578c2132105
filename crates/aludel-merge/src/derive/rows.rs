//! Puts the rows of embeddings into the order of another vocabulary.
//!
//! In: for each row of the new tensor, which rows of which tensors it is made of. Out: elements of the new tensor. Which row a
//! token has is settled where vocabularies are compared; tokens are not known here.

use std::sync::{Arc, OnceLock};

use aludel_kernels::cpu::BLOCK;

use super::{Derivation, Passed, Readable, Stored, Weights};

/// A tensor whose rows are taken from others.
#[derive(Debug)]
pub(crate) struct Rows {
    /// The tensors that rows are taken from.
    pub parts: Arc<[Part]>,
    /// The part that most of them come from.
    pub own: u16,
    /// Elements of a row; at least 1.
    pub columns: u64,
    /// Where each row comes from; the rows beyond are the mean of these.
    pub rows: Vec<Row>,
    /// How many rows there are in all.
    pub padded: u64,
    /// The rows that averages are of.
    pub averages: Arc<[Vec<(u16, u32)>]>,
    /// The mean of the rows, once it is known.
    pub mean: OnceLock<Vec<f32>>,
}

/// A tensor that rows are taken from.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub tensor: Readable,
    /// How many elements it has.
    pub elements: u64,
}

/// Where a row comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    /// A row of a part.
    Of {
        part: u16,
        row: u32,
    },
    /// The mean of rows, by its position among the averages.
    Average(u32),
    Zero,
}

impl Derivation for Rows {
    fn describe(&self) -> String {
        let count = |is: &dyn Fn(&Row) -> bool| self.rows.iter().filter(|row| is(row)).count();
        let counted = [
            (count(&|row| matches!(row, Row::Of { part, .. } if *part == self.own)), "its own"),
            (count(&|row| matches!(row, Row::Of { part, .. } if *part != self.own)), "of another"),
            (count(&|row| matches!(row, Row::Average(_))), "averaged"),
            (count(&|row| matches!(row, Row::Zero)), "zero"),
            (self.padded as usize - self.rows.len(), "padding"),
        ];
        let said = counted.iter().filter(|(count, _)| *count > 0);
        let said: Vec<String> = said.map(|(count, what)| format!("{count} {what}")).collect();
        format!("its rows in the order of the output's tokens: {}", said.join(", "))
    }

    fn reads(&self) -> Vec<Stored> {
        let mut is_read = vec![false; self.parts.len()];
        is_read[usize::from(self.own)] = true;
        for row in &self.rows {
            match *row {
                Row::Of { part, .. } => is_read[usize::from(part)] = true,
                Row::Average(average) => {
                    self.averages[average as usize]
                        .iter()
                        .for_each(|&(part, _)| is_read[usize::from(part)] = true);
                }
                Row::Zero => {}
            }
        }
        let read = self.parts.iter().zip(is_read).filter(|(_, is_read)| *is_read);
        read.flat_map(|(part, _)| part.tensor.reads()).collect()
    }

    fn resident(&self) -> u64 {
        let sums =
            if self.is_padded() { self.columns * (size_of::<f64>() + size_of::<f32>()) as u64 } else { 0 };
        sums + self.parts.iter().map(|part| part.tensor.resident()).sum::<u64>()
    }

    fn make(&self, weights: &Weights<'_>, start: u64, to: &mut [f32]) {
        let mut done = 0;
        while done < to.len() {
            let at = start + done as u64;
            let (row, column) = (at / self.columns, at % self.columns);
            let length = (self.columns - column).min((to.len() - done) as u64).min(BLOCK as u64) as usize;
            let piece = &mut to[done..done + length];
            match self.rows.get(row as usize) {
                Some(&row) => self.make_piece(weights, row, column, piece),
                None => piece.copy_from_slice(&self.mean(weights)[column as usize..column as usize + length]),
            }
            done += length;
        }
    }

    /// Rows are read without mapping them, as their order is any; what parts that are made themselves have mapped goes.
    fn release(&self, weights: &Weights<'_>, _: &Passed) {
        for part in self.parts.iter().filter(|part| part.tensor.made.is_some()) {
            part.tensor.release(weights, &Passed { elements: 0..part.elements, is_end: true });
        }
    }
}

impl Rows {
    fn is_padded(&self) -> bool {
        self.padded > self.rows.len() as u64
    }

    /// Elements of one row.
    fn make_piece(&self, weights: &Weights<'_>, row: Row, column: u64, to: &mut [f32]) {
        match row {
            Row::Of { part, row } => self.read(weights, (part, row), column, to),
            Row::Zero => to.fill(0.0),
            Row::Average(average) => {
                let rows = &self.averages[average as usize];
                let (mut sums, mut values) = ([0.0; BLOCK], [0.0; BLOCK]);
                let values = &mut values[..to.len()];
                for &row in rows {
                    self.read(weights, row, column, values);
                    sums.iter_mut().zip(&*values).for_each(|(sum, &value)| *sum += f64::from(value));
                }
                to.iter_mut().zip(sums).for_each(|(to, sum)| *to = (sum / rows.len() as f64) as f32);
            }
        }
    }

    fn read(&self, weights: &Weights<'_>, (part, row): (u16, u32), column: u64, to: &mut [f32]) {
        let start = u64::from(row) * self.columns + column;
        self.parts[usize::from(part)].tensor.copy(weights, start, to);
    }

    /// The mean of all rows, computed by the first thread that needs it.
    fn mean(&self, weights: &Weights<'_>) -> &[f32] {
        self.mean.get_or_init(|| {
            let mut sums = vec![0.0; self.columns as usize];
            let mut values = [0.0; BLOCK];
            for &row in &self.rows {
                for (piece, sums) in sums.chunks_mut(BLOCK).enumerate() {
                    let values = &mut values[..sums.len()];
                    self.make_piece(weights, row, (piece * BLOCK) as u64, values);
                    sums.iter_mut().zip(&*values).for_each(|(sum, &value)| *sum += f64::from(value));
                }
            }
            let count = self.rows.len().max(1) as f64;
            sums.into_iter().map(|sum: f64| (sum / count) as f32).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use aludel_checkpoint::{Checkpoint, Dtype, Layout, OutputFolder, OutputTensor, WeightMap};

    use super::super::Made;
    use super::*;
    use crate::plan::{Role, Source};

    const COLUMNS: usize = 1500;

    /// Two tensors of three rows, in one file.
    fn source(folder: &std::path::Path) -> Source {
        let tensor =
            |name: &str, dtype| OutputTensor { name: name.to_owned(), dtype, shape: vec![3, COLUMNS] };
        let layout = vec![tensor("a", Dtype::F32), tensor("b", Dtype::BF16)];
        let layout = Layout::plan(layout, u64::MAX).unwrap();
        let output = OutputFolder::create(folder, true).unwrap();
        let shards = output.shards(&layout).unwrap();
        for (index, planned) in layout.tensors().iter().enumerate() {
            let bytes: Vec<u8> = (0..3 * COLUMNS)
                .flat_map(|element| {
                    let value = value(&planned.name, element);
                    let bytes = value.to_le_bytes();
                    if planned.dtype == Dtype::F32 { bytes.to_vec() } else { bytes[2..].to_vec() }
                })
                .collect();
            shards.write_at(&layout.placement(index), 0, &bytes).unwrap();
        }
        shards.finish().unwrap();
        output.finish().unwrap();
        let checkpoint = std::sync::Arc::new(Checkpoint::open(folder).unwrap());
        Source {
            model: "m".to_owned(),
            missing_bytes: 0,
            path: folder.to_owned(),
            role: Role::Member,
            tensors: 2,
            bytes: 0,
            note: None,
            checkpoint,
        }
    }

    /// What is stored, exactly so in BF16 as well.
    fn value(tensor: &str, element: usize) -> f32 {
        let step = if tensor == "a" { 1.0 } else { -2.0 };
        step * (element / COLUMNS + element % 7) as f32
    }

    #[test]
    fn rows_are_the_same_however_they_are_cut() {
        let folder = tempfile::tempdir().unwrap();
        let sources = [source(&folder.path().join("m"))];
        let maps = [WeightMap::open(&sources[0].checkpoint).unwrap()];
        let weights = Weights::new(&sources, &maps);
        let part = |tensor: &str| Part {
            tensor: Readable { stored: Stored { source: 0, tensor: tensor.to_owned() }, made: None },
            elements: 0,
        };
        let inner = Rows {
            parts: [part("a"), part("b")].into(),
            own: 0,
            columns: COLUMNS as u64,
            rows: vec![Row::Of { part: 1, row: 1 }],
            padded: 1,
            averages: [].into(),
            mean: OnceLock::new(),
        };
        let mut nested = part("a");
        nested.tensor.made = Some(Made::by(inner));
        let rows = || Rows {
            parts: [part("a"), part("b"), nested.clone()].into(),
            own: 0,
            columns: COLUMNS as u64,
            rows: vec![
                Row::Of { part: 0, row: 2 },
                Row::Zero,
                Row::Average(0),
                Row::Of { part: 2, row: 0 },
                Row::Of { part: 0, row: 0 },
            ],
            padded: 7,
            averages: [vec![(0, 1), (1, 2)]].into(),
            mean: OnceLock::new(),
        };
        let row = |number: usize, column: usize| {
            let at = |tensor: &str, row: usize| value(tensor, row * COLUMNS + column);
            let means = (at("a", 1) + at("b", 2)) / 2.0;
            let all = [at("a", 2), 0.0, means, at("b", 1), at("a", 0)];
            if number < 5 { all[number] } else { all.iter().sum::<f32>() / 5.0 }
        };
        let expected: Vec<f32> =
            (0..7 * COLUMNS).map(|element| row(element / COLUMNS, element % COLUMNS)).collect();
        for length in [1024, 1000, 7] {
            let made = rows();
            let mut values = vec![f32::NAN; 7 * COLUMNS];
            for (piece, to) in values.chunks_mut(length).enumerate().collect::<Vec<_>>().into_iter().rev() {
                made.make(&weights, (piece * length) as u64, to);
            }
            let differ = values.iter().zip(&expected).position(|(a, b)| (a - b).abs() > 1e-6);
            assert_eq!(differ, None, "pieces of {length}");
        }
        let reads = rows().reads();
        assert!(["a", "b"].iter().all(|name| reads.iter().any(|read| read.tensor == *name)));
        assert_eq!(
            rows().describe(),
            "its rows in the order of the output's tokens: 2 its own, 1 of another, 1 averaged, 1 zero, 2 padding"
        );
    }
}
