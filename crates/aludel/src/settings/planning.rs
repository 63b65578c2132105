//! Puts together what a plan depends on besides its recipe.

use std::path::Path;
use std::str::FromStr;

use aludel_kernels::cpu::CHUNK;
use aludel_merge::plan::PlanOptions;
use aludel_merge::recipe::FloatType;

use crate::args::{FloatName, PlanningFlags, ReadingFlags};

/// The plan's options for a target that may be none; with `replace`, one that exists is not in the way.
pub(crate) fn plan_options(
    flags: &PlanningFlags,
    seed: u64,
    target: Option<&Path>,
    replace: bool,
) -> PlanOptions {
    let defaults = PlanOptions::default();
    PlanOptions {
        target: target.map(Path::to_path_buf),
        replace,
        seed,
        threads: flags.threads.map_or(defaults.threads, usize::from),
        memory: flags.memory.0,
        shard_bytes: flags.shard_size.0,
        tile: flags.tile.map(|tile| tile.0),
        allow_non_finite: flags.allow_nan,
        ..defaults
    }
}

/// The options of a plan that writes nothing.
pub(crate) fn reading_options(flags: &ReadingFlags) -> PlanOptions {
    let defaults = PlanOptions::default();
    PlanOptions {
        threads: flags.threads.map_or(defaults.threads, usize::from),
        memory: flags.memory.0,
        tile: flags.tile.map(|tile| tile.0),
        ..defaults
    }
}

/// The type of this name.
pub(crate) const fn float_type(name: FloatName) -> FloatType {
    match name {
        FloatName::Float32 => FloatType::F32,
        FloatName::Float16 => FloatType::F16,
        FloatName::Bfloat16 => FloatType::BF16,
    }
}

/// Elements per unit of work: a multiple of [`CHUNK`], and not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tile(u64);

impl FromStr for Tile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<u64>() {
            Ok(tile) if tile > 0 && tile.is_multiple_of(CHUNK) => Ok(Self(tile)),
            _ => Err(format!("write a multiple of {CHUNK}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tile_is_whole_chunks() {
        assert_eq!("131072".parse(), Ok(Tile(131_072)));
        for text in ["0", "1", "65537", "-65536", ""] {
            assert_eq!(text.parse::<Tile>(), Err("write a multiple of 65536".to_owned()), "{text}");
        }
    }
}
