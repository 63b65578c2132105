//! Writes the rows of pieces on a thread of its own, while the teacher is asked about the next ones.
//!
//! In: rows, piece by piece in the order of a cache, as they were made. Out: records; joining and coding rows is done here too. Few pieces wait at a time: where writing is slower than the teacher, the
//! teacher waits. What the writer fails by ends the capture; what was written before stays.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use aludel_cache::{Contents, HiddenRows, LogitBuffer, RecordId, Rows, SparseRows, Writer, content_check};
use aludel_kernels::loss::Quantised;

use crate::data::Document;
use crate::error::Error;

/// The rows of a record.
pub(super) enum Gathered {
    Sparse(Vec<SparseRows>),
    /// None for logits that are no numbers.
    Logits(Vec<Option<Quantised>>),
    Hidden(HiddenRows),
}

/// A record, with the checksum of its tokens and labels.
type Waiting = (RecordId, u32, Gathered);

/// Records that wait to be written.
const AHEAD: usize = 2;

/// Where rows are put.
pub(super) struct Store<'a> {
    /// None where nothing is stored.
    records: Option<SyncSender<Waiting>>,
    /// Rows so far.
    targets: u64,
    cancel: &'a AtomicBool,
}

impl Store<'_> {
    /// Has a record written.
    pub(super) fn append(&mut self, id: RecordId, document: &Document, rows: Gathered) -> Result<(), Error> {
        self.count(document);
        let check = content_check(&document.ids, &document.labels);
        match &self.records {
            // What the writer failed by is told instead.
            Some(records) => {
                records.send((id, check, rows)).map_err(|_| Error::internal("nobody writes records any more"))
            }
            None => Ok(()),
        }
    }

    /// Counts a piece of which nothing is stored.
    pub(super) fn count(&mut self, document: &Document) {
        self.targets += document.targets() as u64;
    }

    /// Rows so far.
    pub(super) fn targets(&self) -> u64 {
        self.targets
    }

    /// Ends what was asked to end.
    pub(super) fn check_cancel(&self) -> Result<(), Error> {
        if self.cancel.load(Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}

/// Has `walk` fill a store that this writer writes, and gives the writer back; without one, nothing is stored.
pub(super) fn stored<R>(
    writer: Option<Writer>,
    cancel: &AtomicBool,
    walk: impl FnOnce(&mut Store<'_>) -> Result<R, Error>,
) -> Result<(R, Option<Writer>), Error> {
    std::thread::scope(|scope| {
        let (records, waiting) = sync_channel(AHEAD);
        let thread = writer.map(|writer| scope.spawn(move || write(writer, &waiting)));
        let mut store = Store { records: thread.is_some().then_some(records), targets: 0, cancel };
        let walked = walk(&mut store);
        drop(store);
        let writer = thread.map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        // A walk that ended because nobody writes any more ended for the writer's reason.
        let writer = writer.transpose()?;
        Ok((walked?, writer))
    })
}

fn write(mut writer: Writer, waiting: &Receiver<Waiting>) -> Result<Writer, Error> {
    while let Ok((id, check, rows)) = waiting.recv() {
        match rows {
            Gathered::Sparse(rows) => {
                let mut all = SparseRows::default();
                rows.iter().for_each(|row| all.append(row));
                writer.append(id, check, &Rows::Sparse(all))?;
            }
            Gathered::Logits(rows) => {
                let header = writer.header();
                let in_eight = header.contents == (Contents::Int8 {});
                let mut all = LogitBuffer::new(header.vocabulary as usize, in_eight);
                for row in rows {
                    let detail = || "the teacher has NaN or infinite logits".to_owned();
                    let row = row.ok_or_else(|| aludel_cache::Error::Unstorable { detail: detail() })?;
                    all.push([row.top, row.step, row.floor], row.levels)?;
                }
                writer.append(id, check, &Rows::Logits(all.rows()))?;
            }
            Gathered::Hidden(rows) => writer.append(id, check, &Rows::Hidden(rows))?,
        }
    }
    Ok(writer)
}
