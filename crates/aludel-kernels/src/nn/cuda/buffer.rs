//! Holds elements and small numbers in a device's memory.
//!
//! A buffer that is to be zero is not written until somebody asks where it is: most gradients are overwritten by the first product that would have
//! been added to them. One that is emptied is not even there until then: activations have its memory meanwhile.

use std::sync::{Arc, Mutex, OnceLock};

use super::context::{Supply, lock};
use crate::cuda::driver::Block;
use crate::cuda::operation::Argument;
use crate::element::Element;

/// A dense array of elements of one type in a device's memory.
#[derive(Debug)]
pub struct Buffer {
    supply: Arc<Supply>,
    /// Empty while everything is zero and nobody has asked where it is.
    block: OnceLock<Block>,
    pub(super) len: usize,
    pub(super) element: Element,
    /// Whether it counts as zero, whatever its block holds.
    is_zero: Mutex<bool>,
}

/// Small numbers in a device's memory, and on the host.
#[derive(Debug)]
pub struct Indices {
    pub(super) block: Block,
    pub(super) host: Vec<u32>,
}

impl Buffer {
    /// Elements as they lie in a block.
    pub(super) fn new(supply: &Arc<Supply>, block: Block, len: usize, element: Element) -> Self {
        let supply = Arc::clone(supply);
        Self { supply, block: OnceLock::from(block), len, element, is_zero: Mutex::new(false) }
    }

    /// Everything becomes zero.
    pub(super) fn clear(&mut self) {
        *lock(&self.is_zero) = true;
    }

    /// Everything becomes zero, and the memory is given back until it is needed.
    pub(super) fn empty(&mut self) {
        self.clear();
        self.block.take();
    }

    /// Whether everything is zero; asked by who then overwrites everything.
    pub(crate) fn take_zero(&mut self) -> bool {
        std::mem::take(&mut *lock(&self.is_zero))
    }

    /// The block that holds the elements, in the stream's order. Where there is no memory for it, the failure is kept, and nothing is computed until it is
    /// told.
    pub(crate) fn block(&self) -> &Block {
        let mut is_zero = lock(&self.is_zero);
        let block = self.block.get_or_init(|| self.supply.block_or_nowhere(self.len * self.element.size()));
        if std::mem::take(&mut *is_zero) {
            // A failure to clear is a failure of the context, which every later call reports.
            let _ = block.clear();
        }
        block
    }

    /// Numbers as the bits of elements of 32 bits.
    pub(crate) fn of_numbers(supply: &Arc<Supply>, numbers: Indices, element: Element) -> Self {
        assert_eq!(element.size(), 4, "numbers have 32 bits");
        let len = numbers.host.len();
        Self::new(supply, numbers.block, len, element)
    }

    /// Elements from `start` on, in the same memory.
    ///
    /// # Panics
    /// Where the range leaves the buffer.
    pub(super) fn part(&self, range: std::ops::Range<usize>) -> Self {
        let size = self.element.size();
        let block = self.block().part(range.start * size, range.len() * size);
        Self::new(&self.supply, block, range.len(), self.element)
    }

    /// The number of elements.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Their type.
    pub(crate) const fn element(&self) -> Element {
        self.element
    }

    pub(crate) fn address(&self) -> u64 {
        self.block().address()
    }

    /// Where it is, for a kernel.
    pub(crate) fn argument(&self) -> Argument {
        Argument::Address(self.address())
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
