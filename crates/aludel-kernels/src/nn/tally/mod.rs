//! Counts the bytes that a training would hold on a device, and computes nothing.
//!
//! In: what a [`Decoder`](super::Device) and its training ask for, by the code that asks a real device. Out: how much they have at most, on the device and,
//! of what lies aside, in the host's memory. Buffers have lengths and no content; whatever is read is zero. What a device's kernels take for themselves
//! is not counted.

mod device;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::device::Missing;
use crate::element::Element;

/// A device that counts.
#[derive(Clone, Debug)]
pub struct Tally {
    like: Like,
    device: Counter,
    host: Counter,
}

/// What the device that is stood in for is like.
#[derive(Clone, Copy, Debug)]
pub struct Like {
    /// The type of its activations.
    pub activation: Element,
    /// Bytes for logits of the rows that are worked on at once.
    pub logit_memory: usize,
    /// Whether its memory is not the host's.
    pub has_memory: bool,
    /// What it does not compute.
    pub missing: &'static [Missing],
}

/// Bytes that are held, and the most that were.
#[derive(Clone, Debug, Default)]
struct Counter(Arc<[AtomicU64; 2]>);

/// Bytes that somebody holds.
#[derive(Debug)]
pub struct Share {
    counter: Counter,
    bytes: u64,
}

/// So many elements.
#[derive(Debug)]
pub struct Buffer {
    len: usize,
    element: Element,
    /// `None` for what lies in a mapped file or shares the memory of another, and for what is empty.
    share: Option<Share>,
    is_empty: bool,
}

impl Tally {
    /// One that stands in for a device.
    pub fn new(like: Like) -> Self {
        Self { like, device: Counter::default(), host: Counter::default() }
    }

    /// Bytes that are held on the device now.
    pub fn now(&self) -> u64 {
        self.device.0[0].load(Relaxed)
    }

    /// The most that were held on the device at once.
    pub fn most(&self) -> u64 {
        self.device.0[1].load(Relaxed)
    }

    /// Bytes that lie aside in the host's memory.
    pub fn aside(&self) -> u64 {
        self.host.0[0].load(Relaxed)
    }

    /// Counts bytes that are taken for a moment.
    pub fn count(&self, bytes: u64) {
        drop(self.device.take(bytes));
    }
}

impl Counter {
    fn take(&self, bytes: u64) -> Share {
        let now = self.0[0].fetch_add(bytes, Relaxed) + bytes;
        self.0[1].fetch_max(now, Relaxed);
        Share { counter: self.clone(), bytes }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.counter.0[0].fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Device;

    #[test]
    fn what_is_held_at_once_is_counted_and_what_is_given_back_is_not() {
        let like = Like { activation: Element::BF16, logit_memory: 1, has_memory: true, missing: &[] };
        let tally = Tally::new(like);
        let kept = tally.zeros(100, Element::F32).unwrap();
        drop(tally.zeros(1000, Element::BF16).unwrap());
        let second = tally.zeros(50, Element::BF16).unwrap();
        assert_eq!((tally.now(), tally.most()), (500, 2400));
        assert_eq!((tally.len(&kept), tally.element(&second)), (100, Element::BF16));
        let host = tally.host(70).unwrap();
        assert_eq!((tally.now(), tally.aside()), (500, 70));
        drop((kept, second, host));
        assert_eq!((tally.now(), tally.aside()), (0, 0));
    }
}
