//! Writes the rows of a cache as a Parquet file.
//!
//! In: a cache, and where tokens are wanted, a run that it fits. Out: one row for each record, either with everything that the cache has of it,
//! or as DistillKit reads what it does not unpack. The cache's header lies beside the columns of the former, so that [`mod@super::restore`] makes a
//! cache of them again. Memory holds one row group.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use aludel_cache::{
    Cache, Contents, Header, LogitRows, Record, RecordId, Rows, Set, SparseRows, content_check,
};
use aludel_document::{Problem, Problems};
use aludel_kernels::loss::{IGNORED, likeliest};
use serde::Serialize;

use super::super::identity;
use super::super::sources::Sources;
use super::table::{Cells, Kind, Shape, TableWriter};
use crate::data::Document;
use crate::error::Error;
use crate::prepare;
use crate::run::Run;

/// The note that holds a cache's header.
pub(super) const HEADER: &str = "aludel.cache";

/// The log-probability of a token that fills a place.
const NOTHING: f32 = -100.0;

/// A cache on its way into a file.
pub struct Export<'a> {
    /// The cache.
    pub cache: &'a Path,
    /// The file.
    pub file: &'a Path,
    /// What its rows are to be like.
    pub layout: Layout,
    /// The run whose data the cache is of: gives the tokens.
    pub run: Option<&'a Run>,
    /// Whether the file waits for the disk.
    pub sync: bool,
    /// Set from outside to stop.
    pub cancel: &'a AtomicBool,
    /// Told how many records are done, of how many; tokens; and seconds.
    pub on_record: &'a dyn Fn(usize, usize, u64, f64),
}

/// What rows of a file are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Everything that a cache has.
    Whole,
    /// As many of the likeliest tokens at every position, as DistillKit reads them.
    DistillKit {
        /// How many, where the cache has all.
        k: u32,
    },
}

/// What an export did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exported {
    /// Rows of the file.
    pub records: usize,
    /// Tokens in them that the teacher speaks of.
    pub targets: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Exports a cache.
///
/// # Errors
/// [`Error::Problems`] before anything is written; [`Error::Cache`]; [`Error::Io`]; [`Error::Interrupted`].
pub fn export(settings: &Export<'_>) -> Result<Exported, Error> {
    let begin = Instant::now();
    let cache = Cache::open(settings.cache).map_err(|error| Error::from(error).into_problem())?;
    let header = cache.header();
    let tokens = settings.run.map(|run| fitting(run, &cache)).transpose()?;
    let columns = match settings.layout {
        Layout::Whole => whole(header, tokens.is_some()),
        Layout::DistillKit { .. } => plain(header, tokens.is_some())?,
    };
    let notes = match settings.layout {
        Layout::Whole => {
            let text = serde_json::to_string(header).map_err(|error| Error::internal(error.to_string()))?;
            vec![(HEADER.to_owned(), text)]
        }
        Layout::DistillKit { .. } => Vec::new(),
    };
    let mut table = TableWriter::create(settings.file, &columns, notes).map_err(Error::into_problem)?;
    let mut targets = 0;
    for (at, id) in cache.ids().enumerate() {
        if settings.cancel.load(Relaxed) {
            return Err(Error::Interrupted);
        }
        let record = cache.record(id)?;
        let document = tokens.as_ref().map(|sources| piece(sources, &record, id)).transpose()?;
        let pushed = match settings.layout {
            Layout::Whole => push_whole(&mut table, header, id, &record, document.as_ref()),
            Layout::DistillKit { k } => {
                push_plain(&mut table, header, &record, &document.unwrap_or_default(), k)
            }
        };
        pushed?;
        table.end_row()?;
        targets += record.targets() as u64;
        (settings.on_record)(at + 1, cache.len(), targets, begin.elapsed().as_secs_f64());
    }
    table.finish(settings.sync)?;
    let bytes = settings.file.metadata().map_or(0, |metadata| metadata.len());
    Ok(Exported { records: cache.len(), targets, bytes, seconds: begin.elapsed().as_secs_f64() })
}

/// The data of a run that a cache is of.
fn fitting(run: &Run, cache: &Cache) -> Result<Sources, Error> {
    let tokenizer = Arc::new(prepare::tokenizer(run).map_err(Error::into_problem)?);
    let sources = Sources::open(run, Arc::clone(&tokenizer)).map_err(Error::into_problem)?;
    let data = identity::of_data(run, &tokenizer, &sources.fingerprint).map_err(Error::into_problem)?;
    let mut problems = Problems::new();
    for reason in cache.header().misfits(&identity::of_tokenizer(&tokenizer), &data) {
        let message = format!("the cache {} is not of the run's data: {reason}", cache.path().display());
        problems
            .push(Problem::general(message).with_hint("give the run that it was captured or converted by"));
    }
    problems.into_result(sources).map_err(Error::from)
}

/// The tokens that a record is of.
fn piece(sources: &Sources, record: &Record<'_>, id: RecordId) -> Result<Document, Error> {
    let document = sources.piece(id)?;
    if record.check() != content_check(&document.ids, &document.labels)
        || record.targets() != document.targets()
    {
        return Err(Error::internal(format!("{id} has other tokens than when it was captured")));
    }
    Ok(document)
}

fn shape(name: &'static str, depth: usize, kind: Kind) -> Shape {
    Shape { name, depth, kind }
}

/// The columns of everything.
pub(super) fn whole(header: &Header, with_tokens: bool) -> Vec<Shape> {
    let mut columns = vec![
        shape("set", 0, Kind::Text),
        shape("row", 0, Kind::I64),
        shape("start", 0, Kind::U32),
        shape("check", 0, Kind::U32),
    ];
    if with_tokens {
        columns.push(shape("input_ids", 1, Kind::U32));
        columns.push(shape("labels", 1, Kind::I64));
    }
    match header.contents {
        Contents::TopK { .. } => {
            columns.push(shape("token_ids", 2, Kind::U32));
            columns.push(shape("log_probs", 2, Kind::F32));
            columns.push(shape("tails", 2, Kind::F32));
        }
        Contents::Sampled { .. } => {
            columns.push(shape("token_ids", 2, Kind::U32));
            columns.push(shape("counts", 2, Kind::U32));
            columns.push(shape("entropies", 1, Kind::F32));
        }
        Contents::Int8 {} | Contents::Int4 {} => {
            columns.extend(["top", "step", "floor"].map(|name| shape(name, 1, Kind::F32)));
            columns.push(shape("levels", 1, Kind::Bytes));
        }
        Contents::Hidden { .. } => columns.push(shape("hidden", 2, Kind::F32)),
    }
    if header.logits {
        columns.push(shape("log_sums", 1, Kind::F32));
    }
    columns
}

fn push_whole(
    table: &mut TableWriter,
    header: &Header,
    id: RecordId,
    record: &Record<'_>,
    document: Option<&Document>,
) -> Result<(), Error> {
    let set: &[u8] = match id.set {
        Set::Train => b"train",
        Set::Validation => b"validation",
    };
    let mut at = 0;
    let mut push = |cells: &Cells<'_>, ends: Option<&[usize]>| {
        at += 1;
        table.push(at - 1, cells, ends)
    };
    push(&Cells::Bytes(&[set]), None)?;
    push(&Cells::I64(&[id.row as i64]), None)?;
    push(&Cells::U32(&[id.start]), None)?;
    push(&Cells::U32(&[record.check()]), None)?;
    if let Some(document) = document {
        let (ids, labels) = tokens(document);
        push(&Cells::U32(&ids), None)?;
        push(&Cells::I64(&labels), None)?;
    }
    let every = |width: usize, count: usize| (1..=count).map(|row| row * width).collect::<Vec<_>>();
    match record.rows()? {
        Rows::Sparse(rows) => {
            push(&Cells::U32(&rows.ids), Some(&rows.ends))?;
            if let Contents::Sampled { draws, .. } = header.contents {
                let count = |share: &f32| (f64::from(*share).exp() * f64::from(draws)).round() as u32;
                let counts: Vec<u32> = rows.log_p.iter().map(count).collect();
                push(&Cells::U32(&counts), Some(&rows.ends))?;
                push(&Cells::F32(&rows.entropies), None)?;
            } else {
                push(&Cells::F32(&rows.log_p), Some(&rows.ends))?;
                push(&Cells::F32(&rows.tails), Some(&every(header.temperatures.len(), rows.len())))?;
            }
            if header.logits {
                push(&Cells::F32(&rows.log_sums), None)?;
            }
        }
        Rows::Logits(rows) => {
            let stored: Vec<_> = (0..rows.len()).map(|row| rows.stored(row)).collect();
            for scale in 0..3 {
                let scales: Vec<f32> = stored.iter().map(|(scales, _)| scales[scale]).collect();
                push(&Cells::F32(&scales), None)?;
            }
            let levels: Vec<&[u8]> = stored.iter().map(|(_, levels)| *levels).collect();
            push(&Cells::Bytes(&levels), None)?;
        }
        Rows::Hidden(rows) => {
            let count = rows.values.len() / rows.width.max(1);
            push(&Cells::F32(&rows.values), Some(&every(rows.width, count)))?;
        }
        _ => return Err(Error::internal("rows of an unknown kind")),
    }
    Ok(())
}

/// All tokens of a piece, and of each its own id where it is learned and -100 elsewhere.
fn tokens(document: &Document) -> (Vec<u32>, Vec<i64>) {
    let mut ids = document.ids.clone();
    // What follows the last input is known where it is learned.
    ids.extend(document.labels.last().filter(|label| **label != IGNORED));
    let learned =
        document.labels.iter().map(|label| if *label == IGNORED { -100 } else { i64::from(*label) });
    let labels = std::iter::once(-100).chain(learned).take(ids.len()).collect();
    (ids, labels)
}

/// The columns that DistillKit reads.
fn plain(header: &Header, with_tokens: bool) -> Result<Vec<Shape>, Error> {
    let refused = |message: &str, hint: &str| Err(Problem::general(message).with_hint(hint).into());
    match header.contents {
        Contents::Sampled { .. } => {
            return refused(
                "draws are no likeliest tokens, which DistillKit takes these columns for",
                "capture with `--mode top_k`, or export everything by `--to parquet`",
            );
        }
        Contents::Hidden { .. } => {
            return refused(
                "a cache of hidden states has no likeliest tokens",
                "capture with `--mode top_k`, or export everything by `--to parquet`",
            );
        }
        _ => {}
    }
    if !with_tokens {
        return refused(
            "a cache has no tokens, and DistillKit reads them beside their rows",
            "give the run that the cache is of by `--run`",
        );
    }
    Ok(vec![
        shape("input_ids", 1, Kind::I64),
        shape("labels", 1, Kind::I64),
        shape("token_ids", 2, Kind::I64),
        shape("top_values", 2, Kind::F32),
    ])
}

fn push_plain(
    table: &mut TableWriter,
    header: &Header,
    record: &Record<'_>,
    document: &Document,
    wanted: u32,
) -> Result<(), Error> {
    let k = match header.contents {
        Contents::TopK { k, .. } => k,
        _ => wanted.min(header.vocabulary),
    } as usize;
    let rows = match record.rows()? {
        Rows::Sparse(rows) => rows,
        Rows::Logits(rows) => likeliest_of(&rows, k),
        _ => return Err(Error::internal("rows of an unknown kind")),
    };
    let (mut ids, mut values) = (Vec::new(), Vec::new());
    let mut row = 0;
    for label in &document.labels {
        let known = if *label == IGNORED {
            0..0
        } else {
            row += 1;
            rows.range(row - 1)
        };
        push_sorted(&rows.ids[known.clone()], &rows.log_p[known], k, &mut ids, &mut values);
    }
    let ends: Vec<usize> = (1..=document.ids.len()).map(|row| row * k).collect();
    let learned = document.labels.iter().zip(&document.ids);
    let labels: Vec<i64> =
        learned.map(|(label, id)| if *label == IGNORED { -100 } else { i64::from(*id) }).collect();
    let tokens: Vec<i64> = document.ids.iter().map(|id| i64::from(*id)).collect();
    table.push(0, &Cells::I64(&tokens), None)?;
    table.push(1, &Cells::I64(&labels), None)?;
    table.push(2, &Cells::I64(&ids), Some(&ends))?;
    table.push(3, &Cells::F32(&values), Some(&ends))
}

/// Adds a position's tokens, the likeliest first, and fills what is left of its `k` places with others that have no probability to speak of.
fn push_sorted(ids: &[u32], log_p: &[f32], k: usize, to: &mut Vec<i64>, values: &mut Vec<f32>) {
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by(|a, b| log_p[*b].total_cmp(&log_p[*a]));
    to.extend(order.iter().map(|at| i64::from(ids[*at])));
    values.extend(order.iter().map(|at| log_p[*at]));
    // Ids ascend.
    let others = (0u32..).filter(|id| ids.binary_search(id).is_err());
    let fill = k.saturating_sub(ids.len());
    to.extend(others.take(fill).map(i64::from));
    values.extend(std::iter::repeat_n(NOTHING, fill));
}

/// The likeliest tokens of rows of all.
fn likeliest_of(rows: &LogitRows<'_>, k: usize) -> SparseRows {
    let mut logits = vec![0.0; rows.columns()];
    let mut all = SparseRows::default();
    for row in 0..rows.len() {
        rows.row(row, &mut logits);
        let found = likeliest(&logits, k, &[1.0]);
        all.ids.extend(found.ids);
        all.log_p.extend(found.log_p);
        all.ends.push(all.ids.len());
    }
    all
}
