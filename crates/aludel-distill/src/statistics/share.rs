//! Shares what is collected among passes over the data, so that the sums of each fit into the memory.
//!
//! In: units, each collected whole, and a number of bytes. Out: which of them each pass collects.

use std::ops::Range;

use aludel_checkpoint::{Dtype, OutputTensor};
use aludel_document::Problem;

use crate::error::Error;

/// What is collected in one pass or in none.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    /// The tensors that it becomes.
    pub tensors: Vec<OutputTensor>,
    /// Bytes of memory.
    pub bytes: u64,
}

/// Units, and the passes that collect them.
pub(super) struct Shares {
    units: Vec<Unit>,
    passes: Vec<Range<usize>>,
}

impl Shares {
    pub(super) fn new(units: Vec<Unit>, memory: u64) -> Result<Self, Error> {
        let largest = units.iter().max_by_key(|unit| unit.bytes);
        if let Some(unit) = largest.filter(|unit| unit.bytes > memory) {
            let first = unit.tensors.first().map_or("", |tensor| tensor.name.as_str());
            let name = match unit.tensors.len() {
                0 | 1 => first.to_owned(),
                count => format!("{first} and {} more", count - 1),
            };
            let (needed, given) = (unit.bytes.div_ceil(1 << 20), memory >> 20);
            let message =
                format!("the sums for {name} alone take {needed} MiB of memory, and may take {given} MiB");
            return Err(Problem::general(message)
                .with_hint(format!("give it `--memory {needed}MiB` or more"))
                .into());
        }
        let mut passes: Vec<Range<usize>> = Vec::new();
        let mut taken = u64::MAX;
        for (number, unit) in units.iter().enumerate() {
            match passes.last_mut().filter(|_| taken.saturating_add(unit.bytes) <= memory) {
                Some(pass) => (pass.end, taken) = (number + 1, taken + unit.bytes),
                None => {
                    passes.push(number..number + 1);
                    taken = unit.bytes;
                }
            }
        }
        Ok(Self { units, passes })
    }

    pub(super) fn units(&self) -> &[Unit] {
        &self.units
    }

    pub(super) fn passes(&self) -> &[Range<usize>] {
        &self.passes
    }

    /// All tensors, in the order of the model.
    pub(super) fn tensors(&self) -> Vec<OutputTensor> {
        self.units.iter().flat_map(|unit| unit.tensors.iter().cloned()).collect()
    }

    /// Bytes of the largest pass.
    pub(super) fn memory(&self) -> u64 {
        let pass = |pass: &Range<usize>| self.units[pass.clone()].iter().map(|unit| unit.bytes).sum();
        self.passes.iter().map(pass).max().unwrap_or(0)
    }
}

/// A tensor of statistics.
pub(super) fn tensor(name: String, shape: Vec<usize>) -> OutputTensor {
    OutputTensor { name, dtype: Dtype::F32, shape }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_take_what_fits() {
        let unit = |bytes| Unit { tensors: vec![tensor("w".into(), vec![1])], bytes };
        let units = || [300, 500, 200, 900, 100, 1].map(|bytes| unit(bytes << 20)).to_vec();
        let passes = |memory: u64| {
            let shares = Shares::new(units(), memory << 20)?;
            let passes: Vec<(usize, usize)> =
                shares.passes().iter().map(|pass| (pass.start, pass.end)).collect();
            Ok::<_, Error>((passes, shares.memory() >> 20))
        };
        assert_eq!(passes(1000).unwrap(), (vec![(0, 3), (3, 5), (5, 6)], 1000));
        assert_eq!(passes(900).unwrap(), (vec![(0, 2), (2, 3), (3, 4), (4, 6)], 900));
        assert_eq!(passes(5000).unwrap(), (vec![(0, 6)], 2001));
        let refused = passes(899).unwrap_err().to_string();
        assert!(
            refused.contains("the sums for w alone take 900 MiB of memory, and may take 899 MiB"),
            "{refused}"
        );
        assert!(Shares::new(Vec::new(), 0).unwrap().passes().is_empty());
    }
}
