//! Holds elements and small numbers in a device's memory.

use crate::cuda::driver::{Argument, Block};
use crate::element::Element;

/// A dense array of elements of one type in a device's memory.
#[derive(Debug)]
pub struct Buffer {
    pub(super) block: Block,
    pub(super) len: usize,
    pub(super) element: Element,
}

/// Small numbers in a device's memory, and on the host.
#[derive(Debug)]
pub struct Indices {
    pub(super) block: Block,
    pub(super) host: Vec<u32>,
}

impl Buffer {
    /// Numbers as the bits of elements of 32 bits.
    pub(crate) fn of_numbers(numbers: Indices, element: Element) -> Self {
        assert_eq!(element.size(), 4, "numbers have 32 bits");
        Self { len: numbers.host.len(), block: numbers.block, element }
    }

    /// The number of elements.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Their type.
    pub(crate) const fn element(&self) -> Element {
        self.element
    }

    pub(crate) const fn address(&self) -> u64 {
        self.block.address()
    }

    /// Where it is, for a kernel.
    pub(crate) const fn argument(&self) -> Argument {
        Argument::Address(self.block.address())
    }

    /// Its type, for a kernel.
    pub(crate) const fn type_argument(&self) -> Argument {
        Argument::Int(code(self.element))
    }

    /// Where it is, for a kernel that takes bf16 only.
    ///
    /// # Panics
    /// For other types.
    pub(crate) fn halves(&self) -> Argument {
        assert_eq!(self.element, Element::BF16, "this operand is bf16 on a GPU");
        self.argument()
    }

    /// Where it is, for a kernel that takes f32 only.
    ///
    /// # Panics
    /// For other types.
    pub(crate) fn floats(&self) -> Argument {
        assert_eq!(self.element, Element::F32, "this operand is f32");
        self.argument()
    }
}

impl Indices {
    pub(crate) fn len(&self) -> usize {
        self.host.len()
    }

    pub(crate) fn host(&self) -> &[u32] {
        &self.host
    }

    pub(crate) const fn argument(&self) -> Argument {
        Argument::Address(self.block.address())
    }
}

/// How kernels name a type.
pub(crate) const fn code(element: Element) -> i32 {
    match element {
        Element::F32 => 0,
        Element::F16 => 1,
        Element::BF16 => 2,
    }
}
