//! Gives out the steps of a training, one after another, from any place on.
//!
//! In: rows, an encoder, the shape of a step. Out: [`Step`]s with the place after each. A [`Cursor`] names rows and not tokens,
//! so that it is small: what was not given out yet is tokenized again when a run goes on.

use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::Arc;

use aludel_cache::{RecordId, Set};
use aludel_kernels::loss::IGNORED;
use aludel_model::Batch;
use serde::{Deserialize, Serialize};

use super::align::Taught;
use super::encode::{Document, Encoder};
use super::order::Order;
use super::pack::{Packer, Piece, Sequence};
use super::rows::{RowProblem, Rows};
use crate::error::Error;
use crate::run::{BadRows, Data, Packing, Train};

/// The shape of a step, and how rows come into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamSettings {
    /// Rows of a sequence, at most.
    pub sequence_length: usize,
    /// How documents share sequences.
    pub packing: Packing,
    /// Which rows of the data these are.
    pub set: Set,
    /// What becomes of rows that the chat template refuses.
    pub bad_rows: BadRows,
    /// The seed of the order of every epoch; `None` for the order of the files.
    pub seed: Option<u64>,
    /// How often each row is read; `None` without end.
    pub epochs: Option<u64>,
    /// Sequences of a step.
    pub batch_size: usize,
    /// Sequences of a micro-batch.
    pub micro_batch: usize,
}

/// What an optimizer step is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its parts, each small enough for the device.
    pub micro_batches: Vec<MicroBatch>,
    /// Labels that are learned in all of them; at least 1.
    pub targets: u64,
    /// Tokens that go through the model.
    pub rows: u64,
    /// Tokens that would, were every sequence full.
    pub capacity: u64,
    /// Rows of the data that were left out since the beginning: refused by the chat template, or without anything to learn.
    pub left_out: u64,
    /// The place after this step.
    pub cursor: Cursor,
}

/// What goes through the model at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MicroBatch {
    /// T tokens of some documents.
    pub batch: Batch,
    /// T labels: the token that each predicts, or [`IGNORED`].
    pub labels: Vec<u32>,
    /// Which piece of which row of the data each document of the batch is.
    pub pieces: Vec<RecordId>,
    /// The same for a teacher with other tokens.
    pub aligned: Option<Box<Aligned>>,
}

/// A micro-batch beside the one of a teacher with other tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Aligned {
    /// What goes through the teacher; without a row where nothing is compared. It has none beside it.
    pub teacher: MicroBatch,
    /// For each row of the student's, the teacher's that is compared with it.
    pub partners: Vec<Option<usize>>,
}

/// A place between two steps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The part of a row that comes next.
    pub next: Origin,
    /// Parts that wait in sequences that are not full, the oldest sequence first.
    pub waiting: Vec<Vec<Origin>>,
    /// [`Step::left_out`].
    pub left_out: u64,
}

/// Where a part of a document comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// Times that all rows were read before.
    pub epoch: u64,
    /// Rows of this epoch that were read before.
    pub position: u64,
    /// Tokens of the document before this part.
    pub start: u64,
}

/// The steps of a training.
#[derive(Debug)]
pub struct Stream {
    rows: Arc<Rows>,
    encoder: Arc<Encoder>,
    settings: StreamSettings,
    packer: Packer,
    next: Origin,
    left_out: u64,
    /// The document at `next`, once it is encoded.
    current: Option<Arc<Document>>,
    /// Whether any document of this epoch had something to learn.
    found: bool,
}

impl StreamSettings {
    /// Those of the training data.
    pub fn training(data: &Data, train: &Train) -> Self {
        let epochs = match train.length {
            crate::run::Length::Epochs(epochs) => Some(epochs),
            crate::run::Length::Steps(_) => None,
        };
        let seed = data.shuffle.then_some(train.seed);
        Self { seed, epochs, batch_size: train.batch_size, set: Set::Train, ..Self::validation(data, train) }
    }

    /// Those of the validation data: once, in the order of the files, one micro-batch at a time.
    pub fn validation(data: &Data, train: &Train) -> Self {
        Self {
            sequence_length: data.sequence_length,
            packing: data.packing,
            set: Set::Validation,
            bad_rows: data.bad_rows,
            seed: None,
            epochs: Some(1),
            batch_size: train.micro_batch,
            micro_batch: train.micro_batch,
        }
    }
}

impl Stream {
    /// The steps from the beginning.
    pub fn new(rows: Arc<Rows>, encoder: Arc<Encoder>, settings: StreamSettings) -> Self {
        let packer = Packer::new(settings.sequence_length, settings.packing);
        let next = Origin::default();
        Self { rows, encoder, settings, packer, next, left_out: 0, current: None, found: false }
    }

    /// The steps that follow a place: those that the stream would have given that the cursor was taken from.
    ///
    /// # Errors
    /// As [`Stream::next_step`]; [`Error::Cursor`] for a place that is none of these data.
    pub fn resume(
        rows: Arc<Rows>,
        encoder: Arc<Encoder>,
        settings: StreamSettings,
        cursor: &Cursor,
    ) -> Result<Self, Error> {
        let mut stream = Self::new(rows, encoder, settings);
        for waiting in &cursor.waiting {
            let mut sequence = Sequence::default();
            for &origin in waiting {
                let piece = stream.piece_at(origin)?;
                sequence.rows += piece.rows.len();
                sequence.pieces.push(piece);
            }
            if sequence.rows > settings.sequence_length || sequence.pieces.is_empty() {
                return Err(Error::Cursor);
            }
            stream.packer.reopen(sequence);
        }
        if cursor.next.position > stream.rows.len() {
            return Err(Error::Cursor);
        }
        stream.next = cursor.next;
        stream.left_out = cursor.left_out;
        // An epoch that was entered without finding anything would have ended in an error.
        stream.found = true;
        Ok(stream)
    }

    /// The next step; `None` at the end. The last may have fewer sequences.
    ///
    /// # Errors
    /// [`Error::Rows`] with a row that cannot be used, unless those are skipped; [`Error::NoTargets`] when no row has
    /// anything to learn; [`Error::Io`] and [`Error::Damaged`] for files that changed.
    pub fn next_step(&mut self) -> Result<Option<Step>, Error> {
        let mut sequences = Vec::new();
        while sequences.len() < self.settings.batch_size {
            match self.next_sequence()? {
                Some(sequence) => sequences.push(sequence),
                None => break,
            }
        }
        if sequences.is_empty() {
            return Ok(None);
        }
        let micro_batches: Vec<MicroBatch> = sequences
            .chunks(self.settings.micro_batch)
            .map(|sequences| MicroBatch::of(sequences, self.settings.set))
            .collect();
        Ok(Some(Step {
            targets: micro_batches.iter().map(|part| part.targets() as u64).sum(),
            rows: sequences.iter().map(|sequence| sequence.rows as u64).sum(),
            capacity: (sequences.len() * self.settings.sequence_length) as u64,
            left_out: self.left_out,
            cursor: self.cursor(),
            micro_batches,
        }))
    }

    /// Counts the steps of all epochs by encoding every row once. What it takes is about the time of tokenizing the data.
    ///
    /// # Errors
    /// As [`Stream::next_step`].
    pub fn count_steps(&self, epochs: u64) -> Result<u64, Error> {
        let lengths = self.lengths()?;
        if lengths.pieces.is_empty() {
            return Err(Error::NoTargets);
        }
        let mut packer = Packer::new(self.settings.sequence_length, self.settings.packing);
        let empty = Arc::new(Document::default());
        let mut sequences = 0u64;
        for epoch in 0..epochs {
            let order = self.order(epoch);
            for row in (0..order.rows()).filter_map(|position| order.row(position)) {
                for &rows in lengths.of(row) {
                    let rows = 0..rows as usize;
                    let piece = Piece { origin: Origin::default(), row, document: empty.clone(), rows };
                    sequences += u64::from(packer.add(piece).is_some());
                }
            }
        }
        sequences += packer.open().len() as u64;
        Ok(sequences.div_ceil(self.settings.batch_size as u64))
    }

    /// Lengths of the pieces of every row of the data, on all cores.
    fn lengths(&self) -> Result<Lengths, Error> {
        let count = self.rows.len();
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
        let share = count.div_ceil(threads).max(1);
        let part = |first: u64| -> Result<Lengths, Error> {
            let mut lengths = Lengths::default();
            for row in first..(first + share).min(count) {
                let document = self.encode(row)?.unwrap_or_default();
                let pieces = pieces(&document, self.settings.sequence_length);
                lengths.pieces.extend(pieces.map(|rows| rows.len() as u32));
                lengths.ends.push(lengths.pieces.len() as u64);
            }
            Ok(lengths)
        };
        let parts: Vec<Result<Lengths, Error>> = std::thread::scope(|scope| {
            let part = &part;
            let starts = (0..count).step_by(share as usize);
            let threads: Vec<_> = starts.map(|first| scope.spawn(move || part(first))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
                .collect()
        });
        let mut all = Lengths::default();
        for part in parts {
            let part = part?;
            let before = all.pieces.len() as u64;
            all.pieces.extend(part.pieces);
            all.ends.extend(part.ends.into_iter().map(|end| before + end));
        }
        Ok(all)
    }

    fn cursor(&self) -> Cursor {
        let origins = |sequence: &Sequence| sequence.pieces.iter().map(|piece| piece.origin).collect();
        Cursor {
            next: self.next,
            waiting: self.packer.open().iter().map(origins).collect(),
            left_out: self.left_out,
        }
    }

    fn order(&self, epoch: u64) -> Order {
        match self.settings.seed {
            Some(seed) => Order::shuffled(self.rows.len(), seed, epoch),
            None => Order::straight(self.rows.len()),
        }
    }

    fn next_sequence(&mut self) -> Result<Option<Sequence>, Error> {
        while let Some(piece) = self.next_piece()? {
            if let Some(sequence) = self.packer.add(piece) {
                return Ok(Some(sequence));
            }
        }
        Ok(self.packer.flush())
    }

    fn next_piece(&mut self) -> Result<Option<Piece>, Error> {
        loop {
            if self.settings.epochs.is_some_and(|epochs| self.next.epoch >= epochs) {
                return Ok(None);
            }
            let Some(row) = self.order(self.next.epoch).row(self.next.position) else {
                if !self.found {
                    return Err(Error::NoTargets);
                }
                self.next = Origin { epoch: self.next.epoch + 1, position: 0, start: 0 };
                self.found = false;
                continue;
            };
            let document = match self.current.take() {
                Some(document) => document,
                None => match self.encode(row)? {
                    Some(document) => Arc::new(document),
                    None => {
                        self.left_out += 1;
                        self.next = Origin { position: self.next.position + 1, start: 0, ..self.next };
                        continue;
                    }
                },
            };
            let mut rest = pieces(&document, self.settings.sequence_length)
                .skip_while(|rows| (rows.start as u64) < self.next.start);
            let rows = rest.next().ok_or(Error::Cursor)?;
            let after = rest.next();
            drop(rest);
            self.found = true;
            let origin = Origin { start: rows.start as u64, ..self.next };
            let piece = Piece { origin, row, document: document.clone(), rows };
            match after {
                None => self.next = Origin { position: self.next.position + 1, start: 0, ..self.next },
                Some(after) => {
                    self.next.start = after.start as u64;
                    self.current = Some(document);
                }
            }
            return Ok(Some(piece));
        }
    }

    /// How many rows of the data there are.
    pub fn rows(&self) -> u64 {
        self.rows.len()
    }

    /// The pieces of a row of the data, each as a document; none of a row that is left out. However a run packs and shuffles, its
    /// steps are made of these.
    ///
    /// # Errors
    /// As [`Stream::next_step`].
    ///
    /// # Panics
    /// There is no row of this number.
    pub fn pieces(&self, row: u64) -> Result<Vec<(RecordId, Document)>, Error> {
        let Some(document) = self.encode(row)? else { return Ok(Vec::new()) };
        let piece = |rows: Range<usize>| {
            let id = RecordId { set: self.settings.set, row, start: rows.start as u32 };
            let (ids, labels) = (document.ids[rows.clone()].to_vec(), document.labels[rows].to_vec());
            (id, Document { ids, labels, taught: None })
        };
        Ok(pieces(&document, self.settings.sequence_length).map(piece).collect())
    }

    /// The document of a row of the data; `None` for one that is left out.
    fn encode(&self, row: u64) -> Result<Option<Document>, Error> {
        match self.encoder.encode(&self.rows.read(row)?) {
            Ok(document) => Ok(Some(document).filter(|document| !document.ids.is_empty())),
            Err(_) if self.settings.bad_rows == BadRows::Skip => Ok(None),
            Err(fault) => {
                let problem: RowProblem = self.rows.problem(row, fault.message, fault.hint);
                Err(Error::Rows { problems: vec![problem], count: 1 })
            }
        }
    }

    /// The piece that a cursor names.
    fn piece_at(&self, origin: Origin) -> Result<Piece, Error> {
        let row = self.order(origin.epoch).row(origin.position).ok_or(Error::Cursor)?;
        let document = self.encode(row)?.ok_or(Error::Cursor)?;
        let found =
            pieces(&document, self.settings.sequence_length).find(|rows| rows.start as u64 == origin.start);
        let rows = found.ok_or(Error::Cursor)?;
        Ok(Piece { origin, row, document: Arc::new(document), rows })
    }
}

/// Lengths of the pieces of every row of the data, one after another.
#[derive(Debug, Default)]
struct Lengths {
    pieces: Vec<u32>,
    /// Of each row, where its pieces end.
    ends: Vec<u64>,
}

impl Lengths {
    fn of(&self, row: u64) -> &[u32] {
        let row = row as usize;
        let start = row.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        &self.pieces[start..self.ends[row] as usize]
    }
}

/// The parts of a document, each as long as a sequence but for the last. Those without anything to learn are left out.
fn pieces(document: &Document, length: usize) -> impl Iterator<Item = Range<usize>> {
    let rows = document.ids.len();
    let parts = (0..rows).step_by(length).map(move |start| start..rows.min(start + length));
    parts.filter(|part| document.labels[part.clone()].iter().any(|&label| label != IGNORED))
}

impl MicroBatch {
    fn of(sequences: &[Sequence], set: Set) -> Self {
        let mut part = Self::default();
        for piece in sequences.iter().flat_map(|sequence| &sequence.pieces) {
            let start = part.batch.ids.len();
            part.batch.ids.extend_from_slice(&piece.document.ids[piece.rows.clone()]);
            part.labels.extend_from_slice(&piece.document.labels[piece.rows.clone()]);
            part.batch.documents.push(start..part.batch.ids.len());
            part.pieces.push(RecordId { set, row: piece.row, start: piece.rows.start as u32 });
            if let Some(taught) = &piece.document.taught {
                part.aligned.get_or_insert_default().add(taught, piece, set);
            }
        }
        part
    }

    /// With a document at its end that nothing is learned of, where so many rows come more often; a teacher's as well.
    pub(crate) fn padded(&self, to: &dyn Fn(usize) -> usize) -> Self {
        let mut padded = self.clone();
        let (rows, all) = (self.batch.rows(), to(self.batch.rows()));
        if all > rows {
            padded.batch.ids.resize(all, 0);
            padded.batch.documents.push(rows..all);
            padded.labels.resize(all, IGNORED);
        }
        if let Some(aligned) = &mut padded.aligned {
            aligned.teacher = aligned.teacher.padded(to);
            aligned.partners.resize(all, None);
        }
        padded
    }

    /// Its first rows, as many as these or until one is learned; none where that is all, or where a teacher has other tokens.
    pub(crate) fn beginning(&self, rows: usize) -> Option<Self> {
        let learned = self.labels.iter().position(|&label| label != IGNORED)?;
        let rows = rows.max(learned + 1);
        if self.aligned.is_some() || rows >= self.batch.rows() {
            return None;
        }
        let documents = self.batch.documents.iter().filter(|document| document.start < rows);
        let documents: Vec<_> = documents.map(|document| document.start..document.end.min(rows)).collect();
        Some(Self {
            pieces: self.pieces[..documents.len()].to_vec(),
            batch: Batch { ids: self.batch.ids[..rows].to_vec(), documents },
            labels: self.labels[..rows].to_vec(),
            aligned: None,
        })
    }

    /// Labels that are compared with a teacher's: all, unless it has other tokens.
    pub fn compared(&self) -> usize {
        match &self.aligned {
            Some(aligned) => aligned.partners.iter().flatten().count(),
            None => self.targets(),
        }
    }

    /// Labels that are learned.
    pub fn targets(&self) -> usize {
        self.labels.iter().filter(|&&label| label != IGNORED).count()
    }
}

impl Aligned {
    /// Adds the pieces of the teacher that a piece of the student is compared with.
    fn add(&mut self, taught: &Taught, piece: &Piece, set: Set) {
        let teacher = &mut self.teacher;
        let mut placed = Vec::new();
        for rows in taught.cut(&piece.rows) {
            let start = teacher.batch.ids.len();
            teacher.batch.ids.extend_from_slice(&taught.document.ids[rows.clone()]);
            teacher.labels.extend_from_slice(&taught.document.labels[rows.clone()]);
            teacher.batch.documents.push(start..teacher.batch.ids.len());
            teacher.pieces.push(RecordId { set, row: piece.row, start: rows.start as u32 });
            placed.push((rows, start));
        }
        let place = |row: usize| {
            let (rows, start) = placed.iter().find(|(rows, _)| rows.contains(&row))?;
            Some(start + row - rows.start)
        };
        self.partners.extend(taught.partners[piece.rows.clone()].iter().map(|row| row.and_then(place)));
    }
}
