//! Cuts files of documents into pieces of at most a window, in the order of the files.
//!
//! In: data files, and the model whose tokens they become. Out: pieces, each with the label of each of its tokens; every token
//! is in one of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use aludel_model::Tokenizer;

use crate::data::{Corpus, Document, Encoder, Stream, StreamSettings};
use crate::error::Error;
use crate::evaluate::run_over;

/// The pieces of some files.
pub(super) struct Pieces {
    stream: Stream,
    fingerprint: String,
}

impl Pieces {
    pub(super) fn open(model: &Path, files: &[PathBuf], window: usize) -> Result<Self, Error> {
        let tokenizer = Tokenizer::open(model)?;
        let run = run_over(files, window)?;
        let corpus = Corpus::open(&run.data)?;
        let fingerprint = corpus.fingerprint().to_owned();
        let encoder = Encoder::new(Arc::new(tokenizer), &run.data)?;
        let settings = StreamSettings { epochs: Some(1), ..StreamSettings::training(&run.data, &run.train) };
        let stream = Stream::new(Arc::new(corpus.train), Arc::new(encoder), settings);
        Ok(Self { stream, fingerprint })
    }

    /// SHA-256 over the content of all files.
    pub(super) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Shows pieces one after another, so many tokens of them, the last one cut.
    pub(super) fn each(
        &self,
        tokens: Option<u64>,
        cancel: &AtomicBool,
        mut show: impl FnMut(Document) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut left = tokens.unwrap_or(u64::MAX);
        for row in 0..self.stream.rows() {
            for (_, mut piece) in self.stream.pieces(row)? {
                if cancel.load(Relaxed) {
                    return Err(Error::Interrupted);
                }
                let length = piece.ids.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                if length == 0 {
                    return Ok(());
                }
                left -= length as u64;
                piece.ids.truncate(length);
                piece.labels.truncate(length);
                show(piece)?;
            }
        }
        Ok(())
    }
}
