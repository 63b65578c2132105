//! Asks a teacher that runs here what it says of pieces, several at a time.
//!
//! In: pieces in order. Out: for each its rows, in the form that the cache's header names. Pieces go through the teacher packed, as many as
//! fill a micro-batch of the run; none sees another.

use std::collections::VecDeque;
use std::time::Instant;

use aludel_cache::{Contents, Header, HiddenRows, RecordId, Set, SparseRows};
use aludel_kernels::loss::{
    IGNORED, LevelBits, LossDevice, Quantised, draw, each_logits, likeliest, map_logits, quantise,
};
use aludel_model::{Batch, Decoder, Keep};

use super::capture::{Capture, Speaker};
use super::store::{Gathered, Store};
use crate::data::Document;
use crate::error::Error;

/// A teacher at work.
pub(super) struct LocalTeacher<'a, D: LossDevice> {
    teacher: &'a Decoder<D>,
    header: Header,
    /// Pieces that go through the teacher together.
    waiting: Vec<(RecordId, Document)>,
    /// Of these.
    tokens: usize,
    /// The most tokens that go through together, but for a single piece.
    room: usize,
    /// Nothing is taken out of what it says.
    is_dry: bool,
    seconds: f64,
}

impl<'a, D: LossDevice> LocalTeacher<'a, D> {
    pub(super) fn new(teacher: &'a Decoder<D>, header: Header, settings: &Capture<'_>) -> Self {
        let room = settings.run.data.sequence_length * settings.run.train.micro_batch;
        let is_dry = settings.is_dry;
        Self { teacher, header, waiting: Vec::new(), tokens: 0, room, is_dry, seconds: 0.0 }
    }

    /// The rows of a piece, as they were made: joining them is the writer's work.
    fn gathered(&self, rows: impl Iterator<Item = Made>) -> Gathered {
        let (mut sparse, mut logits, mut hidden) = (Vec::new(), Vec::new(), HiddenRows::default());
        for row in rows {
            match row {
                Made::Sparse(row) => sparse.push(*row),
                Made::Logits(row) => logits.push(row),
                Made::Hidden(row) => {
                    hidden.width = row.len();
                    hidden.values.extend(row);
                }
            }
        }
        match self.header.contents {
            Contents::TopK { .. } | Contents::Sampled { .. } => Gathered::Sparse(sparse),
            Contents::Int8 {} | Contents::Int4 {} => Gathered::Logits(logits),
            Contents::Hidden { .. } => Gathered::Hidden(hidden),
        }
    }
}

impl<D: LossDevice> Speaker for LocalTeacher<'_, D> {
    fn take(&mut self, id: RecordId, document: Document, store: &mut Store<'_>) -> Result<(), Error> {
        if self.tokens + document.ids.len() > self.room {
            self.settle(store)?;
        }
        self.tokens += document.ids.len();
        self.waiting.push((id, document));
        Ok(())
    }

    fn outstanding(&self) -> usize {
        self.waiting.len()
    }

    /// Asks the teacher about all that waits, and stores what it says.
    fn settle(&mut self, store: &mut Store<'_>) -> Result<(), Error> {
        store.check_cancel()?;
        let waiting = std::mem::take(&mut self.waiting);
        self.tokens = 0;
        if waiting.is_empty() {
            return Ok(());
        }
        let teacher = self.teacher;
        let device = teacher.device().as_ref();
        let batch = Batch::pack(waiting.iter().map(|(_, document)| document.ids.as_slice()));
        let begin = Instant::now();
        let pass = teacher.forward(&batch, Keep::Nothing, &[])?;
        self.seconds += begin.elapsed().as_secs_f64();
        let head = teacher.head();
        let mut targets = Vec::new();
        for (documents, (id, document)) in batch.documents.iter().zip(&waiting) {
            let rows = document.labels.iter().enumerate().filter(|(_, label)| **label != IGNORED);
            targets.extend(rows.map(|(at, _)| Target { row: documents.start + at, id: *id, at: at as u32 }));
        }
        if self.is_dry {
            if !matches!(self.header.contents, Contents::Hidden { .. }) {
                let rows: Vec<usize> = targets.iter().map(|target| target.row).collect();
                map_logits(device, (&head, pass.hidden()), &rows, device.logit_memory(), |_, logits| {
                    logits[0]
                })?;
            }
            waiting.iter().for_each(|(_, document)| store.count(document));
            return Ok(());
        }
        let (mut waiting, mut made) = (waiting.into_iter().peekable(), VecDeque::new());
        // A piece is stored as soon as all its rows are made, beside those of the next.
        let mut take = |rows: Vec<Made>| {
            made.extend(rows);
            while let Some((id, document)) = waiting.next_if(|(_, document)| document.targets() <= made.len())
            {
                let rows = self.gathered(made.drain(..document.targets()));
                store.append(id, &document, rows)?;
            }
            Ok::<(), Error>(())
        };
        match self.header.contents {
            Contents::Hidden { .. } => {
                let row = |target: &Target| {
                    let start = target.row * head.width;
                    Ok(Made::Hidden(device.read(pass.hidden(), start..start + head.width)?))
                };
                take(targets.iter().map(row).collect::<Result<Vec<_>, Error>>()?)
            }
            _ => {
                let rows: Vec<usize> = targets.iter().map(|target| target.row).collect();
                let (header, targets) = (&self.header, &targets);
                let memory = device.logit_memory();
                let extract = |at: usize, logits: &[f32]| extract(header, targets[at], logits);
                each_logits(device, (&head, pass.hidden()), &rows, memory, extract, &mut take)?;
                // Of pieces without rows.
                take(Vec::new())
            }
        }
    }

    fn seconds(&self) -> f64 {
        self.seconds
    }
}

/// A row that something is stored of.
#[derive(Clone, Copy)]
struct Target {
    /// In the batch.
    row: usize,
    id: RecordId,
    /// In its piece.
    at: u32,
}

/// What is stored of a row.
enum Made {
    Sparse(Box<SparseRows>),
    Logits(Option<Quantised>),
    Hidden(Vec<f32>),
}

fn extract(header: &Header, target: Target, logits: &[f32]) -> Made {
    match header.contents {
        Contents::TopK { k, .. } => {
            let found = likeliest(logits, k as usize, &header.temperatures);
            Made::Sparse(Box::new(SparseRows {
                ends: vec![found.ids.len()],
                ids: found.ids,
                log_p: found.log_p,
                tails: found.tails,
                log_sums: vec![found.log_sum],
                entropies: Vec::new(),
            }))
        }
        Contents::Sampled { draws, seed } => {
            let RecordId { set, row, start } = target.id;
            let high = (row >> 32) as u32 | u32::from(set == Set::Validation) << 31;
            let drawn =
                draw(logits, header.temperatures[0], draws, seed, [row as u32, high, start + target.at]);
            let share = |&count: &u32| (f64::from(count) / f64::from(draws)).ln() as f32;
            Made::Sparse(Box::new(SparseRows {
                ends: vec![drawn.ids.len()],
                log_p: drawn.counts.iter().map(share).collect(),
                ids: drawn.ids,
                entropies: vec![drawn.entropy],
                ..SparseRows::default()
            }))
        }
        Contents::Int4 {} => Made::Logits(quantise(logits, LevelBits::Four)),
        Contents::Int8 {} | Contents::Hidden { .. } => Made::Logits(quantise(logits, LevelBits::Eight)),
    }
}
