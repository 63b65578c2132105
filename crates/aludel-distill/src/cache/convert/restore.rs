//! Makes a cache of what was exported from one.
//!
//! In: a Parquet file of [`mod@super::export`], whose header says what its rows are. Out: a cache of the same records in one part. Levels of quantised
//! logits and draws are what they were; probabilities are rounded to levels again, which may move one by one level.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use aludel_cache::{Contents, Header, LogitBuffer, RecordId, Rows, Set, SparseRows, Writer, WriterOptions};
use aludel_document::Problem;

use super::columns::{Lists, Numbers, Table};
use super::export::{HEADER, whole};
use super::import::Imported;
use crate::error::Error;

/// The header of an exported file; `None` for any other.
///
/// # Errors
/// What the file is damaged by.
pub fn header_of(file: &Path) -> Result<Option<Header>, Error> {
    if !file.is_file() || file.extension().is_none_or(|extension| extension != "parquet") {
        return Ok(None);
    }
    let table = Table::open(file)?;
    let Some(text) = table.note(HEADER) else { return Ok(None) };
    let header = Header::parse(text.as_bytes())
        .map_err(|detail| Error::damaged(file, format!("its header: {detail}")))?;
    Ok(Some(header))
}

/// A file on its way into a cache.
pub struct Restore<'a> {
    /// The file.
    pub file: &'a Path,
    /// Of [`header_of`].
    pub header: Header,
    /// The cache.
    pub folder: &'a Path,
    /// How it is written: in one part.
    pub options: WriterOptions,
    /// Set from outside to stop.
    pub cancel: &'a AtomicBool,
    /// Told how many records are done, of how many; tokens; and seconds.
    pub on_record: &'a dyn Fn(usize, usize, u64, f64),
}

/// Restores a cache.
///
/// # Errors
/// [`Error::Problems`] before anything is written; [`Error::Rows`] for a row that cannot be stored; [`Error::Interrupted`], after which it
/// can go on; [`Error::Cache`].
pub fn restore(settings: &Restore<'_>) -> Result<Imported, Error> {
    let begin = Instant::now();
    let header = Header { parts: 1, ..settings.header.clone() };
    if let Contents::Hidden { .. } = header.contents {
        let hint = "keep the cache itself";
        let message =
            "hidden states mean nothing without the head that lies in the cache they were exported from";
        return Err(Problem::general(message).with_hint(hint).into());
    }
    let mut table = Table::open(settings.file).map_err(Error::into_problem)?;
    for shape in whole(&header, false) {
        table.column(shape.name, shape.depth).map_err(Error::into_problem)?;
    }
    let mut writer = Writer::open(settings.folder, &header, None, settings.options)
        .map_err(|error| Error::from(error).into_problem())?;
    let (last, before, total) = (writer.last(), writer.targets(), table.rows() as usize);
    let mut done = 0;
    while table.advance()? {
        if settings.cancel.load(Relaxed) {
            return Err(Error::Interrupted);
        }
        done += 1;
        let mut row = Row { table: &mut table, next: 0 };
        let id = row.id()?;
        if last.is_none_or(|last| last < id) {
            let check = row.u32()?;
            append(&mut writer, &header, &mut row, id, check)?;
        }
        (settings.on_record)(done, total, writer.targets() - before, begin.elapsed().as_secs_f64());
    }
    let (records, targets) = (writer.records(), writer.targets());
    writer.finish()?;
    Ok(Imported { records, targets, before, seconds: begin.elapsed().as_secs_f64() })
}

fn append(
    writer: &mut Writer,
    header: &Header,
    row: &mut Row<'_>,
    id: RecordId,
    check: u32,
) -> Result<(), Error> {
    let appended = match header.contents {
        Contents::TopK { .. } | Contents::Sampled { .. } => {
            let rows = sparse(header, row)?;
            writer.append(id, check, &Rows::Sparse(rows))
        }
        _ => {
            let buffer = logits(header, row)?;
            writer.append(id, check, &Rows::Logits(buffer.rows()))
        }
    };
    appended.map_err(|error| match error {
        aludel_cache::Error::Unstorable { detail } => row.table.problem(detail, None),
        other => other.into(),
    })
}

fn sparse(header: &Header, row: &mut Row<'_>) -> Result<SparseRows, Error> {
    let (ids, ends) = row.u32s()?;
    let mut rows = SparseRows { ids, ends, ..SparseRows::default() };
    let others = if let Contents::Sampled { draws, .. } = header.contents {
        let (counts, ends) = row.u32s()?;
        let share = |count: &u32| (f64::from(*count) / f64::from(draws)).ln() as f32;
        rows.log_p = counts.iter().map(share).collect();
        let sums = (0..ends.len()).map(|at| {
            super::source::of_list(&counts, &ends, at).iter().map(|count| u64::from(*count)).sum::<u64>()
        });
        if sums.into_iter().any(|sum| sum != u64::from(draws)) {
            return Err(row.table.problem(format!("`counts` of a token do not sum to {draws}"), None));
        }
        rows.entropies = row.f32s()?.0;
        ends
    } else {
        let (log_p, ends) = row.f32s()?;
        rows.log_p = log_p;
        rows.tails = row.f32s()?.0;
        ends
    };
    if others != rows.ends {
        return Err(row.table.problem("its lists have other lengths than `token_ids`", None));
    }
    if header.logits {
        rows.log_sums = row.f32s()?.0;
    }
    Ok(rows)
}

fn logits(header: &Header, row: &mut Row<'_>) -> Result<LogitBuffer, Error> {
    let scales = [row.f32s()?.0, row.f32s()?.0, row.f32s()?.0];
    let levels = match row.lists()?.numbers {
        Numbers::Bytes(levels) => levels,
        _ => return Err(row.table.problem("`levels` are no bytes", None)),
    };
    if scales.iter().any(|scales| scales.len() != levels.len()) {
        return Err(row.table.problem("`top`, `step`, `floor` and `levels` have different lengths", None));
    }
    let mut buffer = LogitBuffer::new(header.vocabulary as usize, header.contents == (Contents::Int8 {}));
    for (at, levels) in levels.iter().enumerate() {
        let scales = [scales[0][at], scales[1][at], scales[2][at]];
        buffer
            .push(scales, levels.data().to_vec())
            .map_err(|error| row.table.problem(error.to_string(), None))?;
    }
    Ok(buffer)
}

/// The row at hand, read column after column in the order that they were taken up in.
struct Row<'a> {
    table: &'a mut Table,
    next: usize,
}

impl Row<'_> {
    fn lists(&mut self) -> Result<Lists, Error> {
        self.next += 1;
        self.table.read(self.next - 1)
    }

    fn id(&mut self) -> Result<RecordId, Error> {
        let set = match self.lists()?.numbers {
            Numbers::Bytes(text) if text.len() == 1 && text[0].data() == b"train" => Set::Train,
            Numbers::Bytes(text) if text.len() == 1 && text[0].data() == b"validation" => Set::Validation,
            _ => return Err(self.table.problem("`set` is neither `train` nor `validation`", None)),
        };
        let row = match self.lists()?.numbers {
            Numbers::Whole(row) if row.len() == 1 && row[0] >= 0 => row[0] as u64,
            _ => return Err(self.table.problem("`row` is no number of a row", None)),
        };
        Ok(RecordId { set, row, start: self.u32()? })
    }

    fn u32(&mut self) -> Result<u32, Error> {
        match self.u32s()?.0[..] {
            [number] => Ok(number),
            _ => Err(self.table.problem("a number is missing", None)),
        }
    }

    fn u32s(&mut self) -> Result<(Vec<u32>, Vec<usize>), Error> {
        let Lists { numbers, ends } = self.lists()?;
        let Numbers::Whole(numbers) = numbers else {
            return Err(self.table.problem("ids or counts are no whole numbers", None));
        };
        let numbers: Result<Vec<u32>, _> = numbers.into_iter().map(u32::try_from).collect();
        Ok((numbers.map_err(|_| self.table.problem("an id or count is out of range", None))?, ends))
    }

    fn f32s(&mut self) -> Result<(Vec<f32>, Vec<usize>), Error> {
        let Lists { numbers, ends } = self.lists()?;
        let Numbers::Real(numbers) = numbers else {
            return Err(self.table.problem("values are no numbers with fractions", None));
        };
        Ok((numbers.into_iter().map(|number| number as f32).collect(), ends))
    }
}
