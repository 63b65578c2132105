//! Keys the streams of random numbers of a merge: by the seed, a tensor's name, and which of its streams it is.

use aludel_kernels::random::StreamKey;
use sha2::{Digest, Sha256};

/// The key of a stream of a tensor: the first eight bytes, little-endian, of the SHA-256 of the seed (u64, little-endian), the
/// stream (u32, little-endian) and the tensor's name.
pub(crate) fn stream_key(seed: u64, tensor: &str, stream: u32) -> StreamKey {
    let digest = Sha256::new()
        .chain_update(seed.to_le_bytes())
        .chain_update(stream.to_le_bytes())
        .chain_update(tensor.as_bytes())
        .finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    StreamKey(u64::from_le_bytes(first))
}
