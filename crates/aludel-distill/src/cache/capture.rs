//! Runs a teacher over the data of a run, and stores what it says.
//!
//! In: a run that names its teacher, and what is to be stored of each row. Out: one part of a cache. Rows of the data go through in order;
//! what was stored before a stop or a kill is not asked again. Training and validation rows are both captured, so that a run can be
//! evaluated against the cache as well. How a teacher is asked stands in `local` and `served`.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use aludel_cache::{Contents, Folder, Header, RecordId, Shelf, Teacher, Writer, WriterOptions};
use aludel_checkpoint::DigestCache;
use aludel_document::Problem;
use aludel_kernels::loss::{Head, LossDevice};
use aludel_model::{Decoder, Tokenizer, Use};
use serde::Serialize;

use super::local::LocalTeacher;
use super::served::{self, Endpoint, ServedRows};
use super::sources::Sources;
use super::store::{Store, stored};
use super::{head, identity};
use crate::data::Document;
use crate::error::Error;
use crate::inputs;
use crate::prepare::Tokenizers;
use crate::run::{Run, ServedTeacher};

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
    /// What the header calls the teacher that runs here; its path, without it.
    pub teacher: Option<&'a str>,
    /// The cache, or with a shelf the place where its files grow.
    pub folder: &'a Path,
    /// Where complete files are put, where not in the folder.
    pub shelf: Option<Arc<dyn Shelf>>,
    /// What is stored.
    pub wanted: Wanted,
    /// Temperatures that rows are to be taken at; those of the run's objective where none are given.
    pub temperatures: Option<Vec<f32>>,
    /// How it is written.
    pub options: WriterOptions,
    /// The teacher says everything that it would for a capture, and nothing is stored of it.
    pub is_dry: bool,
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
    /// Seconds of these in the teacher: its forward passes alone, or waiting for one that is served.
    pub teacher_seconds: f64,
    /// Seconds of these from the first piece to the last record, when models and files were open.
    pub pass_seconds: f64,
}

/// Captures a part.
///
/// # Errors
/// [`Error::Problems`] before anything is written; [`Error::Interrupted`], after which it can go on; [`Error::Cache`]; what computing
/// fails by; [`Error::Served`].
pub fn capture<D: LossDevice>(device: &Arc<D>, settings: &Capture<'_>) -> Result<Captured, Error> {
    let run = settings.run;
    if run.teacher.is_none() && run.served.is_none() {
        return Err(Problem::general("the run names no teacher to capture")
            .with_hint("write `teacher: path/of/the/model`; the run that trains names the cache instead")
            .into());
    }
    let tokenizer = Arc::clone(Tokenizers::of(run).map_err(Error::into_problem)?.of_teacher());
    let sources = Sources::open(run, Arc::clone(&tokenizer)).map_err(Error::into_problem)?;
    let job = Job { settings, begin: Instant::now(), tokenizer, sources };
    match (&run.teacher, &run.served) {
        (Some(path), _) => job.local(device, path),
        (None, Some(teacher)) => job.served(teacher),
        (None, None) => Err(Error::internal("a run without a teacher")),
    }
}

/// What gives the rows of pieces.
pub(super) trait Speaker {
    /// Takes the next piece, and stores the rows of any earlier ones that it has, in order.
    fn take(&mut self, id: RecordId, document: Document, store: &mut Store<'_>) -> Result<(), Error>;

    /// Pieces that were taken and whose rows are not stored.
    fn outstanding(&self) -> usize;

    /// Waits for rows of some of these, and stores those whose turn it is.
    fn settle(&mut self, store: &mut Store<'_>) -> Result<(), Error>;

    /// Seconds in the teacher.
    fn seconds(&self) -> f64;
}

/// A capture, its data open.
struct Job<'a> {
    settings: &'a Capture<'a>,
    begin: Instant,
    tokenizer: Arc<Tokenizer>,
    sources: Sources,
}

impl Job<'_> {
    fn local<D: LossDevice>(&self, device: &Arc<D>, path: &Path) -> Result<Captured, Error> {
        let settings = self.settings;
        let teacher = Decoder::open(path, Arc::clone(device), Use::Frozen)
            .map_err(|e| Error::from(e).into_problem())?;
        let weights = inputs::weight_files(path, settings.digests, settings.cancel, &|done, total| {
            (settings.on_stage)(Stage::Hashing { done, total });
        })?;
        let head = match settings.wanted {
            Wanted::Hidden => Some(head::bytes(device.as_ref(), &teacher.head())?),
            _ => None,
        };
        let name = settings.teacher.map_or_else(|| path.display().to_string(), str::to_owned);
        let header = Header {
            contents: contents(settings.wanted, &teacher.head(), head.as_deref())?,
            vocabulary: teacher.head().valid as u32,
            temperatures: temperatures(settings)?,
            logits: matches!(settings.wanted, Wanted::TopK { .. }),
            ..self.header(Teacher { name, weights, url: None })?
        };
        let speaker = LocalTeacher::new(&teacher, header.clone(), settings);
        self.walk(&header, head.as_deref(), speaker)
    }

    fn served(&self, teacher: &ServedTeacher) -> Result<Captured, Error> {
        let settings = self.settings;
        if settings.is_dry {
            return Err(Problem::general("a dry run is of a teacher that runs here, and this one is served")
                .with_hint("name a model folder as the teacher, or leave `--dry-run` out")
                .into());
        }
        let k = served::tokens_of(settings.wanted, &temperatures(settings)?)?;
        let vocabulary = served::vocabulary(settings.run, &self.tokenizer)?;
        if k > vocabulary {
            return Err(too_many(k, vocabulary));
        }
        let mut endpoint =
            Endpoint::open(teacher, k, vocabulary, &self.tokenizer).map_err(Error::into_problem)?;
        if let Some(first) = self
            .sources
            .after(settings.options.part, None)
            .find_map(|row| row.map(|(_, pieces)| pieces.into_iter().next()).transpose())
        {
            let (_, document) = first?;
            endpoint.probe(&document, settings.run, &self.tokenizer, settings.cancel)?;
        }
        let header = Header {
            contents: Contents::TopK { k, resolution: RESOLUTION },
            vocabulary,
            ..self.header(Teacher {
                name: teacher.model.clone(),
                weights: Vec::new(),
                url: Some(teacher.url.clone()),
            })?
        };
        self.walk(&header, None, ServedRows::start(endpoint))
    }

    /// A header but for what depends on the teacher's form.
    fn header(&self, teacher: Teacher) -> Result<Header, Error> {
        let run = self.settings.run;
        Ok(Header {
            version: aludel_cache::header::VERSION,
            contents: Contents::Int8 {},
            vocabulary: 0,
            temperatures: vec![1.0],
            logits: false,
            tokenizer: identity::of_tokenizer(&self.tokenizer),
            data: identity::of_data(run, &self.tokenizer, &self.sources.fingerprint)
                .map_err(Error::into_problem)?,
            teacher,
            shift: 1,
            positions: "restart".to_owned(),
            parts: self.settings.options.part.of,
            tool: format!("aludel {}", env!("CARGO_PKG_VERSION")),
        })
    }

    /// Has the speaker say what is not stored yet.
    fn walk(
        &self,
        header: &Header,
        head: Option<&[u8]>,
        mut speaker: impl Speaker,
    ) -> Result<Captured, Error> {
        let Capture { options, folder, cancel, on_stage, is_dry, .. } = *self.settings;
        let own = || -> Arc<dyn Shelf> { Arc::new(Folder::new(folder, options.sync)) };
        let shelf = self.settings.shelf.clone().unwrap_or_else(own);
        let open = || Writer::open_on(shelf, folder, header, head, options);
        let writer = (!is_dry).then(open).transpose().map_err(|error| Error::from(error).into_problem())?;
        let (last, before) = writer.as_ref().map_or((None, 0), |writer| (writer.last(), writer.targets()));
        let total = self.sources.rows(options.part);
        let begin = Instant::now();
        let (targets, writer) = stored(writer, cancel, |store| {
            let mut rows = RowsUnderWay::default();
            let show = |rows: &mut RowsUnderWay, outstanding, store: &Store<'_>| {
                let (done, now) = rows.done(outstanding);
                let (targets, seconds) = (store.targets(), self.begin.elapsed().as_secs_f64());
                on_stage(Stage::Capturing { done, total, now, targets, seconds });
            };
            for row in self.sources.after(options.part, last) {
                let (done, pieces) = row?;
                rows.begin(done);
                for (id, document) in pieces {
                    speaker.take(id, document, store)?;
                    rows.taken += 1;
                    show(&mut rows, speaker.outstanding(), store);
                }
                rows.end(done);
            }
            while speaker.outstanding() > 0 {
                speaker.settle(store)?;
                show(&mut rows, speaker.outstanding(), store);
            }
            show(&mut rows, 0, store);
            Ok(before + store.targets())
        })?;
        let records = writer.as_ref().map_or(0, Writer::records);
        writer.map(Writer::finish).transpose()?;
        Ok(Captured {
            records,
            targets,
            before,
            seconds: self.begin.elapsed().as_secs_f64(),
            teacher_seconds: speaker.seconds(),
            pass_seconds: begin.elapsed().as_secs_f64(),
        })
    }
}

/// Rows of data whose pieces were taken, until all of these are stored.
#[derive(Debug, Default)]
struct RowsUnderWay {
    /// Pieces that were taken.
    taken: u64,
    /// Of each row, the pieces up to its end, its number, and its number among those of this run.
    ends: VecDeque<(u64, u64, u64)>,
    begun: u64,
    done: (u64, u64),
}

impl RowsUnderWay {
    /// The row of this number begins.
    fn begin(&mut self, number: u64) {
        if self.begun == 0 {
            self.done.0 = number.saturating_sub(1);
        }
        self.begun += 1;
    }

    /// All pieces of the row of this number were taken.
    fn end(&mut self, number: u64) {
        self.ends.push_back((self.taken, number, self.begun));
    }

    /// The last row that is stored, and how many this run has stored, where so many pieces are not.
    fn done(&mut self, outstanding: usize) -> (u64, u64) {
        let settled = self.taken - outstanding as u64;
        while let Some(&(_, number, count)) = self.ends.front().filter(|(end, ..)| *end <= settled) {
            self.done = (number, count);
            self.ends.pop_front();
        }
        self.done
    }
}

fn too_many(k: u32, columns: u32) -> Error {
    Problem::general(format!("k is {k}, and the teacher has {columns} tokens"))
        .with_hint("give a k from 1 to the vocabulary")
        .into()
}

fn contents<B>(wanted: Wanted, head: &Head<'_, B>, file: Option<&[u8]>) -> Result<Contents, Error> {
    let columns = head.valid as u32;
    Ok(match wanted {
        Wanted::TopK { k } if k == 0 || k > columns => return Err(too_many(k, columns)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_done_when_all_its_pieces_are_stored() {
        let mut rows = RowsUnderWay::default();
        // Three were done by an earlier run; the fourth has three pieces, the fifth none, the sixth one.
        rows.begin(4);
        rows.taken += 3;
        assert_eq!(rows.done(1), (3, 0));
        rows.end(4);
        assert_eq!(rows.done(1), (3, 0));
        rows.begin(5);
        rows.end(5);
        rows.begin(6);
        rows.taken += 1;
        rows.end(6);
        assert_eq!(rows.done(2), (3, 0));
        assert_eq!(rows.done(1), (5, 2));
        assert_eq!(rows.done(0), (6, 3));
    }
}
