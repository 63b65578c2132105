//! Scores a sample of a cache against the live teacher.
//!
//! In: a cache, and the run that it was captured by. Out: how far what is stored lies from what the teacher says now, at temperature 1,
//! beside a control: the teacher against itself in another batch. Columns that are not stored share what is left evenly. Draws leave out what
//! the teacher thinks possible, so that only their divergence from the teacher is a number. A served teacher is asked for as many tokens as are stored, and for the control once more. Whether bytes are sound is [`aludel_cache::Cache::verify`]'s.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use aludel_cache::{Contents, Header, RecordId, Rows, SparseRows};
use aludel_document::{Problem, Problems};
use aludel_kernels::loss::{Head, IGNORED, LossDevice, map_logits};
use aludel_model::{Batch, Decoder, Keep, Tokenizer, Use};
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
    /// `KL(stored, live)`, likewise, of draws as the shares that they have.
    pub reverse_kl: f64,
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
    let teacher = Live::open(device, run, cached.cache().header(), &tokenizer)?;
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
        let is_drawn = matches!(header.contents, Contents::Sampled { .. });
        let compared = on_all_cores(labels.len(), |row| {
            let live = live.row(row, header.vocabulary as usize, false);
            let columns = live.log_p.len();
            [again.row(row, columns, false), said.row(row, columns, is_drawn)]
                .map(|other| Compared::of(&live, &other, labels[row]))
        });
        for [of_control, of_stored] in compared {
            control.add(&of_control);
            stored.add(&of_stored);
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
    fn open(device: &Arc<D>, run: &Run, header: &Header, tokenizer: &Tokenizer) -> Result<Self, Error> {
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
        let endpoint =
            Endpoint::open(served, k, header.vocabulary, tokenizer).map_err(Error::into_problem)?;
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
    Ok(map_logits(device, (&head, pass.hidden()), &rows, device.logit_memory(), |_, logits| logits.to_vec())?)
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
            Said::Dense(map_logits(device, (&head, &hidden), &all, device.logit_memory(), |_, logits| {
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

/// What `f` says of each row, in order.
fn on_all_cores<R: Send>(rows: usize, f: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = rows.div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let f = &f;
        let spawn =
            |start: usize| scope.spawn(move || (start..rows.min(start + share)).map(f).collect::<Vec<_>>());
        let threads: Vec<_> = (0..rows).step_by(share).map(spawn).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Vec<R>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().flat_map(join).collect()
    })
}

/// What a row shows.
struct Compared {
    kl: f64,
    reverse: f64,
    is_drawn: bool,
    agrees: bool,
    kept: f64,
    /// The probability of the stored first choice, and whether it is the label.
    confidence: f64,
    is_right: bool,
}

impl Compared {
    fn of(live: &Distribution, stored: &Distribution, label: u32) -> Self {
        let (mut kl, mut reverse) = (0.0, 0.0);
        for (&p, &q) in live.log_p.iter().zip(&stored.log_p) {
            // Draws of all else have no probability, which is of use in one direction only.
            kl += if stored.is_drawn { 0.0 } else { p.exp() * (p - q) };
            reverse += if q > f64::NEG_INFINITY { q.exp() * (q - p) } else { 0.0 };
        }
        let (first, confidence) = stored.first();
        let kept = match &stored.known {
            Some(known) => known.iter().map(|&id| live.log_p[id as usize].exp()).sum(),
            None => 1.0,
        };
        Self {
            kl,
            reverse,
            is_drawn: stored.is_drawn,
            agrees: first == live.first().0,
            kept,
            confidence: confidence.exp(),
            is_right: first == label as usize,
        }
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
    fn add(&mut self, row: &Compared) {
        self.rows += 1;
        self.is_drawn |= row.is_drawn;
        self.kl += row.kl;
        self.reverse += row.reverse;
        self.agreement += u64::from(row.agrees);
        self.kept += row.kept;
        let bin = &mut self.bins[((row.confidence * 10.0) as usize).min(9)];
        *bin = (bin.0 + 1, bin.1 + row.confidence, bin.2 + u64::from(row.is_right));
    }

    fn mean(&self) -> Distance {
        let rows = self.rows.max(1) as f64;
        let gaps = self.bins.iter().map(|(_, confidence, right)| (confidence - *right as f64).abs());
        Distance {
            kl: (!self.is_drawn).then_some(self.kl / rows),
            reverse_kl: self.reverse / rows,
            top1: self.agreement as f64 / rows,
            kept_mass: self.kept / rows,
            calibration_error: gaps.sum::<f64>() / rows,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs(p: &[f64], is_drawn: bool) -> Distribution {
        Distribution { log_p: p.iter().map(|p| p.ln()).collect(), known: None, is_drawn }
    }

    /// Reckoned by hand.
    #[test]
    fn figures_are_means_over_rows() {
        let live = logs(&[0.5, 0.25, 0.25], false);
        let near = |x: f64, y: f64| (x - y).abs() < 1e-12;
        let mut sum = Sum::default();
        // The first choice of 0.75 is right once of twice, that of 0.5 is wrong.
        for (stored, label) in [([0.75, 0.125, 0.125], 0), ([0.75, 0.125, 0.125], 1), ([0.25, 0.5, 0.25], 2)]
        {
            sum.add(&Compared::of(&live, &logs(&stored, false), label));
        }
        let mean = sum.mean();
        let (first, second) =
            (0.5 * (2.0f64 / 3.0).ln() + 0.5 * 2f64.ln(), 0.5 * 2f64.ln() - 0.25 * 2f64.ln());
        assert!(near(mean.kl.unwrap(), (2.0 * first + second) / 3.0), "{mean:?}");
        let (first, second) = (0.75 * 1.5f64.ln() - 0.25 * 2f64.ln(), 0.25 * 2f64.ln());
        assert!(near(mean.reverse_kl, (2.0 * first + second) / 3.0), "{mean:?}");
        assert!(near(mean.top1, 2.0 / 3.0) && near(mean.kept_mass, 1.0), "{mean:?}");
        assert!(near(mean.calibration_error, (0.5 + 0.5) / 3.0), "{mean:?}");
    }

    #[test]
    fn of_draws_one_direction_is_a_number() {
        let (live, mut sum) = (logs(&[0.5, 0.25, 0.25], false), Sum::default());
        let mut drawn = logs(&[0.5, 0.5, 0.0], true);
        drawn.known = Some(vec![0, 1]);
        sum.add(&Compared::of(&live, &drawn, 0));
        let mean = sum.mean();
        assert!((mean.reverse_kl - 0.5 * 2f64.ln()).abs() < 1e-12 && mean.kl.is_none(), "{mean:?}");
        assert!((mean.kept_mass - 0.75).abs() < 1e-12);
    }

    #[test]
    fn rows_come_in_order_from_all_cores() {
        assert_eq!(on_all_cores(1001, |row| row), (0..1001).collect::<Vec<_>>());
        assert_eq!(on_all_cores(0, |row| row), [0; 0]);
    }
}
