//! Gives out the pieces of a run's data in the order in which a cache holds them.
//!
//! In: a run and the tokenizer that its teacher reads by. Out: pieces with their names, those of the part that were not stored before; and any piece by its name.

use std::sync::Arc;

use aludel_cache::{Part, RecordId, Set};
use aludel_model::Tokenizer;

use crate::data::{Corpus, Document, Encoder, Stream, StreamSettings};
use crate::error::Error;
use crate::run::Run;

/// The rows of a run's data, as pieces.
pub(super) struct Sources {
    sets: Vec<(Set, Stream)>,
    pub(super) fingerprint: String,
}

impl Sources {
    pub(super) fn open(run: &Run, tokenizer: Arc<Tokenizer>) -> Result<Self, Error> {
        let opened = Corpus::open(&run.data)?;
        let fingerprint = opened.fingerprint().to_owned();
        let encoder = Arc::new(Encoder::new(tokenizer, &run.teachers_data())?);
        let Corpus { train, validation, .. } = opened;
        let stream = |rows, settings| Stream::new(Arc::new(rows), Arc::clone(&encoder), settings);
        let mut sets = vec![(Set::Train, stream(train, StreamSettings::training(&run.data, &run.train)))];
        sets.extend(
            validation.map(|rows| {
                (Set::Validation, stream(rows, StreamSettings::validation(&run.data, &run.train)))
            }),
        );
        Ok(Self { sets, fingerprint })
    }

    /// The piece that a record is of.
    pub(super) fn piece(&self, id: RecordId) -> Result<Document, Error> {
        let stream = self.sets.iter().find(|(set, _)| *set == id.set).map(|(_, stream)| stream);
        let pieces = match stream.filter(|stream| id.row < stream.rows()) {
            Some(stream) => stream.pieces(id.row)?,
            None => Vec::new(),
        };
        let found = pieces.into_iter().find(|(other, _)| *other == id).map(|(_, document)| document);
        found.ok_or(Error::Cursor)
    }

    /// How many rows of the data a part has.
    pub(super) fn rows(&self, part: Part) -> u64 {
        self.sets.iter().map(|(_, stream)| share(part, stream).count() as u64).sum()
    }

    /// The rows of the data of a part that have pieces after `last`, with how many rows are done once each is.
    pub(super) fn after(
        &self,
        part: Part,
        last: Option<RecordId>,
    ) -> impl Iterator<Item = Result<(u64, Vec<(RecordId, Document)>), Error>> + '_ {
        let rows = self
            .sets
            .iter()
            .flat_map(move |(set, stream)| share(part, stream).map(move |row| (*set, stream, row)));
        let rows = rows.zip(1..).skip_while(move |((set, _, row), _)| {
            last.is_some_and(|last| (last.set, last.row) > (*set, *row))
        });
        rows.map(move |((_, stream, row), done)| {
            let mut pieces = stream.pieces(row)?;
            pieces.retain(|(id, _)| last.is_none_or(|last| last < *id));
            Ok((done, pieces))
        })
    }
}

fn share(part: Part, stream: &Stream) -> std::ops::Range<u64> {
    part.share(stream.rows())
}
