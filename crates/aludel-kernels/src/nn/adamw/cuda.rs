//! Runs the update on a CUDA device.

use std::ops::Range;

use super::Step;
use super::blockwise::{BLOCK, mix};
use super::split::{join, split};
use crate::cuda::CudaError;
use crate::cuda::driver::{Block, Mark};
use crate::cuda::operation::Argument;
use crate::element::Element;
use crate::nn::cuda::{Buffer, Cuda, Text, code};
use crate::nn::device::{DeviceError, Master, MomentsMut, ParameterUpdate, StoredMoments, Update};
use crate::nn::elementwise::cuda::squares;

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

/// What weights in bf16 lack of f32, in a device's memory.
#[derive(Debug)]
pub struct Remainders {
    len: usize,
    block: Block,
}

/// The norm of gradients, and what clips them.
#[derive(Debug)]
pub struct GradientNorm {
    /// An f64, and the f32 that gradients are multiplied by.
    block: Block,
    /// It is there from here on.
    there: Mark,
}

pub(in crate::nn) fn gradient_norm(
    cuda: &Cuda,
    gradients: &[&Buffer],
    limit: Option<f64>,
) -> Result<GradientNorm, DeviceError> {
    let sums = squares(cuda, gradients)?;
    let block = cuda.told(cuda.stream.block(NORM_BYTES))?;
    let limit = limit.unwrap_or(f64::INFINITY).to_bits() as i64;
    let count = Argument::Int((sums.len() / 2) as i32);
    let arguments = [sums.argument(), count, Argument::Long(limit), Argument::Address(block.address())];
    cuda.each_row(text(), "clip", 1, &arguments);
    let there = cuda.told(cuda.stream.mark())?;
    Ok(GradientNorm { block, there })
}

pub(in crate::nn) fn read_norm(cuda: &Cuda, norm: &GradientNorm) -> Result<f64, DeviceError> {
    let bytes = cuda.taken_since(&norm.block, &norm.there)?;
    Ok(bytes.first_chunk().map_or(f64::NAN, |&bytes| f64::from_le_bytes(bytes)))
}

/// An f64, an f32, and what aligns them.
const NORM_BYTES: usize = 16;

/// Elements that a block of threads updates: of one parameter, and a multiple of those that share a scale. As `kernels.cu` says.
const PIECE: usize = 128 * BLOCK;

/// A parameter as kernels see it: addresses, 0 for what is not there, and numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::nn) struct Place {
    gradient: u64,
    /// f32; not there where weights have remainders.
    master: u64,
    /// bf16; not there where the master is the weights.
    weights: u64,
    remainders: u64,
    /// Moments, and their scales where they have eight bits.
    first: u64,
    second: u64,
    first_scales: u64,
    second_scales: u64,
    len: u64,
    /// Of the first element, in its parameter.
    number: u64,
    decays: bool,
    /// As kernels name types: f32 or bf16.
    gradient_type: u64,
}

/// The state of a parameter that a kernel changes.
pub(in crate::nn) enum State<'a> {
    Whole([&'a Buffer; 2]),
    Eight(&'a Moments),
}

impl Place {
    /// Words of a place, as `kernels.cu` has them.
    fn words(&self, first_piece: u64) -> [u64; 13] {
        [
            self.gradient,
            self.master,
            self.weights,
            self.remainders,
            self.first,
            self.second,
            self.first_scales,
            self.second_scales,
            self.len,
            first_piece,
            self.number,
            u64::from(self.decays),
            self.gradient_type,
        ]
    }

    /// Of a master in f32, with weights that are rounded from it or are the same.
    pub(in crate::nn) fn whole(
        gradient: &Buffer,
        master: &Buffer,
        weights: Option<&Buffer>,
        state: State<'_>,
    ) -> Self {
        assert!(weights.is_none_or(|weights| weights.len() == master.len()), "lengths of an update");
        let weights = weights.map_or(0, bf16);
        Self { master: f32s(master), weights, ..Self::default() }.with(gradient, master.len(), state)
    }

    fn split(gradient: &Buffer, weights: &Buffer, remainders: &Remainders, state: State<'_>) -> Self {
        assert_eq!(weights.len(), remainders.len, "lengths of an update");
        let place =
            Self { weights: bf16(weights), remainders: remainders.block.address(), ..Self::default() };
        place.with(gradient, weights.len(), state)
    }

    fn with(mut self, gradient: &Buffer, len: usize, state: State<'_>) -> Self {
        assert_ne!(gradient.element(), Element::F16, "gradients are f32 or bf16");
        (self.gradient, self.len) = (gradient.address(), len as u64);
        self.gradient_type = u64::from(code(gradient.element()).cast_unsigned());
        let lengths = match state {
            State::Whole([first, second]) => {
                (self.first, self.second) = (f32s(first), f32s(second));
                [first.len(), second.len()]
            }
            State::Eight(moments) => {
                (self.first, self.second) = (moments.first.address(), moments.second.address());
                self.first_scales = f32s(&moments.first_scales);
                self.second_scales = f32s(&moments.second_scales);
                [moments.len; 2]
            }
        };
        assert_eq!((gradient.len(), lengths), (len, [len; 2]), "lengths of an update");
        self
    }

    /// One that decays, or does not.
    pub(in crate::nn) const fn decaying(self, decays: bool) -> Self {
        Self { decays, ..self }
    }

    /// One that begins with an element of a parameter, a multiple of those that share a scale.
    pub(in crate::nn) const fn from(self, number: usize) -> Self {
        Self { number: number as u64, ..self }
    }

    const fn is_eight(&self) -> bool {
        self.first_scales != 0
    }
}

fn f32s(buffer: &Buffer) -> u64 {
    assert_eq!(buffer.element(), Element::F32, "this operand is f32");
    buffer.address()
}

fn bf16(buffer: &Buffer) -> u64 {
    assert_eq!(buffer.element(), Element::BF16, "weights beside a master are bf16");
    buffer.address()
}

pub(in crate::nn) fn update_all(
    cuda: &Cuda,
    update: Update,
    norm: Option<&GradientNorm>,
    parameters: &[ParameterUpdate<'_, Cuda>],
) {
    let place = |parameter: &ParameterUpdate<'_, Cuda>| {
        let ParameterUpdate { gradient, decays, master, moments } = parameter;
        let state = match moments {
            MomentsMut::Whole([first, second]) => State::Whole([&**first, &**second]),
            MomentsMut::Eight(moments) => State::Eight(moments),
        };
        let place = match master {
            Master::Weights(weights) => Place::whole(gradient, weights, None, state),
            Master::Split(weights, remainders) => Place::split(gradient, weights, remainders, state),
        };
        place.decaying(*decays)
    };
    let places: Vec<Place> = parameters.iter().map(place).filter(|place| place.len > 0).collect();
    update_places(cuda, update, norm, &places);
}

/// One launch over the pieces of all places, which have moments of one kind.
pub(in crate::nn) fn update_places(
    cuda: &Cuda,
    update: Update,
    norm: Option<&GradientNorm>,
    places: &[Place],
) {
    let Some(is_eight) = places.first().map(Place::is_eight) else { return };
    assert!(places.iter().all(|place| place.is_eight() == is_eight), "moments are of one kind");
    let (mut words, mut owners): (Vec<u64>, Vec<u32>) = (Vec::new(), Vec::new());
    for (number, place) in places.iter().enumerate() {
        words.extend(place.words(owners.len() as u64));
        owners.extend(std::iter::repeat_n(number as u32, (place.len as usize).div_ceil(PIECE)));
    }
    let (Some(table), Some(owners_there)) =
        (cuda.sent(bytemuck::cast_slice(&words)), cuda.sent(bytemuck::cast_slice(&owners)))
    else {
        return;
    };
    let mut arguments = vec![Argument::Address(table.address()), Argument::Address(owners_there.address())];
    if is_eight {
        arguments.push(Argument::Int(mix(update.step as u32) as i32));
    }
    arguments.push(Argument::Address(norm.map_or(0, |norm| norm.block.address())));
    arguments.extend(factors(update));
    cuda.each_row(text(), if is_eight { "adamw8" } else { "adamw" }, owners.len(), &arguments);
}

pub(in crate::nn) fn remainders(cuda: &Cuda, len: usize) -> Result<Remainders, DeviceError> {
    let block = cuda.stream.block(2 * len);
    let cleared = block.and_then(|block| block.clear().map(|()| block));
    cuda.told(cleared.map(|block| Remainders { len, block }))
}

pub(in crate::nn) fn read_master(
    cuda: &Cuda,
    weights: &Buffer,
    remainders: &Remainders,
    range: Range<usize>,
) -> Result<Vec<f32>, DeviceError> {
    let halves = |block: &Block| {
        let mut bytes = vec![0; 2 * range.len()];
        cuda.told(cuda.stream.take(block, 2 * range.start, &mut bytes))?;
        Ok(bytes.as_chunks().0.iter().map(|&bytes| u16::from_le_bytes(bytes)).collect::<Vec<u16>>())
    };
    let (weights, remainders) = (halves(weights.block())?, halves(&remainders.block)?);
    Ok(weights.into_iter().zip(remainders).map(|(weight, remainder)| join(weight, remainder)).collect())
}

pub(in crate::nn) fn write_master(
    cuda: &Cuda,
    weights: &Buffer,
    remainders: Option<&mut Remainders>,
    at: usize,
    values: &[f32],
) -> Result<(), DeviceError> {
    bf16(weights);
    let put = |block: &Block, half: usize| {
        let bytes: Vec<u8> = values.iter().flat_map(|&value| split(value)[half].to_le_bytes()).collect();
        cuda.told(cuda.stream.put(&bytes, block, 2 * at))
    };
    put(weights.block(), 0)?;
    remainders.map_or(Ok(()), |remainders| put(&remainders.block, 1))
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
