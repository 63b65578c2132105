//! `aludel cache verify`: checks what is stored.

use aludel_cache::{Cache, Error};
use aludel_document::Problem;

use crate::args::CacheVerifyArguments;
use crate::failure::Refusal;
use crate::printer::Printer;
use crate::progress::{Progress, Stage};

/// Holds every byte against its checksum.
pub(super) fn run(arguments: &CacheVerifyArguments, printer: &Printer) -> anyhow::Result<()> {
    let cache = Cache::open(&arguments.cache).map_err(refused)?;
    let progress = Progress::new(printer);
    let total = cache.bytes();
    cache.verify(&mut |done| progress.show(Stage::bytes("verifying", done, total)))?;
    drop(progress);
    let text = format!(
        "every byte of {} files is sound: {} tokens in {} records",
        cache.shards(),
        cache.targets(),
        cache.len()
    );
    Ok(printer.data(&text)?)
}

/// What keeps a cache from being opened is a refusal, but for damage.
pub(super) fn refused(error: Error) -> anyhow::Error {
    match error {
        Error::NotACache { .. } | Error::Incomplete { .. } | Error::Differs { .. } | Error::Busy { .. } => {
            Refusal { recipe: None, problems: Problem::general(error.to_string()).into() }.into()
        }
        other => other.into(),
    }
}
