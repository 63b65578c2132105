//! `aludel search`: finds the numbers of a recipe by which its merge does best on held-out text.
//!
//! Models stay in memory, every candidate is merged there and scored by the program's own forward pass; what is written is the best
//! recipe, the record and its page.

mod scoring;

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aludel_checkpoint::{Config, DigestCache, replace_file};
use aludel_distill::evaluate::{self, HeldOut};
use aludel_document::Problem;
use aludel_kernels::cuda;
use aludel_merge::execute::{ExecuteOptions, MergeError, Resident, write_companions};
use aludel_merge::plan::{Plan, PlanOptions, Source};
use aludel_model::Decoder;
use aludel_search::page::{self, Facts};
use aludel_search::search::best;
use aludel_search::{Evaluation, Found, Log, LogError, SearchError, Settings, Template};
use serde_json::{Value, json};

use crate::args::{DeviceName, SearchArguments};
use crate::failure::{self, Refusal};
use crate::hub;
use crate::printer::Printer;
use crate::progress::{Progress, Stage, duration};
use crate::settings::{Verbosity, reading_options};
use crate::signals::Signals;

use self::scoring::{Held, Scoring};
use super::listing::listing;
use super::{device, gpu, recipe, text};

/// Searches, and prints what was found.
pub(super) fn run(arguments: &SearchArguments, printer: &Printer) -> anyhow::Result<()> {
    match arguments.device {
        DeviceName::Cpu => {
            search_on(&device::with_threads(arguments.reading.threads)?, None, arguments, printer)
        }
        DeviceName::Cuda(ordinal) => {
            let ordinal = ordinal.unwrap_or(0);
            let scoring = gpu::for_models(ordinal)?;
            let merging = gpu::for_resident_merges(ordinal)?;
            search_on(&scoring, Some(merging), arguments, printer)
        }
    }
}

/// Merges on `merging`, or on the CPU, and scores on `device`.
fn search_on<D: Scoring>(
    device: &Arc<D>,
    merging: Option<Arc<cuda::Device>>,
    arguments: &SearchArguments,
    printer: &Printer,
) -> anyhow::Result<()> {
    let (name, text) = text::read(&arguments.recipe, recipe::RECIPE)?;
    let refused = |problems| Refusal { recipe: Some(name.clone()), problems };
    let options = PlanOptions {
        seed: arguments.seed.seed,
        allow_non_finite: arguments.allow_nan,
        hub: hub::open(printer),
        ..reading_options(&arguments.reading)
    };
    let plan = recipe::plan_text(&name, &text, &options)?;
    let template = Template::new(&text, arguments.vary.clone()).map_err(refused)?;
    let against = arguments.against.as_deref().map(|model| hub::locate(&options.hub, model)).transpose()?;
    let subject = subject(arguments, &template, &plan, against.as_deref())?;
    let folder = arguments.output.clone().unwrap_or_else(|| default_folder(&arguments.recipe));
    let mut log = open_log(&folder, arguments, &subject)?;
    let signals = Signals::listen()?;
    let companions = tempfile::tempdir()?;
    let model = companions.path().join("model");
    write_companions(&plan, &model)?;
    let progress = Progress::new(printer);
    let held_out = HeldOut::open(
        device,
        &evaluate::Settings {
            model: &model,
            against: against.as_deref(),
            data: &arguments.data,
            window: arguments.window.map(NonZeroUsize::get),
            stride: arguments.stride.map(NonZeroUsize::get),
            cancel: signals.cancel(),
            on_progress: &|tokens| {
                progress.show(Stage::measured(
                    "running the other model",
                    tokens,
                    0,
                    format!("{tokens} tokens"),
                ));
            },
        },
    )
    .map_err(|error| failure::of_distilling(error, signals.received(), None))?;
    announce(&plan, &template, held_out.tokens, log.evaluations().len(), printer);
    let results = Results { folder: &folder, template: &template, subject: &subject };
    let mut candidates = Candidates {
        name: &name,
        options: &options,
        config: Config::read(&model.join("config.json"))?,
        device: Arc::clone(device),
        resident: Resident::new(merging),
        held_out,
        merge_seconds: Vec::new(),
        signals: &signals,
        progress: &progress,
    };
    let settings = Settings {
        evaluations: arguments.evaluations.get(),
        population: arguments.population.map(NonZeroUsize::get),
        step: arguments.step,
        seed: arguments.seed.seed,
        cancel: signals.cancel(),
        on_evaluation: &|evaluations| {
            progress.show(stage(evaluations, arguments.evaluations.get()));
            if best(evaluations) == evaluations.last() {
                // For whoever looks while it goes on; that it can be written is asked for at the end.
                let _ = results.write(evaluations);
            }
        },
    };
    let found = aludel_search::search(&template, &mut log, &settings, |text| candidates.score(text));
    let merge_seconds = std::mem::take(&mut candidates.merge_seconds);
    drop(progress);
    let written = if log.evaluations().is_empty() { Ok(()) } else { results.write(log.evaluations()) };
    let left = || format!("{} is kept: `--resume` goes on with it", folder.join(LOG).display());
    let found = found.map_err(|error| ended(error, signals.received(), left))?;
    written?;
    print(&found, &merge_seconds, &results, printer)
}

const LOG: &str = "log.jsonl";
const BEST: &str = "best.yml";
const PAGE: &str = "report.html";

/// `merge.yml` is searched in `merge.search`.
fn default_folder(recipe: &Path) -> PathBuf {
    if recipe == Path::new("-") { PathBuf::from("recipe.search") } else { recipe.with_extension("search") }
}

/// What the record says that it is of.
fn subject(
    arguments: &SearchArguments,
    template: &Template,
    plan: &Plan,
    against: Option<&Path>,
) -> anyhow::Result<Value> {
    let model = |source: &Source| json!({"file": source.path.display().to_string(), "bytes": source.bytes});
    let models: Vec<Value> = plan.sources.iter().map(model).collect();
    let digests = DigestCache::user();
    let digest = |file: &PathBuf| {
        let sha256 = digests.sha256(file, &mut |_| ControlFlow::Continue(()));
        sha256.map(|sha256| json!({"file": file.display().to_string(), "sha256": sha256}))
    };
    let data: Result<Vec<Value>, _> = arguments.data.iter().map(digest).collect();
    let data =
        data.map_err(|error| Refusal { recipe: None, problems: Problem::general(error.to_string()).into() })?;
    let mut subject = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "recipe": template.text(),
        "vary": arguments.vary.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "models": models,
        "data": data,
        "against": against.map(|model| model.display().to_string()),
        "window": arguments.window,
        "stride": arguments.stride,
        "population": arguments.population,
        "step": arguments.step,
        "seed": arguments.seed.seed,
    });
    if let (DeviceName::Cuda(_), Some(fields)) = (arguments.device, subject.as_object_mut()) {
        // Other sums than the CPU's, whose scores are not compared with these.
        fields.insert("device".into(), "cuda".into());
    }
    Ok(subject)
}

/// The record, in a folder that is made where there is none.
fn open_log(folder: &Path, arguments: &SearchArguments, subject: &Value) -> anyhow::Result<Log> {
    let path = folder.join(LOG);
    let refused = |problem: Problem| Refusal { recipe: None, problems: problem.into() };
    if path.exists() && !arguments.resume && !arguments.force {
        let message = format!("{} holds a search", folder.display());
        let hint = "go on with it by --resume, discard it by --force, or choose another folder with --output";
        return Err(refused(Problem::general(message).with_hint(hint)).into());
    }
    std::fs::create_dir_all(folder).map_err(|source| LogError::Io { path: folder.to_path_buf(), source })?;
    let log = if arguments.resume { Log::resume(&path, subject) } else { Log::create(&path, subject) };
    log.map_err(|error| match error {
        LogError::Other { .. } => refused(
            Problem::general(error.to_string()).with_hint("discard it by --force, or choose another folder"),
        )
        .into(),
        error => error.into(),
    })
}

fn announce(plan: &Plan, template: &Template, tokens: u64, known: usize, printer: &Printer) {
    let count = template.variables().len();
    let numbers = if count == 1 { "1 number".to_owned() } else { format!("{count} numbers") };
    let known = if known == 0 { String::new() } else { format!(", {known} merges scored before") };
    let line =
        format!("searching {numbers} of a merge by {}: {tokens} tokens to predict{known}", plan.method);
    printer.say(Verbosity::Normal, &line);
}

/// Merges candidates in memory, and scores them.
struct Candidates<'a, D: Scoring> {
    name: &'a str,
    options: &'a PlanOptions,
    config: Config,
    device: Arc<D>,
    resident: Resident<cuda::Device>,
    held_out: HeldOut<D>,
    /// Of every candidate that was merged.
    merge_seconds: Vec<f64>,
    signals: &'a Signals,
    progress: &'a Progress<'a>,
}

impl<D: Scoring> Candidates<'_, D> {
    fn score(&mut self, text: &str) -> anyhow::Result<f64> {
        let plan = recipe::plan_text(self.name, text, self.options)?;
        let options = ExecuteOptions {
            digests: DigestCache::user(),
            cancel: self.signals.cancel(),
            on_progress: &|state| {
                if state.bytes_to_read > 0 {
                    self.progress.show(Stage::bytes("reading models", state.bytes_read, state.bytes_to_read));
                }
            },
            ..ExecuteOptions::default()
        };
        let merged = self.resident.merge(&plan, &options)?;
        self.merge_seconds.push(merged.seconds);
        let model = Decoder::of_tensors(self.config.clone(), &Held::of(&merged), Arc::clone(&self.device))?;
        let scores = self.held_out.score(&model, self.signals.cancel())?;
        Ok(scores.kl.unwrap_or(scores.cross_entropy))
    }
}

/// How far a search is.
fn stage(evaluations: &[Evaluation], all: usize) -> Stage {
    let score = |evaluation: Option<&Evaluation>| {
        evaluation
            .and_then(|known| known.score)
            .map_or_else(|| "none".to_owned(), |score| format!("{score:.4}"))
    };
    let seconds: f64 = evaluations.iter().map(|evaluation| evaluation.seconds).sum();
    let (done, each) = (evaluations.len(), seconds / evaluations.len().max(1) as f64);
    let figures = format!(
        "{done} of {all} merges, best {}, as given {}, {} each, {} left",
        score(best(evaluations)),
        score(evaluations.first()),
        duration(each),
        duration(each * all.saturating_sub(done) as f64),
    );
    Stage::measured("searching", done as u64, all as u64, figures)
}

/// Why a search ended early.
fn ended(error: SearchError<anyhow::Error>, signal: Option<u8>, left: impl Fn() -> String) -> anyhow::Error {
    match (error, signal) {
        (_, Some(signal)) => failure::Interrupted { signal, left: Some(left()) }.into(),
        (SearchError::Score(error), None) => match error.downcast::<MergeError>() {
            Ok(error) => failure::of_merging(error, None, None),
            Err(error) => match error.downcast::<aludel_distill::Error>() {
                Ok(error) => failure::of_distilling(error, None, None),
                Err(error) => error,
            },
        },
        (error, None) => error.into(),
    }
}

/// Where what was found is written.
struct Results<'a> {
    folder: &'a Path,
    template: &'a Template,
    subject: &'a Value,
}

impl Results<'_> {
    fn write(&self, evaluations: &[Evaluation]) -> anyhow::Result<()> {
        if let Some(best) = best(evaluations) {
            self.replace(BEST, &self.template.with(&page::parsed(best)))?;
        }
        let facts: Vec<(String, String)> = ["models", "data", "against", "seed"]
            .into_iter()
            .filter_map(|name| Some((name, self.subject.get(name).filter(|value| !value.is_null())?)))
            .map(|(name, value)| (name.to_owned(), listed(value)))
            .collect();
        let facts = Facts { title: "Search for a merge", measure: self.measure(), facts: &facts };
        self.replace(PAGE, &page::render(&facts, self.template, evaluations))
    }

    /// What a score is.
    fn measure(&self) -> &'static str {
        let is_kl = self.subject.get("against").is_some_and(|against| !against.is_null());
        if is_kl { "KL from the other model, nats a token" } else { "cross-entropy, nats a token" }
    }

    fn replace(&self, name: &str, text: &str) -> anyhow::Result<()> {
        Ok(replace_file(&self.folder.join(name), text.as_bytes())?)
    }
}

/// Files and other values as a line.
fn listed(value: &Value) -> String {
    match value {
        Value::Array(items) => items.iter().map(listed).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => fields.get("file").map_or_else(String::new, listed),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn print(
    found: &Found,
    merge_seconds: &[f64],
    results: &Results<'_>,
    printer: &Printer,
) -> anyhow::Result<()> {
    let path = |name: &str| results.folder.join(name);
    if printer.talk().json {
        return printer.json(&json!({
            "measure": results.measure(),
            "score": found.best.score,
            "score_as_given": found.given.score,
            "values": results.template.variables().iter().zip(&found.best.values)
                .map(|(variable, value)| (variable.places.join(","), value.parse::<f64>().ok().into()))
                .collect::<serde_json::Map<String, Value>>(),
            "evaluations": found.evaluations,
            "merge_seconds": merge_seconds,
            "settled": found.end == aludel_search::End::Settled,
            "recipe": path(BEST),
            "log": path(LOG),
            "report": path(PAGE),
        }));
    }
    let score = |score: Option<f64>| score.map_or_else(|| "none".to_owned(), |score| format!("{score:.4}"));
    let mut rows = vec![
        ("score".to_owned(), format!("{} ({} as given)", score(found.best.score), score(found.given.score))),
        ("measure".to_owned(), results.measure().to_owned()),
    ];
    for ((variable, value), given) in
        results.template.variables().iter().zip(&found.best.values).zip(results.template.given())
    {
        rows.push((variable.places.join(", "), format!("{value} ({given} as given)")));
    }
    let end = match found.end {
        aludel_search::End::UsedUp => "",
        aludel_search::End::Settled => ", settled",
    };
    rows.push(("merges".to_owned(), format!("{} scored{end}", found.evaluations)));
    rows.push(("recipe".to_owned(), path(BEST).display().to_string()));
    rows.push(("report".to_owned(), path(PAGE).display().to_string()));
    let rows: Vec<(&str, String)> = rows.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    Ok(printer.data(&listing(&rows))?)
}
