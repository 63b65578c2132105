//! Reads both models tensor by tensor, factors what differs, and writes the adapter.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use aludel_checkpoint::{AdapterFiles, AdapterTensor, WeightMap, resident};
use aludel_kernels::cpu::BLOCK;
use aludel_kernels::element::Element;
use aludel_kernels::nn::Cpu;
use aludel_kernels::svd::SvdError;
use indexmap::{IndexMap, IndexSet};

use super::super::factor::{Budget, Factored, Share, factor, transposed};
use super::super::names::{Ends, ranks, task, words};
use super::super::output::AdapterOutput;
use super::difference::{Difference, release};
use super::report::{Extracted, LeftOut, Report, Saved};
use super::treatment::{Kind, Pair, Treated, Treatment};
use super::{Settings, card};
use crate::derive::{Readable, Weights};
use crate::execute::{ExecuteOptions, MergeError, Progress};
use crate::plan::{HEAD, Model, Opened, PlanOptions, TOKENIZER_FILES, element_of, is_embedding};
use crate::problem::{Problem, Problems};
use crate::streams::stream_key;

/// Elements that are saved at once.
const PIECE: usize = 64 * BLOCK;

/// Copies of the vectors that are tried for a tensor, at most, while its factors are found and written.
const VECTORS: usize = 4;

/// Extracts what was settled, into the target; the report lacks the time that was taken before.
pub(super) fn run(
    opened: &Opened,
    treated: Treated,
    settings: &Settings<'_>,
    (target, planning): (&Path, &PlanOptions),
    options: &ExecuteOptions<'_>,
) -> Result<Report, MergeError> {
    let output = AdapterOutput::create(target, options.replace, options.sync)?;
    let maps = opened.sources().iter().map(|source| WeightMap::open(&source.checkpoint));
    let maps = maps.collect::<Result<Vec<_>, _>>()?;
    let weights = Weights::new(opened.sources(), &maps);
    let counters = Counters::of(&treated, opened, options);
    let hashing = AtomicBool::new(true);
    let mut run = Run {
        cpu: Cpu::new(planning.threads.try_into().ok())?,
        weights,
        opened,
        settings,
        seed: planning.seed,
        memory: planning.memory,
        options,
        counters: &counters,
        output,
        report: Report::of(settings),
        ranks: IndexMap::new(),
        saved: IndexSet::new(),
        has_biases: false,
    };
    let (written, digests) = std::thread::scope(|scope| {
        let digests = scope.spawn(|| hash(opened, options, &counters, &hashing));
        let extracted = run.tensors(&treated);
        if extracted.is_err() {
            hashing.store(false, Relaxed);
        }
        while !digests.is_finished() {
            run.tell(0);
            std::thread::sleep(Duration::from_millis(20));
        }
        (extracted, digests.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    written?;
    let digests = digests?;
    run.finish(&treated, &digests)
}

struct Counters {
    read: AtomicU64,
    to_read: u64,
    hashed: AtomicU64,
    to_hash: u64,
}

impl Counters {
    fn of(treated: &Treated, opened: &Opened, options: &ExecuteOptions<'_>) -> Self {
        let files = opened.sources().iter().flat_map(|source| source.checkpoint.files());
        let unknown = files.filter(|file| options.digests.remembered(&file.path).is_none());
        Self {
            read: AtomicU64::new(0),
            to_read: treated.pairs.iter().map(bytes_of).sum(),
            hashed: AtomicU64::new(0),
            to_hash: unknown.map(|file| file.bytes).sum(),
        }
    }
}

/// What a tensor's values are counted as, in both models: as if both stored it as the fine-tuned one does.
fn bytes_of(pair: &Pair) -> u64 {
    2 * pair.elements() * element_of(pair.dtype).map_or(4, Element::size) as u64
}

/// The digest of every file of every source.
fn hash(
    opened: &Opened,
    options: &ExecuteOptions<'_>,
    counters: &Counters,
    go_on: &AtomicBool,
) -> Result<Vec<Vec<String>>, MergeError> {
    let is_stopped = || !go_on.load(Relaxed) || options.cancel.load(Relaxed);
    let mut count = |bytes| {
        counters.hashed.fetch_add(bytes, Relaxed);
        if is_stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let mut of_source = |source: &crate::plan::Source| {
        let files = source.checkpoint.files().iter();
        files.map(|file| Ok(options.digests.sha256(&file.path, &mut count)?)).collect()
    };
    opened.sources().iter().map(&mut of_source).collect()
}

struct Run<'a> {
    cpu: Cpu,
    weights: Weights<'a>,
    opened: &'a Opened,
    settings: &'a Settings<'a>,
    seed: u64,
    memory: u64,
    options: &'a ExecuteOptions<'a>,
    counters: &'a Counters,
    output: AdapterOutput,
    report: Report,
    /// The rank of each module with factors.
    ranks: IndexMap<String, usize>,
    /// Modules that are saved whole.
    saved: IndexSet<String>,
    has_biases: bool,
}

impl Run<'_> {
    fn tensors(&mut self, treated: &Treated) -> Result<(), MergeError> {
        let mut differing = Vec::new();
        for pair in &treated.pairs {
            self.tell(0);
            if self.options.cancel.load(Relaxed) {
                return Err(MergeError::Interrupted);
            }
            match pair.treatment {
                Treatment::Factor(kind) => self.factors(pair, kind)?,
                _ => differing.extend(self.differing_by(pair)?.map(|norm| (pair, norm))),
            }
            self.counters.read.fetch_add(bytes_of(pair), Relaxed);
        }
        let changed: IndexSet<&str> = differing
            .iter()
            .filter(|(pair, _)| pair.treatment == Treatment::Save)
            .map(|(pair, _)| pair.module())
            .collect();
        for pair in &treated.pairs {
            let norm = differing.iter().find(|(other, _)| other.name == pair.name).map(|(_, norm)| *norm);
            match (&pair.treatment, norm) {
                (Treatment::Save, norm) if changed.contains(pair.module()) => {
                    self.save(pair, norm.unwrap_or(Some(0.0)))?;
                    self.saved.insert(pair.module().to_owned());
                }
                (Treatment::Bias, Some(norm)) => {
                    self.save(pair, norm)?;
                    self.has_biases = true;
                }
                (Treatment::LeaveOut(reason), Some(norm)) => {
                    let (tensor, reason) = (pair.name.clone(), (*reason).to_owned());
                    self.report.left_out.push(LeftOut { tensor, norm, reason });
                }
                (Treatment::Factor(_), _) => {}
                _ => self.report.unchanged += 1,
            }
        }
        self.save_tied_head(treated)
    }

    /// With an adapter of a tied embedding, peft leaves the head as it was, so that the head is saved too. (`ensure_weight_tying` is not
    /// known to all its versions, and wants the head in the file all the same.)
    fn save_tied_head(&mut self, treated: &Treated) -> Result<(), MergeError> {
        let is_causal = task(self.opened.model(0).config.as_ref()).is_some();
        let embedding = treated.pairs.iter().find(|pair| is_embedding(&pair.name));
        let embedding = embedding.filter(|_| treated.is_tied && is_causal);
        let Some(embedding) = embedding.filter(|pair| self.is_touched(pair.module())) else { return Ok(()) };
        let head = Pair { name: HEAD.to_owned(), treatment: Treatment::Save, ..embedding.clone() };
        // What it differs by is counted with the embedding.
        self.save(&head, Some(0.0))?;
        self.saved.insert(head.module().to_owned());
        Ok(())
    }

    /// Whether the adapter has anything of a module.
    fn is_touched(&self, module: &str) -> bool {
        self.ranks.contains_key(module) || self.saved.contains(module)
    }

    /// The norm of what a tensor has beyond the base's; `None` where it has nothing, and `Some(None)` where the base has another shape.
    fn differing_by(&self, pair: &Pair) -> Result<Option<Option<f64>>, MergeError> {
        let Some(base) = &pair.base else { return Ok(Some(None)) };
        let norm = self.difference(pair, base).norm()?;
        Ok((norm > 0.0).then_some(Some(norm)))
    }

    fn difference<'d>(&'d self, pair: &'d Pair, base: &'d Readable) -> Difference<'d> {
        Difference::new(&self.cpu, (&self.weights, self.opened), pair, base)
    }

    /// Bytes that a difference takes in memory, with the factors that are tried.
    fn bytes_to_hold(&self, rows: usize, columns: usize) -> u64 {
        let tried = 2 * self.settings.rank.min(rows).min(columns);
        (size_of::<f32>() * (rows * columns + VECTORS * tried * (rows + columns))) as u64
    }

    fn factors(&mut self, pair: &Pair, kind: Kind) -> Result<(), MergeError> {
        let (Some(base), &[rows, columns]) = (&pair.base, pair.shape.as_slice()) else {
            unreachable!("`{}` was settled to have factors", pair.name)
        };
        let mut difference = self.difference(pair, base);
        let is_held = self.bytes_to_hold(rows, columns) <= self.memory;
        let norm = if is_held { difference.hold()? } else { difference.norm()? };
        if norm == 0.0 {
            self.report.unchanged += 1;
            return Ok(());
        }
        let share = match (self.settings.distribute_scale, kind) {
            (true, _) => Share::Both,
            (false, Kind::Linear) => Share::Right,
            (false, Kind::InputsFirst | Kind::Embedding) => Share::Left,
        };
        let element = self.element();
        let Settings { rank, error, epsilon, .. } = *self.settings;
        let how = (Budget { rank, error, epsilon }, share, element);
        let key = stream_key(self.seed, &pair.name, 0);
        let mut go_on = |share: f64| {
            self.tell((share * bytes_of(pair) as f64) as u64);
            !self.options.cancel.load(Relaxed)
        };
        let factored = factor(&self.cpu, &difference, norm, how, key, &mut go_on);
        let factored = factored.map_err(|error| match error {
            SvdError::Stopped => MergeError::Interrupted,
            SvdError::NotFinite => {
                MergeError::NotFactored { tensor: pair.name.clone(), detail: error.to_string() }
            }
        })?;
        if factored.values.is_empty() {
            let reason = "no singular value is above --sv-epsilon".to_owned();
            self.report.left_out.push(LeftOut { tensor: pair.name.clone(), norm: Some(norm), reason });
            return Ok(());
        }
        self.put(pair, kind, &factored)?;
        self.ranks.insert(pair.module().to_owned(), factored.values.len());
        self.report.extracted.push(Extracted {
            tensor: pair.name.clone(),
            rank: factored.values.len(),
            norm,
            error: factored.error / norm,
            singular_values: factored.values,
        });
        Ok(())
    }

    fn put(&mut self, pair: &Pair, kind: Kind, factored: &Factored) -> Result<(), MergeError> {
        let (rows, columns, rank) = (pair.shape[0], pair.shape[1], factored.values.len());
        let element = self.element();
        let (a, b) = match kind {
            Kind::Embedding => (AdapterTensor::EmbeddingA, AdapterTensor::EmbeddingB),
            Kind::Linear | Kind::InputsFirst => (AdapterTensor::A, AdapterTensor::B),
        };
        let module = pair.module();
        match kind {
            Kind::Linear => {
                self.output.add((module, a), vec![rank, columns], element, &factored.right)?;
                self.output.add((module, b), vec![rows, rank], element, &factored.left)?;
            }
            Kind::InputsFirst | Kind::Embedding => {
                let of_inputs = transposed(&factored.left, rows, rank);
                self.output.add((module, a), vec![rank, rows], element, &of_inputs)?;
                let of_outputs = transposed(&factored.right, rank, columns);
                self.output.add((module, b), vec![columns, rank], element, &of_outputs)?;
            }
        }
        Ok(())
    }

    /// Writes the fine-tuned model's tensor as it is.
    fn save(&mut self, pair: &Pair, norm: Option<f64>) -> Result<(), MergeError> {
        let element = element_of(pair.dtype).unwrap_or(Element::F32);
        let (module, part) = pair.name.rsplit_once('.').unwrap_or(("", &pair.name));
        let name = match pair.treatment {
            // peft keeps what a module was beneath its factors.
            Treatment::Bias if self.ranks.contains_key(module) => format!("{module}.base_layer.{part}"),
            _ => pair.name.clone(),
        };
        self.output.begin(AdapterTensor::Whole.name(&name), pair.shape.clone(), pair.dtype);
        let elements = pair.elements();
        let mut values = vec![0.0; PIECE];
        for start in (0..elements).step_by(PIECE) {
            let piece = &mut values[..PIECE.min((elements - start) as usize)];
            for (number, block) in piece.chunks_mut(BLOCK).enumerate() {
                pair.finetuned.read(&self.weights, start + (number * BLOCK) as u64, block);
            }
            self.output.append(element, piece)?;
        }
        release(&self.weights, pair, 0..pair.elements() as usize);
        self.report.saved.push(Saved { tensor: pair.name.clone(), norm });
        Ok(())
    }

    fn element(&self) -> Element {
        element_of(self.settings.dtype.into()).unwrap_or(Element::F32)
    }

    /// Says how far the work is, with so many bytes of the tensor at hand.
    fn tell(&self, at_hand: u64) {
        let Counters { read, to_read, hashed, to_hash } = self.counters;
        (self.options.on_progress)(Progress {
            bytes_read: (read.load(Relaxed) + at_hand).min(*to_read),
            bytes_to_read: *to_read,
            bytes_hashed: hashed.load(Relaxed),
            bytes_to_hash: *to_hash,
        });
    }

    /// Writes the adapter's folder, if there is anything to write.
    fn finish(mut self, treated: &Treated, digests: &[Vec<String>]) -> Result<Report, MergeError> {
        if self.ranks.is_empty() && self.saved.is_empty() && !self.has_biases {
            return Err(self.nothing().into());
        }
        for (tensor, reason) in &treated.uncompared {
            let (tensor, reason) = (tensor.clone(), reason.clone());
            self.report.left_out.push(LeftOut { tensor, norm: None, reason });
        }
        self.report.resized = treated.resized;
        self.report.sum_up(self.output.bytes(), self.counters.to_read);
        let files = self.files(treated);
        self.report.rank = files.rank;
        let mut others = match treated.resized {
            Some(_) => tokenizer(self.opened.model(0)),
            None => Vec::new(),
        };
        let card = card::render(&self.report, self.opened.sources(), digests);
        others.push(("README.md".to_owned(), card.into_bytes()));
        let output = self.output.finish(&files, &others)?;
        Ok(Report { output, peak_memory: resident::peak(), ..self.report })
    }

    fn nothing(&self) -> Problems {
        let problem = match self.report.left_out.is_empty() {
            true => Problem::general(format!(
                "`{}` and `{}` have the same weights: there is nothing to extract",
                self.settings.finetuned, self.settings.base
            )),
            false => Problem::general("everything in which the models differ is left out")
                .with_hint("leave out --include-regex, --exclude-regex or --sv-epsilon"),
        };
        problem.into()
    }

    fn files(&self, treated: &Treated) -> AdapterFiles {
        let all: IndexSet<&str> = treated.pairs.iter().map(Pair::module).collect();
        let all: Vec<String> = all.into_iter().map(str::to_owned).collect();
        let modules: Vec<String> = self.ranks.keys().cloned().collect();
        let saved: Vec<String> = self.saved.iter().cloned().collect();
        let (rank, others) = ranks(&self.ranks);
        let config = self.opened.model(0).config.as_ref();
        let kinds = treated.pairs.iter().filter(|pair| self.ranks.contains_key(pair.module()));
        AdapterFiles {
            base: self.settings.base.to_owned(),
            rank,
            alpha: rank as f64,
            targets: words(&modules, &all, Ends::AtDots),
            alpha_pattern: others.iter().map(|(module, rank)| (module.clone(), *rank as f64)).collect(),
            rank_pattern: others,
            saved: words(&saved, &all, Ends::Anywhere),
            fan_in_fan_out: kinds
                .map(|pair| &pair.treatment)
                .any(|treatment| *treatment == Treatment::Factor(Kind::InputsFirst)),
            task: task(config),
            trains_biases: self.has_biases,
            ..AdapterFiles::default()
        }
    }
}

/// The files of a model's tokenizer.
fn tokenizer(model: &Model) -> Vec<(String, Vec<u8>)> {
    let file = |name: &&str| Some(((**name).to_owned(), model.side_files.read(name)?));
    TOKENIZER_FILES.iter().filter_map(file).collect()
}
