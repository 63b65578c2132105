//! Holds the documents of one step, packed one after another without padding.
//!
//! In: token ids. Out: rows and the ranges of the documents among them. Positions restart in every document and no token
//! sees another document; see [`crate::decoder`].

use std::ops::Range;

use crate::error::Error;

/// The documents of one step: T rows of tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// T token ids.
    pub ids: Vec<u32>,
    /// The rows of each document, in order, without gaps; none is empty.
    pub documents: Vec<Range<usize>>,
}

impl Batch {
    /// Packs documents one after another; empty ones are left out.
    pub fn pack<'a>(documents: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut batch = Self::default();
        for document in documents.into_iter().filter(|document| !document.is_empty()) {
            let start = batch.ids.len();
            batch.ids.extend_from_slice(document);
            batch.documents.push(start..batch.ids.len());
        }
        batch
    }

    /// T.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// Holds the ids against the vocabulary and the ranges against the rows.
    pub(crate) fn check(&self, vocabulary: usize) -> Result<(), Error> {
        check_ids(&self.ids, vocabulary)?;
        let mut end = 0;
        for document in &self.documents {
            if document.start != end || document.end <= document.start {
                return Err(Error::batch(format!(
                    "document {document:?} does not follow row {end}, or is empty"
                )));
            }
            end = document.end;
        }
        if end != self.ids.len() {
            return Err(Error::batch(format!("documents end at row {end} of {}", self.ids.len())));
        }
        Ok(())
    }
}

/// Holds ids against the vocabulary; there must be one at least.
pub(crate) fn check_ids(ids: &[u32], vocabulary: usize) -> Result<(), Error> {
    if ids.is_empty() {
        return Err(Error::batch("it has no tokens"));
    }
    match ids.iter().find(|&&id| id as usize >= vocabulary) {
        Some(id) => Err(Error::batch(format!("token {id} is not below the vocabulary of {vocabulary}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_packed_without_gaps() {
        let batch = Batch::pack([&[1, 2][..], &[], &[3]]);
        assert_eq!(batch, Batch { ids: vec![1, 2, 3], documents: vec![0..2, 2..3] });
        assert!(batch.check(4).is_ok());
    }

    #[test]
    fn a_batch_that_does_not_fit_is_refused() {
        let message = |batch: Batch| batch.check(4).unwrap_err().to_string();
        assert_eq!(message(Batch::default()), "a step cannot be run: it has no tokens");
        assert!(message(Batch::pack([&[4][..]])).contains("token 4 is not below the vocabulary of 4"));
        for documents in [&[(0, 1)][..], &[(1, 2)], &[(0, 2), (1, 2)], &[(0, 0), (0, 2)], &[(0, 3)]] {
            let documents = documents.iter().map(|&(start, end)| start..end).collect();
            assert!(Batch { ids: vec![0, 0], documents }.check(4).is_err());
        }
    }
}
