//! Finds the digests of the inputs beside the work.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering::Relaxed;

use super::MergeError;
use super::card::Digests;
use super::queue::Queue;
use super::run::Run;
use crate::plan::Part;

/// Whether the digest of an input file of this number is a part's to find.
pub(super) const fn is_hashed_by(part: Part, file: usize) -> bool {
    file % part.of == part.number % part.of
}

impl Run<'_> {
    /// The digest of every file of every source; of a part of the output, those of a part of the files.
    pub(super) fn hash(&self, queue: &Queue<'_>) -> Result<Digests, MergeError> {
        let stopped = || queue.is_stopped() || self.options.cancel.load(Relaxed);
        let mut digests = Vec::new();
        let mut number = 0;
        for source in &self.plan.sources {
            let mut of_source = Vec::new();
            for file in source.checkpoint.files() {
                number += 1;
                if !is_hashed_by(self.plan.part, number) {
                    of_source.push(None);
                    continue;
                }
                if stopped() {
                    return Err(MergeError::Interrupted);
                }
                let mut count = |bytes| {
                    self.counters.hashed.fetch_add(bytes, Relaxed);
                    if stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                };
                of_source.push(Some(self.options.digests.sha256(&file.path, &mut count)?));
            }
            digests.push(of_source);
        }
        Ok(digests)
    }
}
