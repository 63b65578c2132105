//! Adds buffers of several devices up by NCCL: with [`super::driver`], [`super::graph`] and [`super::products`] the only file of this folder with `unsafe`.
//!
//! In: addresses of arrays on the device of each process. Out: their sums, submitted to a stream. The library is looked for when it is first
//! needed.
#![expect(unsafe_code, reason = "a library of collectives is a foreign library")]

use std::ffi::c_void;

use cudarc::nccl::{result, sys};

use super::CudaError;
use super::driver::Stream;
use crate::element::Element;

/// The devices of all processes, seen from one.
#[derive(Debug)]
pub struct Collective {
    communicator: sys::ncclComm_t,
}

// SAFETY: a communicator may be used by any thread, by one at a time; all uses go through the stream of its device, which the caller's group does under
// its own order.
unsafe impl Send for Collective {}
// SAFETY: as above.
unsafe impl Sync for Collective {}

/// A name for a meeting.
pub(crate) fn meeting() -> Result<Vec<u8>, CudaError> {
    if !is_there() {
        return Err(CudaError::NoCollectives);
    }
    let name = result::get_uniqueid().map_err(failed("name a meeting"))?;
    Ok(name.internal.iter().map(|&byte| byte.cast_unsigned()).collect())
}

impl Collective {
    /// Meets the devices of all processes; waits for them.
    pub(crate) fn meet(stream: &Stream, meeting: &[u8], rank: usize, size: usize) -> Result<Self, CudaError> {
        if !is_there() {
            return Err(CudaError::NoCollectives);
        }
        let failed = failed("meet the other devices");
        let mut name = sys::ncclUniqueId { internal: [0; 128] };
        if meeting.len() != name.internal.len() {
            return Err(failed(result::NcclError(sys::ncclResult_t::ncclInvalidArgument)));
        }
        name.internal.iter_mut().zip(meeting).for_each(|(to, from)| *to = from.cast_signed());
        stream.bind()?;
        let mut communicator = std::ptr::null_mut();
        // SAFETY: the communicator is written before it is read; the name was made by the library.
        unsafe { result::comm_init_rank(&raw mut communicator, size as i32, name, rank as i32) }
            .map_err(failed)?;
        Ok(Self { communicator })
    }

    /// Replaces arrays, by their addresses, lengths and types, by their sums over all processes, in the order of a stream.
    pub(crate) fn sum(&self, stream: &Stream, arrays: &[(u64, usize, Element)]) -> Result<(), CudaError> {
        let raw = stream.raw()?;
        let sum = |&(address, len, element): &(u64, usize, Element)| {
            // SAFETY: the array has this length, belongs to the caller, and is given back in the stream's order.
            unsafe {
                result::all_reduce(
                    address as *const c_void,
                    address as *mut c_void,
                    len,
                    match element {
                        Element::F32 => sys::ncclDataType_t::ncclFloat32,
                        Element::F16 => sys::ncclDataType_t::ncclFloat16,
                        Element::BF16 => sys::ncclDataType_t::ncclBfloat16,
                    },
                    sys::ncclRedOp_t::ncclSum,
                    self.communicator,
                    raw.cast(),
                )
            }
        };
        together(arrays, sum).map_err(failed("add up gradients"))
    }

    /// Replaces arrays, by their addresses and bytes, by those of their owners, in the order of a stream.
    pub(crate) fn spread(&self, stream: &Stream, arrays: &[(usize, (u64, usize))]) -> Result<(), CudaError> {
        let raw = stream.raw()?;
        let spread = |&(owner, (address, bytes)): &(usize, (u64, usize))| {
            // SAFETY: as in `sum`.
            unsafe {
                result::broadcast(
                    address as *const c_void,
                    address as *mut c_void,
                    bytes,
                    sys::ncclDataType_t::ncclUint8,
                    owner as i32,
                    self.communicator,
                    raw.cast(),
                )
            }
        };
        together(arrays, spread).map_err(failed("hand weights round"))
    }
}

impl Drop for Collective {
    fn drop(&mut self) {
        // SAFETY: made by `Collective::meet`, and destroyed once. An abort does not wait for processes that have gone.
        let _ = unsafe { result::comm_abort(self.communicator) };
    }
}

/// Submits one call for each array as one piece of work.
fn together<T>(
    arrays: &[T],
    call: impl Fn(&T) -> Result<result::NcclStatus, result::NcclError>,
) -> Result<(), result::NcclError> {
    result::group_start()?;
    let mut submitted = Ok(());
    for array in arrays {
        submitted = submitted.and(call(array).map(drop));
    }
    let ended = result::group_end().map(drop);
    submitted.and(ended)
}

fn is_there() -> bool {
    // SAFETY: loads the library by its name, and calls nothing in it.
    unsafe { sys::is_culib_present() }
}

fn failed(doing: &'static str) -> impl Fn(result::NcclError) -> CudaError {
    move |error| CudaError::Collective { doing, message: format!("{:?}", error.0) }
}
