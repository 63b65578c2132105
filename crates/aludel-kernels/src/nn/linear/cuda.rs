//! Multiplies matrices on a CUDA device, by cuBLASLt. What is not bf16 is rounded to it first.

use crate::cuda::products::{Operands, Shape};
use crate::element::Element;
use crate::nn::cuda::{Buffer, Cuda};
use crate::nn::device::{Accumulate, Product};
use crate::nn::elementwise::cuda::{add_bias, add_columns};

/// An operand in bf16: as it is, or rounded. What is rounded is given back in the stream's order, after the product.
enum Half<'a> {
    Given(&'a Buffer),
    Rounded(Buffer),
}

impl<'a> Half<'a> {
    fn of(cuda: &Cuda, buffer: &'a Buffer) -> Option<Self> {
        if buffer.element() == Element::BF16 {
            return Some(Self::Given(buffer));
        }
        let rounded = cuda.scratch(buffer.len(), Element::BF16)?;
        cuda.convert((buffer, 0), (&rounded, 0), buffer.len());
        Some(Self::Rounded(rounded))
    }

    fn address(&self) -> u64 {
        match self {
            Self::Given(buffer) => buffer.address(),
            Self::Rounded(buffer) => buffer.address(),
        }
    }
}

/// What a product is added to, if it is.
#[derive(Clone, Copy, Debug)]
pub(in crate::nn) enum Onto<'a> {
    Itself(Accumulate),
    Other(&'a Buffer),
}

/// Of a product that is added to its own result, if it is.
fn operands(a: &Half<'_>, b: &Half<'_>, c: &Buffer) -> Operands {
    Operands { a: a.address(), b: b.address(), c: c.address(), addend: c.address() }
}

/// Whether a product has something to be added to: zeros are overwritten.
fn adds(into: Accumulate, y: &mut Buffer) -> bool {
    !y.take_zero() && into == Accumulate::Add
}

pub(in crate::nn) fn forward(
    cuda: &Cuda,
    product: Product,
    x: &Buffer,
    w: &Buffer,
    bias: Option<&Buffer>,
    y: &mut Buffer,
    onto: Onto<'_>,
) {
    let Product { rows, inputs, outputs, scale } = product;
    let lengths = (x.len(), w.len(), y.len());
    assert_eq!(lengths, (rows * inputs, outputs * inputs, rows * outputs), "operands of a product");
    let (Some(a), Some(b)) = (Half::of(cuda, w), Half::of(cuda, x)) else { return };
    let adds = match onto {
        Onto::Itself(into) => adds(into, y),
        Onto::Other(base) => {
            assert_eq!((base.len(), base.element()), (y.len(), y.element()), "what a product is added to");
            y.take_zero();
            true
        }
    };
    let shape = Shape {
        m: outputs,
        n: rows,
        k: inputs,
        a_is_transposed: true,
        b_is_transposed: false,
        result: y.element(),
        adds,
    };
    let c = y.address();
    let addend = match onto {
        Onto::Itself(_) => c,
        Onto::Other(base) => base.address(),
    };
    cuda.multiply(shape, scale, Operands { a: a.address(), b: b.address(), c, addend });
    if let Some(bias) = bias {
        assert_eq!(bias.len(), outputs, "a bias for every output");
        add_bias(cuda, bias, rows, y);
    }
}

pub(in crate::nn) fn backward_input(
    cuda: &Cuda,
    product: Product,
    dy: &Buffer,
    w: &Buffer,
    dx: &mut Buffer,
    into: Accumulate,
) {
    let Product { rows, inputs, outputs, scale } = product;
    let lengths = (dx.len(), w.len(), dy.len());
    assert_eq!(lengths, (rows * inputs, outputs * inputs, rows * outputs), "operands of a product");
    let (Some(a), Some(b)) = (Half::of(cuda, w), Half::of(cuda, dy)) else { return };
    let shape = Shape {
        m: inputs,
        n: rows,
        k: outputs,
        a_is_transposed: false,
        b_is_transposed: false,
        result: dx.element(),
        adds: adds(into, dx),
    };
    cuda.multiply(shape, scale, operands(&a, &b, dx));
}

pub(in crate::nn) fn backward_weight(
    cuda: &Cuda,
    product: Product,
    dy: &Buffer,
    x: &Buffer,
    dw: &mut Buffer,
    d_bias: Option<&mut Buffer>,
) {
    let Product { rows, inputs, outputs, scale } = product;
    let lengths = (x.len(), dw.len(), dy.len());
    assert_eq!(lengths, (rows * inputs, outputs * inputs, rows * outputs), "operands of a product");
    let (Some(a), Some(b)) = (Half::of(cuda, x), Half::of(cuda, dy)) else { return };
    let shape = Shape {
        m: inputs,
        n: outputs,
        k: rows,
        a_is_transposed: false,
        b_is_transposed: true,
        result: dw.element(),
        adds: adds(Accumulate::Add, dw),
    };
    cuda.multiply(shape, scale, operands(&a, &b, dw));
    if let Some(d_bias) = d_bias {
        add_columns(cuda, rows, dy, None, d_bias);
    }
}
