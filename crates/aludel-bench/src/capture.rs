//! Looks at a cache that was captured: its bytes, and how near it is to its teacher by the tool's own word.
//!
//! In: the folder of a cache, and what `aludel cache info` and `aludel cache verify --run` print as JSON. Out: figures for the record. Nothing is
//! decoded here; that two captures are the same is told by their files.

use std::path::Path;

use aludel_checkpoint::DigestCache;
use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

/// What a table shows of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CacheFigures {
    /// Rows: tokens that are learned.
    pub(crate) tokens: u64,
    pub(crate) records: u64,
    pub(crate) vocabulary: u64,
    /// Of all files, with their checksums.
    pub(crate) bytes: u64,
    /// Where it was held against its teacher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) nearness: Option<Nearness>,
}

/// What `verify` found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Nearness {
    /// Rows of the sample.
    pub(crate) tokens: u64,
    /// The cache against the live teacher.
    pub(crate) stored: Distances,
    /// The live teacher against itself in another batch.
    pub(crate) control: Distances,
}

/// Means over rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Distances {
    /// `KL(live, stored)` in nats; none of draws.
    pub(crate) kl: Option<f64>,
    /// `KL(stored, live)` in nats.
    pub(crate) reverse_kl: f64,
    pub(crate) top1: f64,
    pub(crate) kept_mass: f64,
    pub(crate) calibration_error: f64,
}

impl CacheFigures {
    /// From what `info` printed.
    ///
    /// Errors: that is not what `info` prints.
    pub(crate) fn read(info: &str) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Info {
            header: Header,
            records: u64,
            tokens: u64,
            bytes: u64,
        }
        #[derive(Deserialize)]
        struct Header {
            vocabulary: u64,
        }
        let info: Info = serde_json::from_str(info).context("what `cache info` printed is not understood")?;
        ensure!(info.tokens > 0, "the cache is empty");
        let Info { header: Header { vocabulary }, records, tokens, bytes } = info;
        Ok(Self { tokens, records, vocabulary, bytes, nearness: None })
    }

    /// With what `verify` printed.
    ///
    /// Errors: that is not what `verify` prints.
    pub(crate) fn with_nearness(self, verified: &str) -> anyhow::Result<Self> {
        let nearness =
            serde_json::from_str(verified).context("what `cache verify` printed is not understood")?;
        Ok(Self { nearness: Some(nearness), ..self })
    }

    /// Files over rows.
    pub(crate) fn bytes_a_token(&self) -> f64 {
        self.bytes as f64 / self.tokens as f64
    }
}

/// Digests of a folder's files, by their names.
pub(crate) fn fingerprint(folder: &Path) -> anyhow::Result<Vec<String>> {
    let cache = DigestCache::disabled();
    let entries = folder.read_dir().with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    // An empty file that says which process writes the part.
    paths.retain(|path| path.extension().is_none_or(|extension| extension != "lock"));
    paths.sort();
    let digest =
        |path: &std::path::PathBuf| Ok(cache.sha256(path, &mut |_| std::ops::ControlFlow::Continue(()))?);
    paths.iter().map(digest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_what_the_command_prints() {
        let info = r#"{"header": {"vocabulary": 512, "shift": 1}, "records": 2, "tokens": 100, "shards": 1, "bytes": 1850, "bytes_per_token": 18.5}"#;
        let figures = CacheFigures::read(info).unwrap();
        assert_eq!((figures.bytes_a_token(), figures.vocabulary), (18.5, 512));
        let side =
            r#"{"kl": null, "reverse_kl": 0.5, "top1": 0.9, "kept_mass": 0.8, "calibration_error": 0.1}"#;
        let verified = format!(r#"{{"records": 2, "tokens": 100, "stored": {side}, "control": {side}}}"#);
        let nearness = figures.with_nearness(&verified).unwrap().nearness.unwrap();
        assert_eq!((nearness.stored.kl, nearness.stored.reverse_kl), (None, 0.5));
        assert!(CacheFigures::read("every byte is sound").is_err() && figures.with_nearness("{}").is_err());
    }
}
