//! Remembers compiled kernels between runs. Where they are kept is the caller's concern; this crate knows no paths.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// Remembers compiled kernels, and what tuning has found. Best effort: what is not there is made anew.
pub trait KernelStore: Send + Sync {
    /// What is remembered under a name of letters, digits, `-` and `.`.
    fn load(&self, name: &str) -> Option<Vec<u8>>;

    /// Remembers bytes under a name.
    fn save(&self, name: &str, bytes: &[u8]);
}

/// Remembers nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoStore;

impl KernelStore for NoStore {
    fn load(&self, _: &str) -> Option<Vec<u8>> {
        None
    }

    fn save(&self, _: &str, _: &[u8]) {}
}

/// The digest of everything that something remembered depends on.
pub(crate) fn name_of(parts: &[&str]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(part.as_bytes());
        digest.update([0]);
    }
    let mut name = String::with_capacity(64);
    for byte in digest.finalize() {
        let _ = write!(name, "{byte:02x}");
    }
    name
}
