//! Shares numbered pieces of work out among threads, and tells how far they are.
//!
//! In: how many pieces there are, and what is to be done with each. Out: nothing, or the error of the first piece that has one. What
//! depends on one another, as passes over a tensor do, is for the queue of a merge.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::execute::MergeError;

/// How work is shared out.
pub(crate) struct Threads<'a> {
    /// Threads at the most; 0 is one.
    pub count: usize,
    /// Set from outside to stop: the work then ends with [`MergeError::Interrupted`].
    pub cancel: &'a AtomicBool,
    /// Called at the beginning, and every so often until the end.
    pub on_progress: &'a dyn Fn(),
}

impl Threads<'_> {
    /// Does pieces of these numbers from 0 on, each thread with a scratch of its own.
    ///
    /// # Errors
    /// That of the piece of the lowest number that has one: pieces are begun in their order, and none after the first that fails.
    pub(crate) fn share<S: Default>(
        &self,
        pieces: u64,
        work: impl Fn(u64, &mut S) -> Result<(), MergeError> + Sync,
    ) -> Result<(), MergeError> {
        let (next, failed) = (AtomicU64::new(0), Mutex::new(None::<(u64, MergeError)>));
        let run = || {
            let mut scratch = S::default();
            while !self.cancel.load(Relaxed) {
                let piece = next.fetch_add(1, Relaxed);
                if piece >= pieces {
                    break;
                }
                if let Err(error) = work(piece, &mut scratch) {
                    next.fetch_max(pieces, Relaxed);
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    if failed.as_ref().is_none_or(|(first, _)| piece < *first) {
                        *failed = Some((piece, error));
                    }
                }
            }
        };
        let caller = std::thread::current();
        let run_and_tell = || {
            run();
            caller.unpark();
        };
        (self.on_progress)();
        std::thread::scope(|scope| {
            let count = (self.count as u64).clamp(1, pieces.max(1));
            let workers: Vec<_> = (0..count).map(|_| scope.spawn(run_and_tell)).collect();
            while workers.iter().any(|worker| !worker.is_finished()) {
                std::thread::park_timeout(Duration::from_millis(20));
                (self.on_progress)();
            }
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            _ if self.cancel.load(Relaxed) => Err(MergeError::Interrupted),
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn share(
        pieces: u64,
        cancel: &AtomicBool,
        work: impl Fn(u64, &mut usize) -> Result<(), MergeError> + Sync,
    ) -> Result<(), MergeError> {
        Threads { count: 4, cancel, on_progress: &|| {} }.share(pieces, work)
    }

    #[test]
    fn every_piece_is_done_once() {
        let done: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
        let count = |piece: u64, _: &mut usize| {
            done[piece as usize].fetch_add(1, Relaxed);
            Ok(())
        };
        share(1000, &AtomicBool::new(false), count).unwrap();
        assert!(done.iter().all(|done| done.load(Relaxed) == 1));
        share(0, &AtomicBool::new(false), |_, _| unreachable!("there is none")).unwrap();
    }

    #[test]
    fn the_first_piece_that_fails_is_told_and_cancelling_goes_before() {
        let cancel = AtomicBool::new(false);
        let fail = |piece: u64, _: &mut usize| match piece {
            0..30 => Ok(()),
            _ => Err(MergeError::Problems(crate::problem::Problem::general(format!("piece {piece}")).into())),
        };
        for _ in 0..20 {
            assert_eq!(share(1000, &cancel, fail).unwrap_err().to_string(), "piece 30");
        }
        cancel.store(true, Relaxed);
        assert!(matches!(share(1000, &cancel, fail), Err(MergeError::Interrupted)));
    }
}
