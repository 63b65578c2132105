//! Gives the rows of a cache to the steps of a training.
//!
//! In: a cache that fits the run, and micro-batches. Out: the teacher's rows for each, in the form that losses take: known columns as they
//! are stored, quantised logits read where they lie, hidden states on the device with their head. Nothing is made dense that is not.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use aludel_cache::{Cache, Contents, Header, LogitRows, Rows, content_check};
use aludel_checkpoint::DigestCache;
use aludel_document::{Problem, Problems};
use aludel_kernels::loss::sparse::misfit;
use aludel_kernels::loss::{Head, Known, LogitSource, LossDevice, SparseRows, Tail, TeacherRows};
use aludel_model::Tokenizer;

use super::head::{self, CachedHead};
use super::identity;
use crate::data::MicroBatch;
use crate::error::Error;
use crate::inputs;
use crate::run::{Run, TailRule};
use crate::step;

/// A teacher that spoke before.
pub struct CachedTeacher<D: LossDevice> {
    cache: Cache,
    tail: Tail,
    head: Option<CachedHead<D>>,
}

/// What it says of a micro-batch.
pub enum CachedRows<'a, D: LossDevice> {
    /// Some columns.
    Sparse(SparseRows),
    /// All columns, in few bits.
    Logits(PlacedLogits<'a>),
    /// Hidden states, and the head that they go through.
    Hidden(Head<'a, D::Buffer>, D::Buffer),
}

/// Rows of quantised logits, by the rows of a micro-batch.
#[derive(Debug)]
pub struct PlacedLogits<'a> {
    columns: usize,
    /// Where each row is; `None` for ignored ones.
    rows: Vec<Option<(LogitRows<'a>, usize)>>,
}

impl LogitSource for PlacedLogits<'_> {
    fn row(&self, row: usize, to: &mut [f32]) {
        match self.rows[row] {
            Some((rows, at)) => rows.row(at, to),
            None => to.fill(0.0),
        }
    }
}

impl<D: LossDevice> CachedRows<'_, D> {
    /// As the losses take them.
    pub fn as_rows(&self) -> TeacherRows<'_, D::Buffer> {
        match self {
            Self::Sparse(rows) => TeacherRows::Sparse(rows),
            Self::Logits(logits) => TeacherRows::Stored { source: logits, columns: logits.columns },
            Self::Hidden(head, hidden) => TeacherRows::Hidden { head: *head, hidden },
        }
    }
}

impl<D: LossDevice> CachedTeacher<D> {
    /// The cache that a run names, where it names one.
    ///
    /// # Errors
    /// [`Error::Problems`] with every reason why it does not fit the run's tokenizer, data or objective.
    pub fn of_run(
        device: &Arc<D>,
        run: &Run,
        tokenizer: &Tokenizer,
        fingerprint: &str,
    ) -> Result<Option<Self>, Error> {
        let Some(settings) = &run.cache else { return Ok(None) };
        let cache = Cache::open(&settings.path).map_err(|error| Error::from(error).into_problem())?;
        let data = identity::of_data(run, tokenizer, fingerprint).map_err(Error::into_problem)?;
        let mut problems = Problems::new();
        let hint = "put the setting back, or capture the teacher again";
        for reason in cache.header().misfits(&identity::of_tokenizer(tokenizer), &data) {
            problems.push(
                Problem::general(format!("the cache {} does not fit: {reason}", settings.path.display()))
                    .with_hint(hint),
            );
        }
        problems.into_result(())?;
        let tail = match settings.tail {
            TailRule::Tail => Tail::Bucket,
            TailRule::Renormalize => Tail::Renormalize,
            TailRule::Ignore => Tail::Ignore,
        };
        let mut teacher = Self { cache, tail, head: None };
        check_objective(teacher.cache.header(), tail, run)?;
        teacher.head = teacher.open_head(device).map_err(Error::into_problem)?;
        Ok(Some(teacher))
    }

    /// A cache by itself, without a run.
    ///
    /// # Errors
    /// What opening it fails by.
    pub fn open(device: &Arc<D>, path: &Path) -> Result<Self, Error> {
        let mut teacher = Self { cache: Cache::open(path)?, tail: Tail::Bucket, head: None };
        teacher.head = teacher.open_head(device)?;
        Ok(teacher)
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The head of a cache of hidden states.
    pub fn head(&self) -> Option<Head<'_, D::Buffer>> {
        self.head.as_ref().map(CachedHead::head)
    }

    fn open_head(&self, device: &Arc<D>) -> Result<Option<CachedHead<D>>, Error> {
        let header = self.cache.header();
        let (Contents::Hidden { width, scale, soft_cap, .. }, Some(path)) =
            (&header.contents, self.cache.head()?)
        else {
            return Ok(None);
        };
        let (vocabulary, width) = (header.vocabulary as usize, *width as usize);
        let weight = head::read(device.as_ref(), &path, [vocabulary, width])?;
        Ok(Some(CachedHead { weight, vocabulary, width, scale: *scale, soft_cap: *soft_cap }))
    }

    /// Refuses a cache of another teacher than the run says it is of.
    ///
    /// # Errors
    /// [`Error::Problems`]; what hashing fails by.
    pub fn check_teacher(self, run: &Run, digests: &DigestCache, cancel: &AtomicBool) -> Result<Self, Error> {
        let model = run.cache.as_ref().and_then(|settings| settings.model.as_ref());
        if let Some(model) = model {
            if let Some(url) = &self.cache.header().teacher.url {
                let name = &self.cache.header().teacher.name;
                let message =
                    format!("the cache's teacher was served ({name} at {url}): its weights are not known");
                return Err(Problem::general(message).with_hint("leave `model` out").into());
            }
            let files =
                inputs::weight_files(model, digests, cancel, &|_, _| {}).map_err(Error::into_problem)?;
            let teacher = &self.cache.header().teacher;
            if teacher.weights != files {
                let message = format!(
                    "the cache {} is of another teacher, {}: the weights of {} differ",
                    self.cache.path().display(),
                    teacher.name,
                    model.display()
                );
                return Err(Problem::general(message)
                    .with_hint("capture this teacher, or leave `model` out")
                    .into());
            }
        }
        Ok(self)
    }

    /// The teacher's rows for a micro-batch.
    ///
    /// # Errors
    /// [`Error::Cache`]: a record is missing, damaged, or of other tokens.
    pub fn rows(&self, device: &D, micro: &MicroBatch) -> Result<CachedRows<'_, D>, Error> {
        let mut placed = self.place_all(micro)?;
        let header = self.cache.header();
        let rows = micro.labels.len();
        if let Some(known) = known(header, self.tail) {
            return Ok(CachedRows::Sparse(sparse(known, header, placed, rows)));
        }
        if let Some(head) = &self.head {
            let mut hidden = device.zeros(rows * head.width, device.activation())?;
            for (targets, rows) in placed {
                if let Rows::Hidden(rows) = rows {
                    for (row, values) in targets.into_iter().zip(rows.values.chunks_exact(head.width)) {
                        device.write(&mut hidden, row * head.width, values)?;
                    }
                }
            }
            return Ok(CachedRows::Hidden(head.head(), hidden));
        }
        let mut logits = PlacedLogits { columns: header.vocabulary as usize, rows: vec![None; rows] };
        for (targets, rows) in placed.drain(..) {
            if let Rows::Logits(rows) = rows {
                targets.into_iter().enumerate().for_each(|(at, row)| logits.rows[row] = Some((rows, at)));
            }
        }
        Ok(CachedRows::Logits(logits))
    }

    /// Each document's record, with the rows of the micro-batch that its rows are of.
    fn place_all(&self, micro: &MicroBatch) -> Result<Vec<(Vec<usize>, Rows<'_>)>, Error> {
        let MicroBatch { batch, labels, pieces, .. } = micro;
        let place = |(document, id): (&std::ops::Range<usize>, &aludel_cache::RecordId)| {
            let record = self.cache.record(*id)?;
            let targets: Vec<usize> =
                document.clone().filter(|&row| labels[row] != aludel_kernels::loss::IGNORED).collect();
            let check = content_check(&batch.ids[document.clone()], &labels[document.clone()]);
            if record.check() != check || record.targets() != targets.len() {
                return Err(aludel_cache::Error::Differs {
                    path: self.cache.path().to_path_buf(),
                    reasons: vec![format!("{id} has other tokens or labels than when it was captured")],
                }
                .into());
            }
            Ok((targets, record.rows()?))
        };
        batch.documents.iter().zip(pieces).map(place).collect()
    }
}

/// Refuses an objective that rows of this header cannot serve.
pub(super) fn check_objective(header: &Header, tail: Tail, run: &Run) -> Result<(), Error> {
    let objective = step::objective(run, run.taid.as_ref().map(|taid| taid.annealing()))?;
    let reason =
        known(header, tail).and_then(|known| misfit(known, &header.temperatures, header.logits, &objective));
    let Some(reason) = reason else { return Ok(()) };
    let hint = "change the objective, or capture with what it needs (`--temperatures`, `--mode`)";
    let kind = header.contents.name();
    Err(Problem::general(format!("a {kind} cache cannot serve the objective: {reason}"))
        .with_hint(hint)
        .into())
}

/// What the columns of a row are, where it has not all of them.
const fn known(header: &Header, tail: Tail) -> Option<Known> {
    match header.contents {
        Contents::TopK { .. } => Some(Known::Likeliest(tail)),
        Contents::Sampled { .. } => Some(Known::Drawn),
        _ => None,
    }
}

/// Puts the rows of records where they are in a micro-batch of so many rows; documents are in order.
fn sparse(known: Known, header: &Header, placed: Vec<(Vec<usize>, Rows<'_>)>, rows: usize) -> SparseRows {
    let temperatures = header.temperatures.len();
    let is_drawn = known == Known::Drawn;
    let mut all = SparseRows {
        known,
        columns: header.vocabulary as usize,
        temperatures: header.temperatures.clone(),
        starts: vec![0],
        ids: Vec::new(),
        log_p: Vec::new(),
        tails: vec![0.0; if is_drawn { 0 } else { rows * temperatures }],
        log_sums: vec![0.0; if header.logits { rows } else { 0 }],
        entropies: vec![0.0; if is_drawn { rows } else { 0 }],
    };
    for (targets, record) in placed {
        let Rows::Sparse(record) = record else { continue };
        for (at, row) in targets.into_iter().enumerate() {
            let range = record.range(at);
            all.starts.resize(row + 1, all.ids.len());
            all.ids.extend_from_slice(&record.ids[range.clone()]);
            all.log_p.extend_from_slice(&record.log_p[range]);
            all.starts.push(all.ids.len());
            if is_drawn {
                all.entropies[row] = record.entropies[at];
            } else {
                let tails = &record.tails[at * temperatures..(at + 1) * temperatures];
                all.tails[row * temperatures..(row + 1) * temperatures].copy_from_slice(tails);
            }
            if header.logits {
                all.log_sums[row] = record.log_sums[at];
            }
        }
    }
    all.starts.resize(rows + 1, all.ids.len());
    all
}
