//! Finds the digests of the inputs beside the work.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

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
    /// The digest of every file of every source; of a part of the output, those of a part of the files. Several files are read at once: the
    /// digest of one can only be found from its start to its end.
    pub(super) fn hash(&self, queue: &Queue<'_>) -> Result<Digests, MergeError> {
        let files = || self.plan.sources.iter().map(|source| source.checkpoint.files());
        let mut paths: Vec<(&Path, OnceLock<_>)> = Vec::new();
        paths.extend(files().flatten().map(|file| (file.path.as_path(), OnceLock::new())));
        let next = AtomicUsize::new(0);
        let work = || {
            let claim = || paths.iter().enumerate().nth(next.fetch_add(1, Relaxed));
            while let Some((index, (path, digest))) = claim() {
                if is_hashed_by(self.plan.part, index + 1) {
                    digest.get_or_init(|| self.digest(path, queue));
                }
            }
        };
        std::thread::scope(|scope| {
            (1..self.plan.work.hashers().min(paths.len())).for_each(|_| drop(scope.spawn(work)));
            work();
        });
        let mut found = paths.into_iter().map(|(_, digest)| digest.into_inner().transpose());
        files().map(|of_source| found.by_ref().take(of_source.len()).collect()).collect()
    }

    fn digest(&self, path: &Path, queue: &Queue<'_>) -> Result<String, MergeError> {
        let stopped = || queue.is_stopped() || self.options.cancel.load(Relaxed);
        if stopped() {
            return Err(MergeError::Interrupted);
        }
        let mut count = |bytes| {
            self.counters.hashed.fetch_add(bytes, Relaxed);
            if stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        Ok(self.options.digests.sha256(path, &mut count)?)
    }
}
