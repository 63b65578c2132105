//! Runs a teacher over the data of a run, and stores what it says.
//!
//! In: a run that names its teacher, and what is to be stored of each row. Out: one part of a cache. Rows of the data go through in order,
//! several pieces at a time; what was stored before a stop or a kill is not computed again. Training and validation rows are both
//! captured, so that a run can be evaluated against the cache as well.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use aludel_cache::{
    Contents, Header, HiddenRows, LogitBuffer, Part, RecordId, Rows, Set, SparseRows, Teacher, Writer,
    WriterOptions, content_check,
};
use aludel_checkpoint::DigestCache;
use aludel_document::Problem;
use aludel_kernels::loss::{Head, IGNORED, LossDevice, draw, likeliest, map_logits};
use aludel_model::evaluate::LOGIT_MEMORY;
use aludel_model::{Batch, Decoder, Keep, Tokenizer, Use};
use serde::Serialize;

use super::{head, identity};
use crate::data::{Corpus, Document, Encoder, Stream, StreamSettings};
use crate::error::Error;
use crate::inputs;
use crate::prepare;
use crate::run::Run;

/// What is stored of each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The likeliest columns.
    TopK {
        /// How many.
        k: u32,
    },
    /// Draws.
    Sampled {
        /// How many.
        draws: u32,
        /// Of the random numbers.
        seed: u64,
    },
    /// All logits in 8 bits.
    Int8,
    /// All logits in 4 bits.
    Int4,
    /// Hidden states.
    Hidden,
}

/// Levels of a probability's square root: with them the likeliest 128 lose less KL by rounding than by DistillKit's encoder.
pub const RESOLUTION: u32 = 352;

/// A capture.
pub struct Capture<'a> {
    /// Names teacher and data.
    pub run: &'a Run,
    /// The cache.
    pub folder: &'a Path,
    /// What is stored.
    pub wanted: Wanted,
    /// Temperatures that rows are to be taken at; those of the run's objective where none are given.
    pub temperatures: Option<Vec<f32>>,
    /// How it is written.
    pub options: WriterOptions,
    /// Where digests are remembered.
    pub digests: &'a DigestCache,
    /// Set from outside to stop.
    pub cancel: &'a AtomicBool,
    /// Told how far it is.
    pub on_stage: &'a dyn Fn(Stage),
}

/// How far a capture is.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Stage {
    /// So many bytes of the teacher's weights are hashed.
    Hashing {
        /// Done.
        done: u64,
        /// In all.
        total: u64,
    },
    /// So many of the part's rows of data have been through the teacher.
    Capturing {
        /// Rows of data done, earlier ones included.
        done: u64,
        /// Rows of data of the part.
        total: u64,
        /// Rows of data done since it began or went on.
        now: u64,
        /// Tokens that were learned of in them.
        targets: u64,
        /// Seconds since then.
        seconds: f64,
    },
}

/// What a capture did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Captured {
    /// Records of the part.
    pub records: u64,
    /// Rows of the part.
    pub targets: u64,
    /// Of these, rows that were there before.
    pub before: u64,
    /// Seconds that it took.
    pub seconds: f64,
    /// Seconds of these in the teacher: its forward passes alone.
    pub teacher_seconds: f64,
}

/// Captures a part.
///
/// # Errors
/// [`Error::Problems`] before anything is written; [`Error::Interrupted`], after which it can go on; [`Error::Cache`]; what computing
/// fails by.
pub fn capture<D: LossDevice>(device: &Arc<D>, settings: &Capture<'_>) -> Result<Captured, Error> {
    let begin = Instant::now();
    let run = settings.run;
    let Some(path) = &run.teacher else {
        return Err(Problem::general("the run names no teacher to capture")
            .with_hint("write `teacher: path/of/the/model`; the run that trains names the cache instead")
            .into());
    };
    let tokenizer = Arc::new(prepare::tokenizer(run).map_err(Error::into_problem)?);
    let sources = Sources::open(run, Arc::clone(&tokenizer)).map_err(Error::into_problem)?;
    let teacher =
        Decoder::open(path, Arc::clone(device), Use::Frozen).map_err(|e| Error::from(e).into_problem())?;
    let weights = inputs::weight_files(path, settings.digests, settings.cancel, &|done, total| {
        (settings.on_stage)(Stage::Hashing { done, total });
    })?;
    let head = match settings.wanted {
        Wanted::Hidden => Some(head::bytes(device.as_ref(), &teacher.head())?),
        _ => None,
    };
    let header = Header {
        version: aludel_cache::header::VERSION,
        contents: contents(settings.wanted, &teacher.head(), head.as_deref())?,
        vocabulary: teacher.head().valid as u32,
        temperatures: temperatures(settings)?,
        logits: matches!(settings.wanted, Wanted::TopK { .. }),
        tokenizer: identity::of_tokenizer(&tokenizer),
        data: identity::of_data(run, &tokenizer, &sources.fingerprint).map_err(Error::into_problem)?,
        teacher: Teacher { name: path.display().to_string(), weights },
        shift: 1,
        positions: "restart".to_owned(),
        parts: settings.options.part.of,
        tool: format!("aludel {}", env!("CARGO_PKG_VERSION")),
    };
    let writer = Writer::open(settings.folder, &header, head.as_deref(), settings.options)
        .map_err(|error| Error::from(error).into_problem())?;
    let before = writer.targets();
    let mut work = Work {
        settings,
        header: &header,
        teacher: &teacher,
        writer,
        waiting: Vec::new(),
        tokens: 0,
        room: run.data.sequence_length * run.train.micro_batch,
        teacher_seconds: 0.0,
    };
    work.run(&sources, begin)?;
    let (records, targets) = (work.writer.records(), work.writer.targets());
    let teacher_seconds = work.teacher_seconds;
    work.writer.finish()?;
    Ok(Captured { records, targets, before, seconds: begin.elapsed().as_secs_f64(), teacher_seconds })
}

/// The rows of a run's data, as pieces.
pub(super) struct Sources {
    sets: Vec<(Set, Stream)>,
    pub(super) fingerprint: String,
}

impl Sources {
    pub(super) fn open(run: &Run, tokenizer: Arc<Tokenizer>) -> Result<Self, Error> {
        let opened = Corpus::open(&run.data)?;
        let fingerprint = opened.fingerprint().to_owned();
        let encoder = Arc::new(Encoder::new(tokenizer, &run.data)?);
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
}

fn contents<B>(wanted: Wanted, head: &Head<'_, B>, file: Option<&[u8]>) -> Result<Contents, Error> {
    let columns = head.valid as u32;
    Ok(match wanted {
        Wanted::TopK { k } if k == 0 || k > columns => {
            return Err(Problem::general(format!("k is {k}, and the teacher has {columns} tokens"))
                .with_hint("give a k from 1 to the vocabulary")
                .into());
        }
        Wanted::TopK { k } => Contents::TopK { k, resolution: RESOLUTION },
        Wanted::Sampled { draws, seed } => Contents::Sampled { draws, seed },
        Wanted::Int8 => Contents::Int8 {},
        Wanted::Int4 => Contents::Int4 {},
        Wanted::Hidden => Contents::Hidden {
            width: head.width as u32,
            scale: head.scale,
            soft_cap: head.soft_cap,
            head: identity::sha256(file.unwrap_or_default()),
        },
    })
}

/// 1 first for the likeliest, then what the objective asks for; of draws, one.
fn temperatures(settings: &Capture<'_>) -> Result<Vec<f32>, Error> {
    let of_run = || settings.run.objective.divergences().iter().map(|term| term.temperature).collect();
    let asked: Vec<f32> = settings.temperatures.clone().unwrap_or_else(of_run);
    let mut distinct: Vec<f32> = Vec::new();
    let first = match settings.wanted {
        Wanted::TopK { .. } => Some(1.0),
        _ if asked.is_empty() => Some(1.0),
        _ => None,
    };
    for temperature in first.into_iter().chain(asked) {
        if !distinct.contains(&temperature) {
            distinct.push(temperature);
        }
    }
    if matches!(settings.wanted, Wanted::Sampled { .. }) && distinct.len() > 1 {
        return Err(Problem::general("draws are of one temperature, and the objective has several")
            .with_hint("give one by `--temperatures`, and a term with that temperature alone")
            .into());
    }
    Ok(distinct)
}

/// A capture at work.
struct Work<'a, D: LossDevice> {
    settings: &'a Capture<'a>,
    header: &'a Header,
    teacher: &'a Decoder<D>,
    writer: Writer,
    /// Pieces that go through the teacher together.
    waiting: Vec<(RecordId, Document)>,
    /// Of these.
    tokens: usize,
    /// The most tokens that go through together, but for a single piece.
    room: usize,
    teacher_seconds: f64,
}

impl<D: LossDevice> Work<'_, D> {
    fn run(&mut self, sources: &Sources, begin: Instant) -> Result<(), Error> {
        let part = self.settings.options.part;
        let last = self.writer.last();
        let total = sources.sets.iter().map(|(_, stream)| range_len(part, stream.rows())).sum();
        let (mut done, mut now, before) = (0, 0, self.writer.targets());
        for (set, stream) in &sources.sets {
            for row in part.share(stream.rows()) {
                done += 1;
                if last.is_some_and(|last| (last.set, last.row) > (*set, row)) {
                    continue;
                }
                now += 1;
                for (id, document) in stream.pieces(row)? {
                    if last.is_none_or(|last| last < id) {
                        self.add(id, document)?;
                    }
                }
                (self.settings.on_stage)(Stage::Capturing {
                    done,
                    total,
                    now,
                    targets: self.writer.targets() - before,
                    seconds: begin.elapsed().as_secs_f64(),
                });
            }
        }
        self.flush()
    }

    fn add(&mut self, id: RecordId, document: Document) -> Result<(), Error> {
        if self.tokens + document.ids.len() > self.room {
            self.flush()?;
        }
        self.tokens += document.ids.len();
        self.waiting.push((id, document));
        Ok(())
    }

    /// Asks the teacher about what waits, and stores what it says.
    fn flush(&mut self) -> Result<(), Error> {
        if self.settings.cancel.load(Relaxed) {
            return Err(Error::Interrupted);
        }
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
        self.teacher_seconds += begin.elapsed().as_secs_f64();
        let head = teacher.head();
        let mut targets = Vec::new();
        for (documents, (id, document)) in batch.documents.iter().zip(&waiting) {
            let rows = document.labels.iter().enumerate().filter(|(_, label)| **label != IGNORED);
            targets.extend(rows.map(|(at, _)| Target { row: documents.start + at, id: *id, at: at as u32 }));
        }
        let made = match self.header.contents {
            Contents::Hidden { .. } => {
                let row = |target: &Target| {
                    let start = target.row * head.width;
                    Ok(Made::Hidden(device.read(pass.hidden(), start..start + head.width)?))
                };
                targets.iter().map(row).collect::<Result<Vec<_>, Error>>()?
            }
            _ => {
                let rows: Vec<usize> = targets.iter().map(|target| target.row).collect();
                let (header, targets) = (self.header, &targets);
                map_logits(device, (&head, pass.hidden()), &rows, LOGIT_MEMORY, |at, logits| {
                    extract(header, targets[at], logits)
                })?
            }
        };
        drop(pass);
        let mut made = made.into_iter();
        for (id, document) in waiting {
            let rows: Vec<Made> = made.by_ref().take(document.targets()).collect();
            self.store(id, &document, rows)?;
        }
        Ok(())
    }

    fn store(&mut self, id: RecordId, document: &Document, rows: Vec<Made>) -> Result<(), Error> {
        let check = content_check(&document.ids, &document.labels);
        let mut sparse = SparseRows::default();
        let mut logits =
            LogitBuffer::new(self.header.vocabulary as usize, self.header.contents == (Contents::Int8 {}));
        let mut hidden = HiddenRows::default();
        for row in rows {
            match row {
                Made::Sparse(row) => join(&mut sparse, *row),
                Made::Logits(row) => logits.append(&row?),
                Made::Hidden(row) => {
                    hidden.width = row.len();
                    hidden.values.extend(row);
                }
            }
        }
        let rows = match self.header.contents {
            Contents::TopK { .. } | Contents::Sampled { .. } => Rows::Sparse(sparse),
            Contents::Int8 {} | Contents::Int4 {} => Rows::Logits(logits.rows()),
            Contents::Hidden { .. } => Rows::Hidden(hidden),
        };
        Ok(self.writer.append(id, check, &rows)?)
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
    Logits(Result<LogitBuffer, aludel_cache::Error>),
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
        _ => {
            let mut buffer = LogitBuffer::new(logits.len(), header.contents == (Contents::Int8 {}));
            let pushed = buffer.push(logits);
            Made::Logits(pushed.map(|()| buffer))
        }
    }
}

fn join(all: &mut SparseRows, row: SparseRows) {
    all.ids.extend(row.ids);
    all.log_p.extend(row.log_p);
    all.ends.push(all.ids.len());
    all.tails.extend(row.tails);
    all.log_sums.extend(row.log_sums);
    all.entropies.extend(row.entropies);
}

fn range_len(part: Part, rows: u64) -> u64 {
    let share = part.share(rows);
    share.end - share.start
}
