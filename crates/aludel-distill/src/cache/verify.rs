//! Scores a sample of a cache against the live teacher.
//!
//! In: a cache, and the run that it was captured by. Out: how far what is stored lies from what the teacher says now, at temperature 1,
//! beside a control: the teacher against itself in another batch. Columns that are not stored share what is left evenly. Draws are no
//! distribution, so they have no KL. A served teacher is asked for as many tokens as are stored, and for the control once more. Whether bytes are sound is [`aludel_cache::Cache::verify`]'s.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use aludel_cache::{Contents, Header, RecordId, Rows, SparseRows};
use aludel_document::{Problem, Problems};
use aludel_kernels::loss::{Head, IGNORED, LossDevice, map_logits};
use aludel_model::evaluate::LOGIT_MEMORY;
use aludel_model::{Batch, Decoder, Keep, Use};
use serde::Serialize;

use super::identity;
use super::served::{self, Endpoint};
use super::sources::Sources;
use super::taught::CachedTeacher;
use crate::data::Document;
use crate::error::Error;
use crate::prepare::Tokenizers;
use crate::run::Run;

/// How far one set of distributions lies from the live teacher's: means over rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Distance {
    /// `KL(live, stored)`, nats a token; none of draws.
    pub kl: Option<f64>,
    /// `KL(stored, live)`, likewise.
    pub reverse_kl: Option<f64>,
    /// Share of rows with the same first choice.
    pub top1: f64,
    /// The live teacher's probability of the stored columns.
    pub kept_mass: f64,
    /// Expected calibration error of the first choice against the labels, over ten bins.
    pub calibration_error: f64,
}

/// What a sample showed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Verified {
    /// Records of the sample.
    pub records: usize,
    /// Their rows.
    pub tokens: u64,
    /// The cache against the live teacher.
    pub stored: Distance,
    /// The live teacher against itself.
    pub control: Distance,
}

/// Scores about `records` records, spread evenly.
///
/// # Errors
/// [`Error::Problems`] where the run is not the one of the cache; [`Error::Interrupted`]; [`Error::Cache`]; what computing fails by.
pub fn verify<D: LossDevice>(
    device: &Arc<D>,
    run: &Run,
    folder: &Path,
    records: usize,
    cancel: &AtomicBool,
    on_record: &dyn Fn(usize, usize),
) -> Result<Verified, Error> {
    let cached = CachedTeacher::open(device, folder).map_err(Error::into_problem)?;
    if run.teacher.is_none() && run.served.is_none() {
        return Err(Problem::general("the run names no teacher to compare with")
            .with_hint("give the run that the cache was captured by")
            .into());
    }
    let tokenizer = Arc::clone(Tokenizers::of(run).map_err(Error::into_problem)?.of_teacher());
    let sources = Sources::open(run, Arc::clone(&tokenizer)).map_err(Error::into_problem)?;
    let data = identity::of_data(run, &tokenizer, &sources.fingerprint).map_err(Error::into_problem)?;
    let mut problems = Problems::new();
    for reason in cached.cache().header().misfits(&identity::of_tokenizer(&tokenizer), &data) {
        problems.push(Problem::general(format!("the cache {} does not fit: {reason}", folder.display())));
    }
    problems.into_result(())?;
    let teacher = Live::open(device, run, cached.cache().header())?;
    let every = cached.cache().len().div_ceil(records.max(1)).max(1);
    let sample: Vec<RecordId> = cached.cache().ids().step_by(every).collect();
    let (mut stored, mut control) = (Sum::default(), Sum::default());
    for (at, &id) in sample.iter().enumerate() {
        if cancel.load(Relaxed) {
            return Err(Error::Interrupted);
        }
        let document = sources.piece(id)?;
        let live = teacher.says(&document, 1, cancel)?;
        let again = teacher.says(&document, 2, cancel)?;
        let labels: Vec<u32> = document.labels.iter().copied().filter(|label| *label != IGNORED).collect();
        let rows = cached.cache().record(id)?.rows()?;
        let said = said(device.as_ref(), &cached, rows)?;
        let header = cached.cache().header();
        for (row, &label) in labels.iter().enumerate() {
            let live = live.row(row, header.vocabulary as usize, false);
            control.add(&live, &again.row(row, live.log_p.len(), false), label);
            let is_drawn = matches!(header.contents, Contents::Sampled { .. });
            stored.add(&live, &said.row(row, live.log_p.len(), is_drawn), label);
        }
        on_record(at + 1, sample.len());
    }
    Ok(Verified {
        records: sample.len(),
        tokens: stored.rows,
        stored: stored.mean(),
        control: control.mean(),
    })
}

/// Who is asked now.
enum Live<D: LossDevice> {
    Here(Box<Decoder<D>>),
    Served(Box<Endpoint>),
}

impl<D: LossDevice> Live<D> {
    fn open(device: &Arc<D>, run: &Run, header: &Header) -> Result<Self, Error> {
        let (Some(served), None) = (&run.served, &run.teacher) else {
            let Some(path) = &run.teacher else { return Err(Error::internal("a run without a teacher")) };
            let teacher = Decoder::open(path, Arc::clone(device), Use::Frozen);
            return Ok(Self::Here(Box::new(teacher.map_err(|e| Error::from(e).into_problem())?)));
        };
        let Contents::TopK { k, .. } = header.contents else {
            let message = format!(
                "a served teacher says the likeliest tokens, and a cache of `{}` holds more",
                header.contents.name()
            );
            return Err(Problem::general(message).with_hint("name a model folder as the teacher").into());
        };
        let endpoint = Endpoint::open(served, k, header.vocabulary).map_err(Error::into_problem)?;
        Ok(Self::Served(Box::new(endpoint)))
    }

    /// What it says of a piece's rows that are learned, in a batch with so many copies of it; a server batches as it likes.
    fn says(&self, document: &Document, copies: usize, stop: &AtomicBool) -> Result<Said, Error> {
        match self {
            Self::Here(teacher) => Ok(Said::Dense(logits(teacher, document, copies)?)),
            Self::Served(endpoint) => Ok(Said::Sparse(endpoint.ask(document, stop)?, served::TEMPERATURES)),
        }
    }
}

fn logits<D: LossDevice>(
    teacher: &Decoder<D>,
    document: &Document,
    copies: usize,
) -> Result<Vec<Vec<f32>>, Error> {
    let batch = Batch::pack(std::iter::repeat_n(document.ids.as_slice(), copies));
    let pass = teacher.forward(&batch, Keep::Nothing, &[])?;
    let start = document.ids.len() * (copies - 1);
    let rows: Vec<usize> = (0..document.ids.len())
        .filter(|&row| document.labels[row] != IGNORED)
        .map(|row| start + row)
        .collect();
    let head = teacher.head();
    let device = teacher.device().as_ref();
    Ok(map_logits(device, (&head, pass.hidden()), &rows, LOGIT_MEMORY, |_, logits| logits.to_vec())?)
}

/// What is said of a record, or stored: some columns with so many temperatures, or all logits.
enum Said {
    Sparse(SparseRows, usize),
    Dense(Vec<Vec<f32>>),
}

fn said<D: LossDevice>(device: &D, cached: &CachedTeacher<D>, rows: Rows<'_>) -> Result<Said, Error> {
    Ok(match rows {
        Rows::Sparse(rows) => Said::Sparse(rows, cached.cache().header().temperatures.len()),
        Rows::Logits(rows) => Said::Dense(
            (0..rows.len())
                .map(|row| {
                    let mut logits = vec![0.0; rows.columns()];
                    rows.row(row, &mut logits);
                    logits
                })
                .collect(),
        ),
        Rows::Hidden(rows) => {
            let Some(head): Option<Head<'_, D::Buffer>> = cached.head() else {
                return Err(Error::internal("hidden states without their head"));
            };
            let mut hidden = device.zeros(rows.values.len(), device.activation())?;
            device.write(&mut hidden, 0, &rows.values)?;
            let all: Vec<usize> = (0..rows.values.len() / rows.width).collect();
            Said::Dense(map_logits(device, (&head, &hidden), &all, LOGIT_MEMORY, |_, logits| {
                logits.to_vec()
            })?)
        }
        _ => return Err(Error::internal("rows of an unknown kind")),
    })
}

impl Said {
    fn row(&self, row: usize, columns: usize, is_drawn: bool) -> Distribution {
        match self {
            Self::Dense(rows) => Distribution::of(&rows[row]),
            Self::Sparse(rows, temperatures) => {
                let range = rows.range(row);
                let tail = rows.tails.get(row * temperatures).map_or(0.0, |tail| f64::from(*tail));
                let others = columns.saturating_sub(range.len()).max(1) as f64;
                let mut log_p = vec![(tail / others).ln(); columns];
                for (&id, &x) in rows.ids[range.clone()].iter().zip(&rows.log_p[range.clone()]) {
                    log_p[id as usize] = f64::from(x);
                }
                Distribution { log_p, known: Some(rows.ids[range].to_vec()), is_drawn }
            }
        }
    }
}

/// One row's distribution.
struct Distribution {
    log_p: Vec<f64>,
    /// The columns that are stored, where not all are.
    known: Option<Vec<u32>>,
    is_drawn: bool,
}

impl Distribution {
    fn of(logits: &[f32]) -> Self {
        let most = logits.iter().fold(f64::NEG_INFINITY, |most, &z| most.max(f64::from(z)));
        let sum: f64 = logits.iter().map(|&z| (f64::from(z) - most).exp()).sum();
        let shift = most + sum.ln();
        Self { log_p: logits.iter().map(|&z| f64::from(z) - shift).collect(), known: None, is_drawn: false }
    }

    fn first(&self) -> (usize, f64) {
        let columns = self.log_p.iter().enumerate();
        columns.fold((0, f64::NEG_INFINITY), |best, (column, &x)| if x > best.1 { (column, x) } else { best })
    }
}

/// Sums over rows.
#[derive(Default)]
struct Sum {
    rows: u64,
    kl: f64,
    reverse: f64,
    is_drawn: bool,
    agreement: u64,
    kept: f64,
    /// For each tenth of confidence: rows, confidence, rows whose first choice is the label.
    bins: [(u64, f64, u64); 10],
}

impl Sum {
    fn add(&mut self, live: &Distribution, stored: &Distribution, label: u32) {
        self.rows += 1;
        self.is_drawn |= stored.is_drawn;
        for (&p, &q) in live.log_p.iter().zip(&stored.log_p) {
            self.kl += p.exp() * (p - q);
            self.reverse += if q > f64::NEG_INFINITY { q.exp() * (q - p) } else { 0.0 };
        }
        let (first, confidence) = stored.first();
        self.agreement += u64::from(first == live.first().0);
        self.kept += match &stored.known {
            Some(known) => known.iter().map(|&id| live.log_p[id as usize].exp()).sum(),
            None => 1.0,
        };
        let confidence = confidence.exp();
        let bin = &mut self.bins[((confidence * 10.0) as usize).min(9)];
        *bin = (bin.0 + 1, bin.1 + confidence, bin.2 + u64::from(first == label as usize));
    }

    fn mean(&self) -> Distance {
        let rows = self.rows.max(1) as f64;
        let gaps = self.bins.iter().map(|(_, confidence, right)| (confidence - *right as f64).abs());
        Distance {
            kl: (!self.is_drawn).then_some(self.kl / rows),
            reverse_kl: (!self.is_drawn).then_some(self.reverse / rows),
            top1: self.agreement as f64 / rows,
            kept_mass: self.kept / rows,
            calibration_error: gaps.sum::<f64>() / rows,
        }
    }
}
