//! What a stream is told to do, as a value: it can be held back, compared, and done again.

use std::ffi::c_void;
use std::hash::{Hash, Hasher};

use super::driver::Kernel;
use super::products::Product;

/// One piece of work. Its addresses are those of blocks of the stream that it is for.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Launch { kernel: Kernel, grid: Grid, arguments: Vec<Argument> },
    Clear { at: u64, bytes: usize },
    Copy { from: u64, to: u64, bytes: usize },
    Product(Product),
}

/// How a kernel is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) blocks: [u32; 3],
    pub(crate) threads: u32,
    /// Bytes of shared memory that the kernel's text does not declare itself.
    pub(crate) shared: u32,
}

/// What a kernel is told.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Argument {
    Address(u64),
    Long(i64),
    Int(i32),
    Float(f32),
}

impl Argument {
    /// Where the values of some are, for a driver that copies them.
    pub(super) fn places(arguments: &[Self]) -> Vec<*mut c_void> {
        arguments.iter().map(Self::place).collect()
    }

    const fn place(&self) -> *mut c_void {
        let place: *const c_void = match self {
            Self::Address(address) => (&raw const *address).cast(),
            Self::Long(number) => (&raw const *number).cast(),
            Self::Int(number) => (&raw const *number).cast(),
            Self::Float(number) => (&raw const *number).cast(),
        };
        place.cast_mut()
    }

    const fn bits(&self) -> (u8, u64) {
        match *self {
            Self::Address(address) => (0, address),
            Self::Long(number) => (1, number.cast_unsigned()),
            Self::Int(number) => (2, number.cast_unsigned() as u64),
            Self::Float(number) => (3, number.to_bits() as u64),
        }
    }
}

/// By their bits: a kernel is told them, whatever they mean.
impl PartialEq for Argument {
    fn eq(&self, other: &Self) -> bool {
        self.bits() == other.bits()
    }
}

impl Operation {
    /// Feeds a hash with all that stays when [`Operation::has_form_of`] says so.
    pub(super) fn hash_form(&self, state: &mut impl Hasher) {
        match self {
            Self::Launch { kernel, arguments, .. } => {
                (0u8, kernel.raw() as usize, arguments.len()).hash(state);
            }
            Self::Clear { at, bytes } => (1u8, at, bytes).hash(state),
            Self::Copy { from, to, bytes } => (2u8, from, to, bytes).hash(state),
            Self::Product(product) => {
                3u8.hash(state);
                product.hash(state);
            }
        }
    }

    /// Whether it differs by no more than what a kernel is told, and how many of its blocks there are.
    pub(super) fn has_form_of(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Launch { kernel, arguments, .. },
                Self::Launch { kernel: other, arguments: others, .. },
            ) => kernel.raw() == other.raw() && arguments.len() == others.len(),
            (Self::Clear { at, bytes }, Self::Clear { at: other, bytes: others }) => {
                (at, bytes) == (other, others)
            }
            (
                Self::Copy { from, to, bytes },
                Self::Copy { from: other_from, to: other_to, bytes: others },
            ) => (from, to, bytes) == (other_from, other_to, others),
            (Self::Product(product), Self::Product(other)) => product == other,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_compared_by_their_bits() {
        assert_ne!(Argument::Float(0.0), Argument::Float(-0.0));
        assert_eq!(Argument::Float(f32::NAN), Argument::Float(f32::NAN));
        assert_ne!(Argument::Int(1), Argument::Long(1));
    }

    #[test]
    fn only_what_kernels_are_told_may_differ() {
        let clear = |at| Operation::Clear { at, bytes: 8 };
        let copy = |to| Operation::Copy { from: 1, to, bytes: 8 };
        assert!(clear(1).has_form_of(&clear(1)) && !clear(1).has_form_of(&clear(2)));
        assert!(copy(1).has_form_of(&copy(1)) && !copy(1).has_form_of(&copy(2)));
        assert!(!clear(1).has_form_of(&copy(1)));
    }
}
