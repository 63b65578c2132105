//! Divides an output's files among runs that each write a part of it.

use std::ops::Range;

use aludel_checkpoint::Layout;
use serde::{Deserialize, Serialize};

use crate::problem::Problem;

/// A part of an output, the others being written by other runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Which part, from 1.
    pub number: usize,
    /// How many there are; at least `number`.
    pub of: usize,
}

impl Part {
    /// The one part of an output that is written by one run.
    pub const WHOLE: Self = Self { number: 1, of: 1 };

    /// The positions of its files in [`Layout::shards`].
    pub fn shards(self, layout: &Layout) -> Range<usize> {
        let count = layout.shards().len();
        (self.number - 1) * count / self.of..self.number * count / self.of
    }

    /// Bytes of its files.
    pub(crate) fn bytes(self, layout: &Layout) -> u64 {
        layout.shards()[self.shards(layout)].iter().map(|shard| shard.bytes).sum()
    }

    /// What is wrong with so many parts.
    pub(super) fn check(self, layout: &Layout) -> Result<(), Problem> {
        let files = layout.shards().len();
        if files >= self.of {
            return Ok(());
        }
        let least = layout.total_bytes() / self.of as u64 / 2;
        let message = format!("the output has {files} file(s), too few for {} parts", self.of);
        Err(Problem::general(message).with_hint(format!("have smaller files: `--shard-size {least}`, say")))
    }
}

#[cfg(test)]
mod tests {
    use aludel_checkpoint::{Dtype, OutputTensor};

    use super::*;

    #[test]
    fn parts_are_all_files_once() {
        let tensor =
            |number: usize| OutputTensor { name: format!("{number:02}"), dtype: Dtype::F32, shape: vec![4] };
        let layout = Layout::plan((0..10).map(tensor).collect(), 16).unwrap();
        for of in 1..=10 {
            let files: Vec<usize> = (1..=of).flat_map(|number| Part { number, of }.shards(&layout)).collect();
            assert_eq!(files, (0..10).collect::<Vec<_>>());
            assert!((1..=of).all(|number| !Part { number, of }.shards(&layout).is_empty()));
            assert!(Part { number: 1, of }.check(&layout).is_ok());
        }
        assert!(
            Part { number: 1, of: 11 }
                .check(&layout)
                .unwrap_err()
                .to_string()
                .contains("10 file(s), too few for 11")
        );
    }
}
