//! Makes a model folder of a GGUF file once, so that everything else knows folders only.
//!
//! In: a path as a user gives it. Out: a model folder: the path itself, or, for a .gguf file, the conversion of its content
//! in the user's cache (`aludel/gguf/<SHA-256 of the file>`), which is made where it is missing and then stays. A conversion
//! is larger than its file where that is quantised (twice the parameters, in bytes), and takes a few tiles of memory.
//! Values are rounded as `aludel convert` does; see [`aludel_checkpoint::gguf::ConvertOptions`].

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use aludel_checkpoint::gguf::{ConvertOptions, convert};
use aludel_checkpoint::{DigestCache, OutputFolder, is_gguf, user_cache};

use crate::error::Error;

/// The model folder of a path: the path itself, or the conversion of the GGUF file there.
///
/// Errors: [`Error::Config`] where a conversion is needed and the system has no folder for caches; those of a conversion.
pub fn model_folder(path: &Path) -> Result<PathBuf, Error> {
    if !is_gguf(path) {
        return Ok(path.to_path_buf());
    }
    let Some(cache) = user_cache() else {
        let detail =
            "the system has no folder for caches to keep its conversion in; convert it with `aludel convert`";
        return Err(Error::config(format!("{} is a GGUF file, and {detail}", path.display())));
    };
    converted(path, &cache, &DigestCache::user())
}

/// The conversion of a GGUF file, under `cache`.
pub(crate) fn converted(path: &Path, cache: &Path, digests: &DigestCache) -> Result<PathBuf, Error> {
    let digest = digests.sha256(path, &mut |_| ControlFlow::Continue(()))?;
    let target = cache.join("gguf").join(digest);
    // A folder exists under its name only when it is whole.
    if !target.is_dir() {
        let folder = OutputFolder::create(&target, false)?;
        let options = ConvertOptions { dtype: None, shard_bytes: SHARD_BYTES };
        convert(path, &folder, &options, &mut |_| {})?;
        folder.finish()?;
    }
    Ok(target)
}

/// The size that transformers writes.
const SHARD_BYTES: u64 = 5_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Batch, Decoder, Keep, Use};
    use aludel_kernels::nn::{Cpu, Device};
    use std::sync::Arc;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../aludel-checkpoint/tests/fixtures/gguf").join(name)
    }

    #[test]
    fn a_gguf_file_is_converted_once() {
        let cache = tempfile::tempdir().unwrap();
        let digests = DigestCache::disabled();
        let folder = converted(&fixture("byte_level.gguf"), cache.path(), &digests).unwrap();
        let written =
            |folder: &Path| folder.join("model.safetensors").metadata().unwrap().modified().unwrap();
        let first = written(&folder);
        assert_eq!(converted(&fixture("byte_level.gguf"), cache.path(), &digests).unwrap(), folder);
        assert_eq!(written(&folder), first);
        assert!(folder.join("tokenizer.json").is_file());
    }

    #[test]
    fn a_converted_model_runs() {
        let cache = tempfile::tempdir().unwrap();
        for name in ["byte_level.gguf", "sentence_piece.gguf"] {
            let folder = converted(&fixture(name), cache.path(), &DigestCache::disabled()).unwrap();
            let decoder = Decoder::open(&folder, Arc::new(Cpu::new(None).unwrap()), Use::Frozen).unwrap();
            let pass = decoder.forward(&Batch::pack([&[1, 2, 3][..]]), Keep::Nothing, &[]).unwrap();
            let width = decoder.config().hidden;
            let hidden = decoder.device().read(pass.hidden(), 0..3 * width).unwrap();
            assert!(hidden.iter().all(|value| value.is_finite()) && hidden.iter().any(|value| *value != 0.0));
        }
    }

    #[test]
    fn other_paths_are_folders_as_they_are() {
        for path in ["models/llama", "does/not/exist.gguf", "Cargo.toml"] {
            assert_eq!(model_folder(Path::new(path)).unwrap(), Path::new(path));
        }
    }
}
