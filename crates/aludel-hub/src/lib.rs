//! Finds model folders by name: on disk, in the cache that it shares with Python's `huggingface_hub`, or on a hub.
//!
//! In: what a user wrote for a model, `owner/name` among it, and a revision. Out: a folder on disk. Only the files that a model
//! folder is read for are downloaded: config, tokenizer and the like, and the weights in one format. A download that stops goes on where it
//! was; what arrives is held against the size and the SHA-256 that the hub tells. It opens no model.
//!
//! The layout of the cache is that of the `hf-hub` crate. Its own downloads are not used: they make paths of what a server
//! answers, wait for it without limit, and take a file that was cut off for a whole one.
//!
//! Modules in reading order:
//!
//! - [`Error`]: every way in which a model is not found.
//! - `id`: what is a name on a hub.
//! - `settings`: what the environment says: `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_TOKEN`.
//! - `client`: requests.
//! - `listing`: the files of a model at a revision.
//! - `cache`: where they lie on disk.
//! - `download`: one file, resumed and checked.
//! - `headers`: a stand-in for weights that only has their headers, for planning.
//! - [`Hub`]: all of it together.
#![forbid(unsafe_code)]

mod cache;
mod client;
mod download;
mod error;
mod headers;
mod hub;
mod id;
mod listing;
mod settings;

pub use error::Error;
pub use hub::{Event, Hub, Located};
pub use settings::Settings;

/// Names and digests of the files that are needed of a model or an adapter, of what a hub says; for those who try its reader without one.
#[doc(hidden)]
pub fn read_listing(text: &str) -> Option<Vec<(String, String)>> {
    let read = |needed| listing::Listing::parse(text, needed);
    let listing = read(aludel_checkpoint::needed_files)
        .or_else(|_| read(aludel_checkpoint::needed_adapter_files))
        .ok()?;
    let digests = listing.files.into_iter().map(|file| (file.name, file.etag));
    Some(digests.chain([("commit".to_owned(), listing.commit)]).collect())
}
