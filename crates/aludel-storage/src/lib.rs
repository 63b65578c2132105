//! Keeps files in storage that speaks S3.
//!
//! In: an address such as `s3://bucket/prefix`, and the environment's `AWS_` variables. Out: files under that prefix, listed, read, fetched
//! and put there, each at once or not at all. Nothing is known of what the files hold. Calls wait for their answers: whoever wants
//! several at once uses threads.
//!
//! Reading order: [`address`], `settings` (the environment), `connection` (HTTP for the protocol's library), [`storage`], [`error`].
#![forbid(unsafe_code)]

mod connection;
mod settings;

pub mod address;
pub mod error;
pub mod storage;

pub use address::Address;
pub use error::Error;
pub use storage::{Object, Storage};
