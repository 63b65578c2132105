//! Takes turns where reading, computing and writing are not to overlap, which is how what overlapping saves is measured.

use std::sync::{PoisonError, RwLock};

/// Who may go on.
#[derive(Debug)]
pub(super) struct Turns {
    /// Nobody waits for anybody where there is none.
    lock: Option<RwLock<()>>,
}

impl Turns {
    /// All at once, or in turn.
    pub(super) fn new(overlaps: bool) -> Self {
        Self { lock: (!overlaps).then(RwLock::default) }
    }

    /// Computes, beside others who do.
    pub(super) fn compute<T>(&self, work: impl FnOnce() -> T) -> T {
        let _turn = self.lock.as_ref().map(|lock| lock.read().unwrap_or_else(PoisonError::into_inner));
        work()
    }

    /// Reads or writes, while nobody does anything else.
    pub(super) fn transfer<T>(&self, work: impl FnOnce() -> T) -> T {
        let _turn = self.lock.as_ref().map(|lock| lock.write().unwrap_or_else(PoisonError::into_inner));
        work()
    }
}
