//! Finds the digests of the inputs beside the work.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;

use super::MergeError;
use super::card::Digests;
use super::queue::Queue;
use super::run::Run;
use crate::plan::Part;
use crate::threads::Threads;

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
        let threads =
            Threads { count: self.plan.work.hashers(), cancel: self.options.cancel, on_progress: &|| {} };
        threads.share(paths.len() as u64, |number, (): &mut ()| {
            let (path, digest) = &paths[number as usize];
            if is_hashed_by(self.plan.part, number as usize + 1) {
                let _ = digest.set(self.digest(path, queue)?); // Nobody else takes this one.
            }
            Ok(())
        })?;
        let mut found = paths.into_iter().map(|(_, digest)| digest.into_inner());
        Ok(files().map(|of_source| found.by_ref().take(of_source.len()).collect()).collect())
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
