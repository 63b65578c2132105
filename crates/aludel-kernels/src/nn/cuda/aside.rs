//! Updates parameters whose optimizer state lies in the host's memory: it goes through the device piece by piece.
//!
//! In: gradients and weights on the device, masters and moments in pinned memory of the host. Out: all of them updated, to the bit as by the same kernels
//! over state that lies on the device. Two pieces are under way: one is copied to the device or back while the other is computed.

use std::ops::Range;

use super::context::Cuda;
use crate::cuda::CudaError;
use crate::cuda::driver::{Block, Mark, Pinned, Stream};
use crate::element::Element;
use crate::nn::adamw;
use crate::nn::adamw::cuda::{Place as Updated, State};
use crate::nn::device::{AsideMoments, AsideUpdate, DeviceError, PIECE_ASIDE, StoredMoments};

/// Bytes of the host's memory that a device copies from and to.
#[derive(Debug)]
pub struct Host {
    pinned: Pinned,
    /// What copies may be under way on.
    streams: [Stream; 2],
}

impl Drop for Host {
    fn drop(&mut self) {
        // A failure is one of the device, which every later call reports.
        let _ = self.streams.iter().try_for_each(Stream::synchronize);
    }
}

/// Where one piece is while it is on the device.
struct Place {
    master: Option<Block>,
    moments: Vec<Block>,
    /// It is free again from here on.
    free: Option<Mark>,
}

/// Which bytes of each array a piece has.
struct Piece {
    elements: Range<usize>,
    master: Range<usize>,
    moments: Vec<Range<usize>>,
}

pub(super) fn host(cuda: &Cuda, bytes: usize) -> Result<Host, DeviceError> {
    let pinned = cuda.told(cuda.driver.pinned(bytes))?;
    Ok(Host { pinned, streams: [cuda.up.clone(), cuda.down.clone()] })
}

pub(super) fn read<'a>(cuda: &Cuda, host: &'a Host) -> Result<&'a [u8], DeviceError> {
    cuda.told(cuda.stream.synchronize().and_then(|()| host.pinned.read()))
}

pub(super) fn write<'a>(cuda: &Cuda, host: &'a mut Host) -> Result<&'a mut [u8], DeviceError> {
    cuda.told(cuda.stream.synchronize().and_then(|()| host.pinned.bytes()))
}

pub(super) fn update(cuda: &Cuda, updates: &mut [AsideUpdate<'_, Cuda>]) -> Result<(), DeviceError> {
    let updated = update_all(cuda, updates);
    if updated.is_err() {
        // What was under way is waited for before its memory is given back.
        let _ = cuda.up.synchronize().and(cuda.down.synchronize());
    }
    cuda.told(updated)
}

fn update_all(cuda: &Cuda, updates: &mut [AsideUpdate<'_, Cuda>]) -> Result<(), CudaError> {
    let mut places = [places(cuda, updates)?, places(cuda, updates)?];
    // Their memory is there for the other streams once the device has come here.
    let begun = cuda.stream.mark()?;
    cuda.up.follow(&begun)?;
    let mut turn = 0;
    for one in updates {
        for piece in pieces(one) {
            let place = &mut places[turn % 2];
            turn += 1;
            carry(cuda, one, &piece, place)?;
        }
    }
    // What comes next, giving the places back included, is after all copies.
    places.iter().filter_map(|place| place.free.as_ref()).try_for_each(|mark| cuda.stream.follow(mark))
}

/// One piece there, updated, and back.
fn carry(
    cuda: &Cuda,
    one: &mut AsideUpdate<'_, Cuda>,
    piece: &Piece,
    place: &mut Place,
) -> Result<(), CudaError> {
    let AsideUpdate { update, gradient, weights, master, moments } = one;
    if let Some(free) = &place.free {
        cuda.up.follow(free)?;
    }
    if let (Some(master), Some(to)) = (master.as_deref(), &place.master) {
        cuda.up.send_pinned(&master.pinned, piece.master.clone(), to)?;
    }
    let hosts = moments.hosts();
    for ((host, range), to) in hosts.iter().zip(&piece.moments).zip(&place.moments) {
        cuda.up.send_pinned(&host.pinned, range.clone(), to)?;
    }
    cuda.stream.follow(&cuda.up.mark()?)?;
    let len = piece.elements.len();
    let floats =
        |block: &Block, len: usize| cuda.buffer(block.part(0, len * size_of::<f32>()), len, Element::F32);
    let gradient = gradient.part(piece.elements.clone());
    let weights = weights.part(piece.elements.clone());
    let (master_here, stored) = match &place.master {
        Some(block) if master.is_some() => (floats(block, len), Some(weights)),
        _ => (weights, None),
    };
    let updated = |state: State<'_>| {
        Updated::whole(&gradient, &master_here, stored.as_ref(), state)
            .decaying(true)
            .from(piece.elements.start)
    };
    let updated = match moments {
        AsideMoments::Whole(_) => {
            let (first, second) = (floats(&place.moments[0], len), floats(&place.moments[1], len));
            updated(State::Whole([&first, &second]))
        }
        AsideMoments::Eight(_) => {
            let scales = StoredMoments::scales(len);
            let [first, first_scales, second, second_scales] = &place.moments[..] else {
                unreachable!("moments in eight bits are four arrays")
            };
            let moments = adamw::cuda::Moments::of(
                len,
                (first.part(0, len), floats(first_scales, scales)),
                (second.part(0, len), floats(second_scales, scales)),
            );
            updated(State::Eight(&moments))
        }
    };
    adamw::cuda::update_places(cuda, *update, None, &[updated]);
    cuda.down.follow(&cuda.stream.mark()?)?;
    if let (Some(master), Some(from)) = (master.as_deref_mut(), &place.master) {
        cuda.down.take_pinned(from, &mut master.pinned, piece.master.clone())?;
    }
    for ((host, range), from) in moments.hosts_mut().into_iter().zip(&piece.moments).zip(&place.moments) {
        cuda.down.take_pinned(from, &mut host.pinned, range.clone())?;
    }
    place.free = Some(cuda.down.mark()?);
    Ok(())
}

/// The pieces of a parameter.
fn pieces(one: &AsideUpdate<'_, Cuda>) -> Vec<Piece> {
    let len = one.gradient.len();
    let floats = |range: Range<usize>| range.start * size_of::<f32>()..range.end * size_of::<f32>();
    let piece = |start: usize| {
        let elements = start..len.min(start + PIECE_ASIDE);
        let master = floats(elements.clone());
        let moments = match one.moments {
            AsideMoments::Whole(_) => vec![master.clone(), master.clone()],
            AsideMoments::Eight(_) => {
                let scales =
                    floats(StoredMoments::scales(elements.start)..StoredMoments::scales(elements.end));
                vec![elements.clone(), scales.clone(), elements.clone(), scales]
            }
        };
        Piece { elements, master, moments }
    };
    (0..len).step_by(PIECE_ASIDE).map(piece).collect()
}

/// Room for the largest piece.
fn places(cuda: &Cuda, updates: &[AsideUpdate<'_, Cuda>]) -> Result<Place, CudaError> {
    let all: Vec<Piece> = updates.iter().flat_map(pieces).collect();
    let has_master = updates.iter().any(|one| one.master.is_some());
    let most = |bytes: &dyn Fn(&Piece) -> usize| all.iter().map(bytes).max().unwrap_or(0);
    let block = |bytes| cuda.stream.block(bytes);
    let arrays = all.first().map_or(0, |piece| piece.moments.len());
    let master = has_master.then(|| block(most(&|piece| piece.master.len()))).transpose()?;
    let moments = (0..arrays).map(|at| block(most(&|piece| piece.moments[at].len())));
    Ok(Place { master, moments: moments.collect::<Result<_, _>>()?, free: None })
}
