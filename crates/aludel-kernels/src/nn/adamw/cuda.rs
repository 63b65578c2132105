//! Runs the update on a CUDA device.

use super::Step;
use super::blockwise::{BLOCK, mix};
use crate::cuda::CudaError;
use crate::cuda::driver::{Argument, Block};
use crate::element::Element;
use crate::nn::cuda::{Buffer, Cuda, Text};
use crate::nn::device::{DeviceError, StoredMoments, Update};

/// Both moments in eight bits in a device's memory.
#[derive(Debug)]
pub struct Moments {
    len: usize,
    first: Block,
    first_scales: Buffer,
    second: Block,
    second_scales: Buffer,
}

impl Moments {
    /// Those of `len` elements, each with its scales.
    pub(in crate::nn) fn of(len: usize, first: (Block, Buffer), second: (Block, Buffer)) -> Self {
        Self { len, first: first.0, first_scales: first.1, second: second.0, second_scales: second.1 }
    }
}

pub(in crate::nn) const fn text() -> Text<'static> {
    Text { name: "adamw", defines: "", parts: &[include_str!("kernels.cu")] }
}

pub(in crate::nn) fn update(
    cuda: &Cuda,
    update: Update,
    gradient: &Buffer,
    [master, first, second]: [&mut Buffer; 3],
    stored: Option<&mut Buffer>,
) {
    let len = master.len();
    assert_eq!((gradient.len(), first.len(), second.len()), (len, len, len), "lengths of an update");
    assert!(stored.as_ref().is_none_or(|stored| stored.len() == len), "lengths of an update");
    let (stored, kind) = match stored {
        Some(stored) => (stored.argument(), stored.type_argument()),
        None => (Argument::Address(0), Argument::Int(0)),
    };
    let mut arguments =
        vec![gradient.floats(), master.floats(), first.floats(), second.floats(), stored, kind];
    arguments.push(Argument::Long(len as i64));
    arguments.extend(factors(update));
    cuda.each(text(), "adamw", len.div_ceil(4), &arguments);
}

pub(in crate::nn) fn update8(
    cuda: &Cuda,
    update: Update,
    gradient: &Buffer,
    master: &mut Buffer,
    moments: &mut Moments,
    stored: Option<&mut Buffer>,
) {
    let len = master.len();
    assert_eq!((gradient.len(), moments.len), (len, len), "lengths of an update");
    assert!(stored.as_ref().is_none_or(|stored| stored.len() == len), "lengths of an update");
    let (stored, kind) = match stored {
        Some(stored) => (stored.argument(), stored.type_argument()),
        None => (Argument::Address(0), Argument::Int(0)),
    };
    let mut arguments = vec![
        gradient.floats(),
        master.floats(),
        Argument::Address(moments.first.address()),
        moments.first_scales.floats(),
        Argument::Address(moments.second.address()),
        moments.second_scales.floats(),
        stored,
        kind,
        Argument::Long(len as i64),
        Argument::Int(mix(update.step as u32) as i32),
    ];
    arguments.extend(factors(update));
    cuda.each_row(text(), "adamw8", len.div_ceil(BLOCK), &arguments);
}

pub(in crate::nn) fn moments(cuda: &Cuda, stored: &StoredMoments) -> Result<Moments, DeviceError> {
    let scales = |values: &[f32]| -> Result<Buffer, CudaError> {
        let block = cuda.numbers(bytemuck::cast_slice(values))?;
        Ok(Buffer::of_numbers(&cuda.supply, block, Element::F32))
    };
    let made = || {
        Ok(Moments {
            len: stored.first.len(),
            first: cuda.sent_now(&stored.first)?,
            first_scales: scales(&stored.first_scales)?,
            second: cuda.sent_now(&stored.second)?,
            second_scales: scales(&stored.second_scales)?,
        })
    };
    cuda.told(made())
}

pub(in crate::nn) fn stored(cuda: &Cuda, moments: &Moments) -> Result<StoredMoments, DeviceError> {
    let scales = |buffer: &Buffer| cuda.bytes(buffer).map(|bytes| Element::F32.decode(&bytes));
    Ok(StoredMoments {
        first: cuda.taken(&moments.first)?,
        first_scales: scales(&moments.first_scales)?,
        second: cuda.taken(&moments.second)?,
        second_scales: scales(&moments.second_scales)?,
    })
}

/// In the order in which kernels take them.
fn factors(update: Update) -> impl Iterator<Item = Argument> {
    let step = Step::new(update);
    let factors = [
        step.gradient_scale,
        step.beta1,
        step.rest1,
        step.beta2,
        step.rest2,
        step.keep,
        step.rate,
        step.correction,
        step.epsilon,
    ];
    factors.into_iter().map(Argument::Float)
}
