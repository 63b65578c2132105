//! Reads the factors of every module, combines them, and writes the adapter.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use aludel_checkpoint::card::{cell, quoted};
use aludel_checkpoint::{AdapterFiles, AdapterModule, AdapterTensor, WeightMap, resident};
use aludel_kernels::element::Element;
use aludel_kernels::nn::Cpu;
use aludel_kernels::random::StreamKey;
use aludel_kernels::svd::{Matrix, SvdError, subtract, sum_of_squares};
use indexmap::{IndexMap, IndexSet};
use serde::Serialize;

use super::super::factor::{Budget, Share, factor};
use super::super::names::ranks;
use super::super::output::AdapterOutput;
use super::matched::{Matched, Opened};
use super::mix::Mixing;
use super::{Of, Settings};
use crate::execute::{ExecuteOptions, MergeError, Progress};
use crate::inspect::Table;
use crate::plan::{LayerName, PlanOptions, element_of};
use crate::streams::stream_key;

/// What was combined.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The folder that was written.
    pub output: PathBuf,
    /// The adapters and their weights.
    pub adapters: Vec<(String, f64)>,
    /// The modules of the output.
    pub modules: Vec<Combined>,
    /// The error of products that were factored anew, over all modules, as a share of their norm.
    pub error: Option<f64>,
    /// Bytes of the output's tensors.
    pub bytes_written: u64,
    /// From start to end.
    pub seconds: f64,
    /// The most memory the process had resident, in bytes, where the system tells.
    pub peak_memory: Option<u64>,
}

/// A module of the output.
#[derive(Clone, Debug, Serialize)]
pub struct Combined {
    /// Its name.
    pub module: String,
    /// How many adapters have it.
    pub adapters: usize,
    /// Its rank.
    pub rank: usize,
    /// The norm of the product that was factored anew.
    pub norm: Option<f64>,
    /// The norm of what the factors lack of it, as a share.
    pub error: Option<f64>,
}

pub(super) fn run(
    matched: &Matched,
    settings: &Settings<'_>,
    target: &Path,
    options: &PlanOptions,
    execute: &ExecuteOptions<'_>,
) -> Result<Report, MergeError> {
    let start = Instant::now();
    let output = AdapterOutput::create(target, execute.replace, execute.sync)?;
    let maps = matched.adapters.iter().map(|opened| WeightMap::open(opened.adapter.checkpoint()));
    let maps = maps.collect::<Result<Vec<_>, _>>()?;
    let mut run = Run {
        cpu: Cpu::new(options.threads.try_into().ok())?,
        matched,
        maps,
        settings,
        seed: options.seed,
        element: element(matched, settings),
        execute,
        output,
        report: Report { adapters: settings.adapters.to_vec(), ..Report::default() },
        read: 0,
    };
    for (module, having) in &matched.modules {
        if execute.cancel.load(Relaxed) {
            return Err(MergeError::Interrupted);
        }
        run.combine(module, having)?;
    }
    run.finish(start)
}

/// The type that is written.
fn element(matched: &Matched, settings: &Settings<'_>) -> Element {
    let own = || {
        let first = matched.adapters.first()?.adapter.checkpoint().tensors().values().next()?;
        element_of(first.dtype)
    };
    settings.dtype.map(Into::into).and_then(element_of).or_else(own).unwrap_or(Element::F32)
}

struct Run<'a> {
    cpu: Cpu,
    matched: &'a Matched,
    maps: Vec<WeightMap>,
    settings: &'a Settings<'a>,
    seed: u64,
    element: Element,
    execute: &'a ExecuteOptions<'a>,
    output: AdapterOutput,
    report: Report,
    /// Bytes of the adapters that are read.
    read: u64,
}

/// What one adapter has of a module.
struct Part {
    a: Vec<f32>,
    b: Vec<f32>,
    rank: usize,
    /// The adapter's weight and the module's factor.
    weight: f64,
    scale: f64,
}

/// The output's factors of a module.
struct Factors {
    a: Vec<f32>,
    b: Vec<f32>,
    rank: usize,
    /// The norm of the product, and of what the factors lack of it.
    lacking: Option<(f64, f64)>,
}

impl Run<'_> {
    fn combine(&mut self, module: &str, having: &[usize]) -> Result<(), MergeError> {
        let first = &self.matched.adapters[having[0]].adapter;
        let facts = &first.modules()[module];
        let parts: Vec<Part> = having.iter().map(|&position| self.part(module, position)).collect();
        let combined = match self.settings.of {
            Of::Concatenated => concatenated(&parts, facts),
            Of::Factors => self.mixed(module, parts),
            Of::Products { rank } => {
                let highest = parts.iter().map(|part| part.rank).max().unwrap_or(1);
                self.factored(module, facts, parts, rank.unwrap_or(highest))?
            }
        };
        let (a, b) = match facts.is_embedding {
            true => (AdapterTensor::EmbeddingA, AdapterTensor::EmbeddingB),
            false => (AdapterTensor::A, AdapterTensor::B),
        };
        let shape = |tensor: &str| first.checkpoint().tensors()[tensor].shape.clone();
        let (mut a_shape, mut b_shape) = (shape(&facts.a), shape(&facts.b));
        (a_shape[0], b_shape[1]) = (combined.rank, combined.rank);
        self.output.add((module, a), a_shape, self.element, &combined.a)?;
        self.output.add((module, b), b_shape, self.element, &combined.b)?;
        self.report.modules.push(Combined {
            module: module.to_owned(),
            adapters: having.len(),
            rank: combined.rank,
            norm: combined.lacking.map(|(norm, _)| norm),
            error: combined.lacking.map(|(norm, lacking)| if norm > 0.0 { lacking / norm } else { 0.0 }),
        });
        self.tell();
        Ok(())
    }

    fn part(&mut self, module: &str, position: usize) -> Part {
        let Opened { weight, adapter, .. } = &self.matched.adapters[position];
        let AdapterModule { a, b, rank, scale, .. } = &adapter.modules()[module];
        let mut values = |name: &str| {
            let entry = &adapter.checkpoint().tensors()[name];
            self.read += entry.bytes;
            let element = element_of(entry.dtype).unwrap_or(Element::F32);
            element.decode(self.maps[position].bytes(entry, 0..entry.bytes))
        };
        Part { a: values(a), b: values(b), rank: *rank, weight: *weight, scale: *scale }
    }

    fn keys(&self, module: &str, side: &str, count: usize) -> Vec<StreamKey> {
        let name = format!("{module}.lora_{side}");
        (0..count as u32).map(|stream| stream_key(self.seed, &name, stream)).collect()
    }

    /// Each factor for itself.
    fn mixed(&self, module: &str, parts: Vec<Part>) -> Factors {
        let rank = parts[0].rank;
        let root = |part: &Part| (part.weight * part.scale).abs().sqrt();
        let of_b: Vec<f32> = parts.iter().map(|part| root(part) as f32).collect();
        let signed = |part: &Part| root(part) * if part.weight * part.scale < 0.0 { -1.0 } else { 1.0 };
        let of_a: Vec<f32> = parts.iter().map(|part| signed(part) as f32).collect();
        let (a, b): (Vec<_>, Vec<_>) = parts.into_iter().map(|part| (part.a, part.b)).unzip();
        let mixing = self.settings.mixing;
        let (a_keys, b_keys) = (self.keys(module, "A", a.len()), self.keys(module, "B", b.len()));
        Factors { a: mixing.mix(a, &of_a, &a_keys), b: mixing.mix(b, &of_b, &b_keys), rank, lacking: None }
    }

    /// The products, factored anew.
    fn factored(
        &self,
        module: &str,
        facts: &AdapterModule,
        parts: Vec<Part>,
        rank: usize,
    ) -> Result<Factors, MergeError> {
        let (rows, columns) = (facts.outputs, facts.inputs);
        let product = self.product(module, facts, parts);
        let norm = sum_of_squares(&self.cpu, &product).sqrt();
        if norm == 0.0 {
            let (a, b) = (vec![0.0; columns], vec![0.0; rows]);
            return Ok(Factors { a, b, rank: 1, lacking: Some((0.0, 0.0)) });
        }
        let budget = Budget { rank, error: None, epsilon: 0.0 };
        let key = self.keys(module, "svd", 1)[0];
        let mut go_on = |_| !self.execute.cancel.load(Relaxed);
        let how = (budget, Share::Left, self.element);
        let found =
            factor(&self.cpu, &Matrix { values: &product, rows, columns }, norm, how, key, &mut go_on);
        let found = found.map_err(|error| match error {
            SvdError::Stopped => MergeError::Interrupted,
            SvdError::NotFinite => {
                MergeError::NotFactored { tensor: module.to_owned(), detail: error.to_string() }
            }
        })?;
        let (rank, lacking) = (found.values.len(), Some((norm, found.error)));
        Ok(Factors { a: found.right, b: found.left, rank, lacking })
    }

    /// What the adapters' products `s B A` are mixed into.
    fn product(&self, module: &str, facts: &AdapterModule, parts: Vec<Part>) -> Vec<f32> {
        let length = facts.outputs * facts.inputs;
        let add = |part: &Part, factor: f64, to: &mut [f32]| {
            let b: Vec<f32> = part.b.iter().map(|&x| (-factor * f64::from(x)) as f32).collect();
            subtract(&self.cpu, &b, &part.a, part.rank, facts.inputs, to);
        };
        if self.settings.mixing == Mixing::Linear {
            let mut sum = vec![0.0; length];
            parts.iter().for_each(|part| add(part, part.weight * part.scale, &mut sum));
            return sum;
        }
        let weights: Vec<f32> = parts.iter().map(|part| part.weight as f32).collect();
        let products = parts.iter().map(|part| {
            let mut product = vec![0.0; length];
            add(part, part.scale, &mut product);
            product
        });
        self.settings.mixing.mix(products.collect(), &weights, &self.keys(module, "product", weights.len()))
    }

    fn tell(&self) {
        let all =
            self.matched.adapters.iter().flat_map(|opened| opened.adapter.checkpoint().tensors().values());
        (self.execute.on_progress)(Progress {
            bytes_read: self.read,
            bytes_to_read: all.map(|entry| entry.bytes).sum(),
            bytes_hashed: 0,
            bytes_to_hash: 0,
        });
    }

    fn finish(mut self, start: Instant) -> Result<Report, MergeError> {
        let known = self.report.modules.iter().filter_map(|module| module.norm.zip(module.error));
        let (mut norms, mut errors) = (0.0, 0.0);
        for (norm, error) in known {
            norms += norm * norm;
            errors += (norm * error).powi(2);
        }
        if matches!(self.settings.of, Of::Products { .. }) {
            self.report.error = Some(if norms > 0.0 { (errors / norms).sqrt() } else { 0.0 });
        }
        self.report.bytes_written = self.output.bytes();
        let files = self.files();
        let card = card(&self.report, &files.base);
        let output = self.output.finish(&files, &[("README.md".to_owned(), card.into_bytes())])?;
        let (seconds, peak_memory) = (start.elapsed().as_secs_f64(), resident::peak());
        Ok(Report { output, seconds, peak_memory, ..self.report })
    }

    fn files(&self) -> AdapterFiles {
        let of = self.report.modules.iter().map(|module| (module.module.clone(), module.rank));
        let (rank, others) = ranks(&of.collect::<IndexMap<_, _>>());
        let configs = || self.matched.adapters.iter().map(|opened| opened.adapter.config());
        let first = configs().next();
        AdapterFiles {
            base: first.and_then(|config| config.base_model()).unwrap_or_default().to_owned(),
            rank,
            alpha: rank as f64,
            targets: targets(self.matched),
            alpha_pattern: others.iter().map(|(module, rank)| (module.clone(), *rank as f64)).collect(),
            rank_pattern: others,
            fan_in_fan_out: configs().any(|config| config.is_fan_in_fan_out()),
            task: first.and_then(|config| Some(config.object().get("task_type")?.as_str()?.to_owned())),
            ties_weights: configs().any(|config| config.keeps_tied()),
            ..AdapterFiles::default()
        }
    }
}

/// The adapters side by side: their weighted sum.
fn concatenated(parts: &[Part], facts: &AdapterModule) -> Factors {
    let rank = parts.iter().map(|part| part.rank).sum();
    let scaled = |part: &Part| {
        let by = (part.weight * part.scale) as f32;
        part.a.iter().map(|&x| x * by).collect::<Vec<_>>()
    };
    let row = |at: usize| parts.iter().flat_map(move |part| &part.b[at * part.rank..(at + 1) * part.rank]);
    Factors {
        a: parts.iter().flat_map(scaled).collect(),
        b: (0..facts.outputs).flat_map(row).copied().collect(),
        rank,
        lacking: None,
    }
}

/// Words that name the modules: those of the adapters, where they chose by words alone, else all names.
fn targets(matched: &Matched) -> Vec<String> {
    const OTHERS: [&str; 3] = ["layers_to_transform", "layers_pattern", "exclude_modules"];
    let words = |opened: &Opened| {
        let object = opened.adapter.config().object();
        let is_chosen = OTHERS.iter().any(|key| object.get(*key).is_some_and(|value| !value.is_null()));
        let words = object.get("target_modules")?.as_array().filter(|_| !is_chosen)?;
        words.iter().map(|word| word.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
    };
    let all: Option<Vec<Vec<String>>> = matched.adapters.iter().map(words).collect();
    match all {
        Some(words) => words.into_iter().flatten().collect::<IndexSet<_>>().into_iter().collect(),
        None => matched.modules.keys().cloned().collect(),
    }
}

fn card(report: &Report, base: &str) -> String {
    let mut card = format!(
        "---\nlibrary_name: peft\nbase_model: {}\ntags:\n- lora\n- aludel\n---\n\n# Combined adapter\n\n\
         Combined with aludel {}: {}.\n\n| adapter | weight |\n|---|---|\n",
        quoted(base),
        env!("CARGO_PKG_VERSION"),
        report.summary()
    );
    for (name, weight) in &report.adapters {
        card.push_str(&format!("| {} | {weight} |\n", cell(name)));
    }
    card
}

impl Report {
    /// What the adapter is, in a few words.
    pub fn summary(&self) -> String {
        let ranks = || self.modules.iter().map(|module| module.rank);
        let (least, most) = (ranks().min().unwrap_or(0), ranks().max().unwrap_or(0));
        let rank = if least == most { most.to_string() } else { format!("{least} to {most}") };
        let error = self.error.map_or(String::new(), |error| format!(", relative error {error:.3e}"));
        format!("{} adapters, {} modules of rank {rank}{error}", self.adapters.len(), self.modules.len())
    }
}

impl fmt::Display for Report {
    /// A table by kind of module; with `{:#}` by module.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = |module: &str| match LayerName::of(module) {
            Some(LayerName { prefix, rest, .. }) if !f.alternate() => format!("{prefix}*.{rest}"),
            _ => module.to_owned(),
        };
        let mut groups: IndexMap<String, Vec<&Combined>> = IndexMap::new();
        for module in &self.modules {
            groups.entry(kind(&module.module)).or_default().push(module);
        }
        let range = |numbers: Vec<usize>| match (numbers.iter().min(), numbers.iter().max()) {
            (Some(least), Some(most)) if least < most => format!("{least} to {most}"),
            (Some(only), _) => only.to_string(),
            _ => String::new(),
        };
        let mut table = Table::default();
        table.add(["module", "count", "adapters", "rank", "worst error"].map(str::to_owned));
        for (name, members) in groups {
            let worst = members.iter().filter_map(|member| member.error).reduce(f64::max);
            table.add([
                name,
                members.len().to_string(),
                range(members.iter().map(|member| member.adapters).collect()),
                range(members.iter().map(|member| member.rank).collect()),
                worst.map_or_else(|| "-".to_owned(), |worst| format!("{worst:.2e}")),
            ]);
        }
        write!(f, "{table}\n{}", self.summary())
    }
}
