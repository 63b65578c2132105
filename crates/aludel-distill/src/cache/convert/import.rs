//! Stores the rows of a source as the records of a run's data.
//!
//! In: a source, and the run that is to be trained from it. Out: a cache, or one part of it. Which rows there are, their tokens and labels
//! are the run's to say; the source is gone through in order beside them, and gives its log-probabilities where its tokens are the run's.
//! What was stored before a stop or a kill is not converted again. Memory holds one row of the source.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use aludel_cache::{
    Contents, Header, RecordId, Rows, SparseRows, Teacher, Writer, WriterOptions, content_check,
};
use aludel_checkpoint::DigestCache;
use aludel_document::Problem;
use aludel_kernels::loss::{IGNORED, Tail};
use aludel_model::Tokenizer;
use serde::Serialize;

use super::super::capture::{RESOLUTION, Stage};
use super::super::identity;
use super::super::sources::Sources;
use super::super::taught::check_objective;
use super::likeliest::{self, EXACT, FITTED, Rules};
use super::source::{Source, of_list};
use crate::data::Document;
use crate::error::Error;
use crate::inputs;
use crate::prepare;
use crate::run::Run;

/// A conversion into a cache.
pub struct Import<'a> {
    /// A Parquet or JSON Lines file, or a folder of them.
    pub source: &'a Path,
    /// The cache.
    pub folder: &'a Path,
    /// Names the data, and the tokenizer by its student.
    pub run: &'a Run,
    /// How DistillKit packed the rows, where it did.
    pub compression: Option<&'a Path>,
    /// Who spoke: a model whose weights are hashed, or a name. Otherwise the run's teacher, where it names one.
    pub teacher: Option<&'a Path>,
    /// Every id is below; otherwise what the tokenizer has.
    pub vocabulary: Option<u32>,
    /// Tokens of a position that are kept; otherwise as many as the first row has.
    pub k: Option<u32>,
    /// The values are logits, of the whole distribution.
    pub are_logits: bool,
    /// How the cache is written.
    pub options: WriterOptions,
    /// Where digests are remembered.
    pub digests: &'a DigestCache,
    /// Set from outside to stop.
    pub cancel: &'a AtomicBool,
    /// Told how far it is.
    pub on_stage: &'a dyn Fn(Stage),
}

/// What a conversion did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Imported {
    /// Records of the part.
    pub records: u64,
    /// Rows of the part.
    pub targets: u64,
    /// Of these, rows that were there before.
    pub before: u64,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Converts a part.
///
/// # Errors
/// [`Error::Problems`] before anything is written; [`Error::Rows`] for a row that cannot be stored; [`Error::Interrupted`], after which it
/// can go on; [`Error::Cache`].
pub fn import(settings: &Import<'_>) -> Result<Imported, Error> {
    let begin = Instant::now();
    let run = settings.run;
    let tokenizer = Arc::new(prepare::tokenizer(run).map_err(Error::into_problem)?);
    let sources = Sources::open(run, Arc::clone(&tokenizer)).map_err(Error::into_problem)?;
    let mut source = Source::open(settings.source, settings.compression).map_err(Error::into_problem)?;
    let header = header(settings, &tokenizer, &sources, &mut source)?;
    check_objective(&header, Tail::Bucket, run)?;
    let writer = Writer::open(settings.folder, &header, None, settings.options)
        .map_err(|error| Error::from(error).into_problem())?;
    let before = writer.targets();
    let mut work = Work { settings, header: &header, source, writer, passed: 0 };
    work.run(&sources, begin)?;
    let (records, targets) = (work.writer.records(), work.writer.targets());
    work.writer.finish()?;
    Ok(Imported { records, targets, before, seconds: begin.elapsed().as_secs_f64() })
}

fn header(
    settings: &Import<'_>,
    tokenizer: &Tokenizer,
    sources: &Sources,
    source: &mut Source,
) -> Result<Header, Error> {
    let of_tokenizer = u32::try_from(tokenizer.vocabulary()).unwrap_or(u32::MAX);
    let vocabulary = settings.vocabulary.unwrap_or(of_tokenizer.max(source.vocabulary().unwrap_or(0)));
    let k = match settings.k {
        Some(k) => k,
        None => first_k(source).map_err(Error::into_problem)?,
    };
    if k == 0 || k > vocabulary {
        let message = format!("k is {k}, and the vocabulary has {vocabulary} tokens");
        return Err(Problem::general(message).with_hint("give a k from 1 to the vocabulary").into());
    }
    Ok(Header {
        version: aludel_cache::header::VERSION,
        contents: Contents::TopK { k, resolution: RESOLUTION },
        vocabulary,
        temperatures: vec![1.0],
        logits: false,
        tokenizer: identity::of_tokenizer(tokenizer),
        data: identity::of_data(settings.run, tokenizer, &sources.fingerprint)
            .map_err(Error::into_problem)?,
        teacher: teacher(settings)?,
        shift: 1,
        positions: "restart".to_owned(),
        parts: settings.options.part.of,
        tool: format!("aludel {}", env!("CARGO_PKG_VERSION")),
    })
}

/// How many tokens the positions of the first row have.
fn first_k(source: &mut Source) -> Result<u32, Error> {
    if source.next_tokens()?.is_none() {
        return Err(Problem::general("the source has no row").into());
    }
    let ends = source.told()?.id_ends;
    source.rewind();
    let starts = std::iter::once(0).chain(ends.iter().copied());
    let most = starts.zip(&ends).map(|(start, end)| end - start).max().unwrap_or(0);
    Ok(u32::try_from(most).unwrap_or(u32::MAX))
}

/// Who spoke: weights can be hashed where they are there.
fn teacher(settings: &Import<'_>) -> Result<Teacher, Error> {
    let of_run = || {
        let run = settings.run;
        run.cache.as_ref().and_then(|cache| cache.model.as_deref()).or(run.teacher.as_deref())
    };
    let Some(given) = settings.teacher.or_else(of_run) else {
        return Ok(Teacher {
            name: format!("unknown, from {}", settings.source.display()),
            weights: Vec::new(),
            url: None,
        });
    };
    let weights = if given.exists() {
        let show = |done, total| (settings.on_stage)(Stage::Hashing { done, total });
        inputs::weight_files(given, settings.digests, settings.cancel, &show).map_err(Error::into_problem)?
    } else {
        Vec::new()
    };
    Ok(Teacher { name: given.display().to_string(), weights, url: None })
}

/// A conversion at work.
struct Work<'a> {
    settings: &'a Import<'a>,
    header: &'a Header,
    source: Source,
    writer: Writer,
    /// Rows of the source that were passed since the last that was stored.
    passed: u64,
}

impl Work<'_> {
    fn run(&mut self, sources: &Sources, begin: Instant) -> Result<(), Error> {
        let part = self.settings.options.part;
        let (last, before, total) = (self.writer.last(), self.writer.targets(), sources.rows(part));
        let mut set = None;
        for (row, now) in sources.after(part, last).zip(1..) {
            if self.settings.cancel.load(Relaxed) {
                return Err(Error::Interrupted);
            }
            let (done, pieces) = row?;
            for (id, document) in pieces {
                if set.replace(id.set) != Some(id.set) {
                    // Rows that are kept for validation may stand anywhere among the others.
                    self.source.rewind();
                }
                self.store(id, &document)?;
            }
            (self.settings.on_stage)(Stage::Capturing {
                done,
                total,
                now,
                targets: self.writer.targets() - before,
                seconds: begin.elapsed().as_secs_f64(),
            });
        }
        Ok(())
    }

    fn store(&mut self, id: RecordId, document: &Document) -> Result<(), Error> {
        if id.start > 0 {
            let message = format!(
                "{id} is a part of a document, and what the source says of it rests on what comes before"
            );
            let hint =
                "raise `sequence_length` so that no document is split, or write `long_documents: truncate`";
            return Err(self.source.problem(message, Some(hint.to_owned())));
        }
        self.find(id, document)?;
        let told = self.source.told()?;
        let fail = |source: &Source, message: String| Err(source.problem(message, None));
        if told.id_ends.len() != told.value_ends.len() {
            let (ids, values) = (told.id_ends.len(), told.value_ends.len());
            return fail(&self.source, format!("ids of {ids} tokens beside log-probabilities of {values}"));
        }
        let rules = self.rules();
        let mut rows = SparseRows::default();
        for (at, _) in document.labels.iter().enumerate().filter(|(_, label)| **label != IGNORED) {
            if at >= told.id_ends.len() {
                let count = told.id_ends.len();
                return fail(
                    &self.source,
                    format!("it says nothing of token {at}, only of {count}, and the one after is learned"),
                );
            }
            let ids = of_list(&told.ids, &told.id_ends, at);
            let values = of_list(&told.values, &told.value_ends, at);
            likeliest::push(&rules, ids, values, &mut rows)
                .or_else(|detail| fail(&self.source, format!("token {at}: {detail}")))?;
        }
        let check = content_check(&document.ids, &document.labels);
        self.writer.append(id, check, &Rows::Sparse(rows))?;
        self.passed = 0;
        Ok(())
    }

    fn rules(&self) -> Rules {
        let k = match self.header.contents {
            Contents::TopK { k, .. } => k,
            _ => 0,
        };
        Rules {
            vocabulary: self.header.vocabulary,
            k,
            is_cut: self.settings.k.is_some(),
            are_logits: self.settings.are_logits,
            slack: if self.source.is_fitted() { FITTED } else { EXACT },
        }
    }

    /// Goes on to the next row of the source that has a document's tokens.
    fn find(&mut self, id: RecordId, document: &Document) -> Result<(), Error> {
        while let Some(tokens) = self.source.next_tokens()? {
            if has(&tokens, document) {
                return Ok(());
            }
            self.passed += 1;
        }
        let source = self.settings.source.display();
        let message = format!(
            "{source} has no row with the tokens of {id} of the run's data; {} rows after the last one that was found were looked at",
            self.passed
        );
        let hint = "the source has to hold the run's rows, in their order, as the run's tokenizer makes them; where it has the tokens only, \
                    name its own files under `data`: `train: [ROWS.parquet]`";
        Err(Problem::general(message).with_hint(hint).into())
    }
}

/// Whether a source's row begins with a document: it may go on, with padding or what was cut off.
fn has(tokens: &[i64], document: &Document) -> bool {
    let same = |(token, id): (&i64, &u32)| *token == i64::from(*id);
    let length = document.ids.len();
    let next = document.labels.last().map(|label| i64::from(*label));
    tokens.len() >= length
        && tokens.iter().zip(&document.ids).all(same)
        && tokens.get(length).is_none_or(|token| Some(*token) == next)
}
