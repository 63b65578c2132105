//! Keeps pieces of a tensor that are made as wholes, from the first element that is asked for until a sweep has passed them.
//!
//! In: what makes a piece. Out: elements. Whoever comes first makes a piece, and others wait for it; its bits do not depend on who that is. What
//! could not be made, as the run was stopped, is not kept.

use std::sync::{Arc, Mutex, PoisonError};

use super::Passed;

/// The pieces of a tensor, all of one length but the last.
#[derive(Debug)]
pub(crate) struct Panels {
    /// Elements of a panel.
    length: usize,
    /// Elements of the tensor.
    elements: usize,
    /// Those that have been made and not been passed.
    held: Vec<Mutex<Option<Arc<[f32]>>>>,
}

impl Panels {
    /// Elements of a panel, at most: as many as of the largest tile, so that a panel is hardly ever waited for by several threads.
    pub(crate) const LARGEST: usize = 1 << 18;

    /// Panels of so many elements over a tensor of so many.
    pub(crate) fn new(elements: usize, length: usize) -> Self {
        let length = length.max(1);
        Self { length, elements, held: (0..elements.div_ceil(length)).map(|_| Mutex::default()).collect() }
    }

    /// Bytes of the panels that a tile of the output lies in, beyond its own elements.
    pub(crate) const fn bytes(&self) -> u64 {
        ((2 * self.length + Self::LARGEST) * size_of::<f32>()) as u64
    }

    /// Elements from `start` on; `make` makes a panel by its number. Where it makes none, they are zeros, and it is asked again by the next
    /// read: it has to say so at once.
    pub(crate) fn read(&self, start: u64, to: &mut [f32], make: impl Fn(usize) -> Option<Vec<f32>>) {
        let (mut at, mut rest) = (start as usize, to);
        while !rest.is_empty() {
            let Some(panel) = self.panel(at / self.length, &make) else { return rest.fill(0.0) };
            let first = at % self.length;
            let (piece, others) = rest.split_at_mut(rest.len().min(panel.len() - first));
            piece.copy_from_slice(&panel[first..first + piece.len()]);
            at += piece.len();
            rest = others;
        }
    }

    fn panel(&self, number: usize, make: impl Fn(usize) -> Option<Vec<f32>>) -> Option<Arc<[f32]>> {
        let mut held = self.held[number].lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            *held = Some(make(number)?.into());
        }
        held.clone()
    }

    /// Gives up the panels that a sweep has passed; whether it has passed the whole tensor.
    pub(crate) fn release(&self, passed: &Passed) -> bool {
        let is_all = passed.elements.end as usize == self.elements;
        let first = passed.elements.start as usize / self.length;
        let end = if is_all { self.held.len() } else { passed.elements.end as usize / self.length };
        for panel in &self.held[first.min(end)..end] {
            *panel.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        is_all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_made_is_not_kept() {
        let panels = Panels::new(5, 2);
        let mut read = [f32::NAN; 4];
        panels.read(1, &mut read, |number| (number == 0).then(|| vec![1.0, 2.0]));
        assert_eq!(read, [2.0, 0.0, 0.0, 0.0]);
        panels.read(1, &mut read, |number| {
            assert_ne!(number, 0, "it is kept");
            Some(vec![number as f32; if number == 2 { 1 } else { 2 }])
        });
        assert_eq!(read, [2.0, 1.0, 1.0, 2.0]);
    }
}
