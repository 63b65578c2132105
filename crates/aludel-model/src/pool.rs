//! Keeps buffers of activations for reuse: fresh memory costs a page fault for every page that is touched.
//!
//! In: a number of elements and their type. Out: a [`Held`] buffer of unspecified content, which comes back here when it is
//! dropped. Buffers of lengths that are no longer asked for are given up when the number of rows changes. Where what is given back serves any length
//! ([`Device::shares_memory`]), large buffers are not kept: gradients, other decoders and losses have their memory next. Of those that are free the oldest is
//! taken, so that steps which ask for the same have the same.

use std::collections::{BTreeMap, HashMap};
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
    /// By their age.
    buffers: HashMap<(usize, Element), BTreeMap<u64, B>>,
    /// How many have been made.
    made: u64,
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
    /// How many were made before it.
    number: u64,
    /// `None` for one that does not come back.
    age: Option<u64>,
    free: Arc<Mutex<Free<D::Buffer>>>,
}

impl<D: Device> Pool<D> {
    pub(crate) fn new(device: Arc<D>) -> Self {
        Self {
            device,
            free: Arc::new(Mutex::new(Free { buffers: HashMap::new(), made: 0, rows: 0, age: 0 })),
        }
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
            free.made += 1;
            let made = free.made;
            let oldest = free.buffers.get_mut(&key).and_then(BTreeMap::pop_first);
            (oldest.ok_or(made), is_kept.then_some(free.age))
        };
        let (number, buffer) = match buffer {
            Ok(oldest) => oldest,
            Err(made) => (made, self.device.room(len, element)?),
        };
        Ok(Held { buffer: Some(buffer), key, number, age, free: Arc::clone(&self.free) })
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
            free.buffers.entry(self.key).or_default().insert(self.number, buffer);
        }
    }
}

/// A panic elsewhere leaves nothing half-done here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
