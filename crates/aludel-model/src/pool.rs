//! Keeps buffers of activations for reuse: fresh memory costs a page fault for every page that is touched.
//!
//! In: a number of elements and their type. Out: a [`Held`] buffer of unspecified content, which comes back here when it is
//! dropped. Buffers of lengths that are no longer asked for are given up when the number of rows changes. Where what is given back serves any length
//! ([`Device::shares_memory`]), large buffers are not kept: gradients, other decoders and losses have their memory next.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aludel_kernels::element::Element;
use aludel_kernels::nn::device::LARGE_BUFFER;
use aludel_kernels::nn::{Device, DeviceError};

/// Free buffers of one decoder.
pub(crate) struct Pool<D: Device> {
    device: Arc<D>,
    free: Arc<Mutex<Free<D::Buffer>>>,
}

struct Free<B> {
    buffers: HashMap<(usize, Element), Vec<B>>,
    /// Of the step that runs.
    rows: usize,
    /// Counts changes of `rows`; buffers of an earlier age are not taken back.
    age: u64,
}

/// A buffer that returns to its pool when it is dropped.
pub(crate) struct Held<D: Device> {
    /// `None` only while it is dropped.
    buffer: Option<D::Buffer>,
    key: (usize, Element),
    /// `None` for one that does not come back.
    age: Option<u64>,
    free: Arc<Mutex<Free<D::Buffer>>>,
}

impl<D: Device> Pool<D> {
    pub(crate) fn new(device: Arc<D>) -> Self {
        Self { device, free: Arc::new(Mutex::new(Free { buffers: HashMap::new(), rows: 0, age: 0 })) }
    }

    /// Says how many rows the coming step has; gives up buffers of steps of another number.
    pub(crate) fn begin(&self, rows: usize) {
        let mut free = lock(&self.free);
        if free.rows != rows {
            free.rows = rows;
            free.age += 1;
            free.buffers.clear();
        }
    }

    /// A buffer of activations.
    pub(crate) fn take(&self, len: usize) -> Result<Held<D>, DeviceError> {
        self.take_as(len, self.device.activation())
    }

    /// A buffer of f32.
    pub(crate) fn take_f32(&self, len: usize) -> Result<Held<D>, DeviceError> {
        self.take_as(len, Element::F32)
    }

    fn take_as(&self, len: usize, element: Element) -> Result<Held<D>, DeviceError> {
        let key = (len, element);
        let is_kept = len * element.size() < LARGE_BUFFER || !self.device.shares_memory();
        let (buffer, age) = {
            let mut free = lock(&self.free);
            (free.buffers.get_mut(&key).and_then(Vec::pop), is_kept.then_some(free.age))
        };
        let buffer = match buffer {
            Some(buffer) => buffer,
            None => self.device.room(len, element)?,
        };
        Ok(Held { buffer: Some(buffer), key, age, free: Arc::clone(&self.free) })
    }
}

impl<D: Device> Deref for Held<D> {
    type Target = D::Buffer;

    fn deref(&self) -> &D::Buffer {
        match &self.buffer {
            Some(buffer) => buffer,
            None => unreachable!("a buffer is taken out only when it is dropped"),
        }
    }
}

impl<D: Device> DerefMut for Held<D> {
    fn deref_mut(&mut self) -> &mut D::Buffer {
        match &mut self.buffer {
            Some(buffer) => buffer,
            None => unreachable!("a buffer is taken out only when it is dropped"),
        }
    }
}

impl<D: Device> Drop for Held<D> {
    fn drop(&mut self) {
        let mut free = lock(&self.free);
        if self.age == Some(free.age)
            && let Some(buffer) = self.buffer.take()
        {
            free.buffers.entry(self.key).or_default().push(buffer);
        }
    }
}

/// A panic elsewhere leaves nothing half-done here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
