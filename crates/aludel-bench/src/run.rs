//! Runs the cases of a definition: aludel, the reference and the floor in turn, each answer checked.
//!
//! In: a definition, the programs and a working folder. Out: a record. Outputs are removed between runs, outside of what is
//! measured; a case that fails or gives a wrong answer ends the run, and is not recorded.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use aludel_checkpoint::Checkpoint;
use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use crate::capture::{self, CacheFigures};
use crate::definition::{Case, Definition, Digests, Job};
use crate::disk::{SlowDisk, uncache};
use crate::make::make;
use crate::measure::{Sample, Stage, expand, without_folders};
use crate::record::{CaseRecord, Machine, Record, Summary, median, now, output};
use crate::shape::ModelSpec;
use crate::verify::{Distance, check_tensors, compare, fingerprint};

/// Runs cases of a definition.
pub(crate) struct Runner<'a> {
    pub(crate) definition: &'a Definition,
    /// Holds models and outputs; a RAM disk where times matter.
    pub(crate) work: &'a Path,
    pub(crate) aludel: &'a Path,
    /// The reference's command, when it is to run.
    pub(crate) reference: Option<&'a str>,
    /// Its name and version.
    pub(crate) reference_version: Option<String>,
    pub(crate) runs: usize,
    pub(crate) machine: Machine,
    /// What the program was built from.
    pub(crate) commit: String,
}

/// The folders and files of one case.
struct Places {
    models: PathBuf,
    recipe: PathBuf,
    cache: PathBuf,
    ours: PathBuf,
    reference: PathBuf,
    copy: PathBuf,
    /// Weight files of the recipe's models.
    inputs: Vec<PathBuf>,
}

/// What a program says of itself; each part only where it applies.
#[derive(Default, Deserialize)]
struct Report {
    planned_peak_memory: Option<u64>,
    bytes_hashed: Option<u64>,
    #[serde(default, alias = "merge_seconds")]
    step_seconds: Vec<f64>,
    pass_seconds: Option<f64>,
    /// The folder with the record of a training, which has its steps.
    run: Option<PathBuf>,
}

/// One line of a training's `metrics.jsonl`, as far as it says how long a step took.
#[derive(Deserialize)]
struct Measures {
    tokens: Option<f64>,
    tokens_per_second: Option<f64>,
}

impl Report {
    /// What was printed need not be a report.
    fn read(stdout: &str) -> Self {
        serde_json::from_str(stdout).unwrap_or_default()
    }

    fn complete(self, sample: Sample) -> Sample {
        let steps = self.run.as_deref().map_or(self.step_seconds, seconds_of_steps);
        Sample {
            planned_peak_bytes: self.planned_peak_memory,
            hashed_bytes: self.bytes_hashed,
            step_seconds: median(steps.get(1..).unwrap_or_default(), |&seconds| seconds),
            pass_seconds: self.pass_seconds,
            ..sample
        }
    }
}

/// The seconds of every step, from the tokens so far and the speed that each line tells.
fn seconds_of_steps(run: &Path) -> Vec<f64> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Measures>(line).ok());
    let mut before = 0.0;
    lines
        .filter_map(|line| line.tokens.zip(line.tokens_per_second))
        .map(|(tokens, speed)| (tokens - std::mem::replace(&mut before, tokens)) / speed)
        .collect()
}

/// What has been learnt of a case so far.
#[derive(Default)]
struct Results {
    tensors: usize,
    fingerprint: Option<Vec<String>>,
    ours: Vec<Sample>,
    reference: Vec<Sample>,
    floor: Vec<Sample>,
    distance: Option<Distance>,
    cache: Option<CacheFigures>,
}

impl Results {
    fn record(self, case: &Case) -> CaseRecord {
        let Self { tensors, ours, reference, floor, distance, cache, .. } = self;
        let summary = Summary::of(&ours, &reference, &floor);
        CaseRecord {
            name: case.name.clone(),
            model: case.model.clone(),
            digests: case.digests,
            tensors,
            ours,
            reference,
            floor,
            distance,
            cache,
            bars: case.bars.clone(),
            summary,
        }
    }
}

impl Runner<'_> {
    /// Runs cases in turn, round by round, so that what disturbs the machine for a while disturbs all of them, and makes a record
    /// of them.
    ///
    /// Errors: a command fails, or an answer is wrong.
    pub(crate) fn run(&self, cases: &[&Case]) -> anyhow::Result<Record> {
        let of = |case: &Case| format!("case {}", case.name);
        let mut runs = Vec::new();
        for &case in cases {
            runs.push((case, self.prepare(case).with_context(|| of(case))?, Results::default()));
        }
        for round in 0..self.runs {
            for (case, places, results) in &mut runs {
                eprintln!("{}: round {} of {}", case.name, round + 1, self.runs);
                self.round(case, places, round, results).with_context(|| of(case))?;
            }
        }
        Ok(Record {
            definition: self.definition.name.clone(),
            title: self.definition.title.clone(),
            date: now(),
            machine: self.machine.clone(),
            commit: self.commit.clone(),
            aludel: output(self.aludel, &["--version"]).unwrap_or_else(|| "unknown".to_owned()),
            reference: self.reference.and(self.reference_version.clone()),
            command: self.published_command(),
            cases: runs.into_iter().map(|(case, _, results)| results.record(case)).collect(),
        })
    }

    /// Makes the models, writes the recipe beside them, and lets aludel meet its inputs where it should know them.
    fn prepare(&self, case: &Case) -> anyhow::Result<Places> {
        let places = Places::new(self.work, case)?;
        // A relative path makes mergekit ask the hub whether it is a name there.
        let root = std::path::absolute(".")?;
        let mut recipe = case.recipe.clone();
        for (name, path) in [("{models}", &places.models), ("{out}", &places.ours), ("{root}", &root)] {
            recipe = recipe.replace(name, &path.to_string_lossy());
        }
        fs::write(&places.recipe, recipe)?;
        places.clear()?;
        if case.digests == Digests::Warm {
            self.warm(case, &places)?;
        }
        Ok(places)
    }

    /// Runs until no input is hashed any more. Digests of files that were just written are not remembered: another write
    /// within the clock's resolution could go unnoticed.
    fn warm(&self, case: &Case, places: &Places) -> anyhow::Result<()> {
        for _ in 0..WARMING_RUNS {
            let sample = self.ours(case, places)?;
            places.clear()?;
            if sample.hashed_bytes.unwrap_or(0) == 0 {
                break;
            }
            thread::sleep(SETTLING);
        }
        Ok(())
    }

    fn round(&self, case: &Case, places: &Places, round: usize, results: &mut Results) -> anyhow::Result<()> {
        if case.digests == Digests::Cold {
            forget(&places.cache)?;
        }
        let sample = self.ours(case, places)?;
        if case.job == Job::Merge {
            check_digests(case.digests, &sample)?;
        }
        report("aludel", &sample);
        results.ours.push(sample);
        self.check_answer(case, places, results)?;
        if let Some(sample) = self.reference(case, places, round)? {
            report("reference", &sample);
            results.reference.push(sample);
            results.distance = match (case.job, case.agreement) {
                (Job::Train | Job::Capture | Job::Search, _) => None,
                (Job::Merge, Some(rule)) => {
                    Some(compare(&places.ours, &places.reference, &places.base(), rule)?)
                }
                (Job::Merge, None) => bail!("it has no rule of agreement"),
            };
        }
        places.clear()?;
        if let Some(sample) = self.floor(case, places)? {
            report("floor", &sample);
            results.floor.push(sample);
        }
        places.clear()
    }

    fn ours(&self, case: &Case, places: &Places) -> anyhow::Result<Sample> {
        let template = format!("{} {}", self.definition.command, case.options);
        let mut words = self.words(&template, case, places, &places.ours)?;
        let slow = case.disk.map(|rate| SlowDisk::of(&places.models, u64::from(rate) * 1_000_000));
        let slow = slow.transpose()?;
        if let Some(slow) = &slow {
            uncache(&places.inputs)?;
            words = slow.wrap(words);
        }
        let outcome = places.stage().measure(&words)?;
        Ok(Report::read(&outcome.stdout).complete(outcome.sample))
    }

    /// `None` when the reference does not run in this round.
    fn reference(&self, case: &Case, places: &Places, round: usize) -> anyhow::Result<Option<Sample>> {
        let (Some(template), Some(reference)) = (self.reference, &self.definition.reference) else {
            return Ok(None);
        };
        if round >= case.reference_runs.unwrap_or(reference.runs) {
            return Ok(None);
        }
        let template = format!("{template} {}", case.reference_options);
        let words = self.words(&template, case, places, &places.reference)?;
        let outcome = places.stage().measure(&words)?;
        Ok(Some(Report::read(&outcome.stdout).complete(outcome.sample)))
    }

    /// All commands of the floor as one.
    fn floor(&self, case: &Case, places: &Places) -> anyhow::Result<Option<Sample>> {
        let mut total: Option<Sample> = None;
        for template in &self.definition.floor {
            let words = self.words(template, case, places, &places.copy)?;
            // What `cat` prints is a model.
            let sample = match case.job {
                Job::Capture => {
                    let outcome = places.stage().measure(&words)?;
                    Report::read(&outcome.stdout).complete(outcome.sample)
                }
                Job::Merge | Job::Train | Job::Search => places.stage().measure_silent(&words)?,
            };
            total = Some(total.map_or(sample, |before| before.then(sample)));
        }
        Ok(total)
    }

    /// The first output is checked in full; every later one must equal it.
    fn check_answer(&self, case: &Case, places: &Places, results: &mut Results) -> anyhow::Result<()> {
        let found = match case.job {
            Job::Capture => capture::fingerprint(&places.ours)?,
            Job::Merge | Job::Train => fingerprint(&places.ours)?,
            Job::Search => vec![fs::read_to_string(places.ours.join("best.yml"))?],
        };
        match &results.fingerprint {
            Some(first) => {
                ensure!(*first == found, "two runs of aludel gave different {}", case.job.output());
            }
            None => {
                match case.job {
                    Job::Capture => results.cache = Some(self.figures(case, places)?),
                    Job::Merge | Job::Train => {
                        results.tensors = check_tensors(&places.ours, &places.base())?;
                    }
                    Job::Search => {}
                }
                results.fingerprint = Some(found);
            }
        }
        Ok(())
    }

    /// What the tool says of the cache that it wrote.
    fn figures(&self, case: &Case, places: &Places) -> anyhow::Result<CacheFigures> {
        let printed = |template: &str| {
            Ok::<_, anyhow::Error>(
                places.stage().measure(&self.words(template, case, places, &places.ours)?)?.stdout,
            )
        };
        let figures = CacheFigures::read(&printed("{aludel} cache info {out} --json")?)?;
        match &self.definition.verify {
            Some(verify) => figures.with_nearness(&printed(verify)?),
            None => Ok(figures),
        }
    }

    fn words(
        &self,
        template: &str,
        case: &Case,
        places: &Places,
        out: &Path,
    ) -> anyhow::Result<Vec<OsString>> {
        let one = |path: &Path| vec![path.as_os_str().to_owned()];
        let inputs: Vec<OsString> = places.inputs.iter().map(|path| path.as_os_str().to_owned()).collect();
        let names = [
            ("aludel", one(self.aludel)),
            ("bench", one(&std::env::current_exe()?)),
            ("recipe", one(&places.recipe)),
            ("out", one(out)),
            ("options", case.options.split_whitespace().map(OsString::from).collect()),
            ("first", inputs.iter().take(1).cloned().collect()),
            ("inputs", inputs),
            ("copy", one(&places.copy)),
            ("models", one(&places.models)),
            ("base", one(&places.base())),
            ("root", vec![std::path::absolute(".")?.into_os_string()]),
        ];
        expand(template, &names)
    }

    fn published_command(&self) -> String {
        let name = &self.definition.name;
        let mut command = format!(
            "cargo run --release -p aludel-bench -- run {name} --work $WORK --aludel target/release/aludel"
        );
        if let Some(reference) = self.reference {
            command.push_str(&format!(" --reference '{}'", without_folders(reference)));
        }
        command
    }
}

impl Places {
    fn new(work: &Path, case: &Case) -> anyhow::Result<Self> {
        let models = std::path::absolute(work.join(&case.model))?;
        match case.job {
            Job::Capture => ensure!(
                models.join("base").exists(),
                "the working folder has no `{}/base`: benches/README.md says how it is made",
                case.model
            ),
            Job::Merge | Job::Train | Job::Search => make(&case.model.parse::<ModelSpec>()?, SEED, &models)?,
        }
        let mut inputs = Vec::new();
        for input in &case.inputs {
            inputs
                .extend(Checkpoint::open(&models.join(input))?.files().iter().map(|file| file.path.clone()));
        }
        let at = |name: &str| models.join(name);
        Ok(Self {
            recipe: at(&format!("{}.yml", case.name)),
            cache: at(match case.digests {
                Digests::Cold => "cache-cold",
                Digests::Warm => "cache-warm",
            }),
            ours: at("out"),
            reference: at("out-reference"),
            copy: at("copy.safetensors"),
            inputs,
            models,
        })
    }

    fn base(&self) -> PathBuf {
        self.models.join("base")
    }

    fn stage(&self) -> Stage<'_> {
        Stage { folder: &self.models, cache: &self.cache }
    }

    /// Removes what runs leave.
    fn clear(&self) -> anyhow::Result<()> {
        forget(&self.ours)?;
        forget(&self.ours.with_extension("run"))?;
        forget(&self.ours.with_extension("adapter"))?;
        forget(&self.reference)?;
        if self.copy.exists() {
            fs::remove_file(&self.copy)?;
        }
        Ok(())
    }
}

/// Holds what aludel says to have hashed against what the case promises.
fn check_digests(digests: Digests, sample: &Sample) -> anyhow::Result<()> {
    match (digests, sample.hashed_bytes) {
        (Digests::Warm, Some(bytes @ 1..)) => {
            bail!("{bytes} bytes of inputs were hashed though their digests were known")
        }
        (Digests::Cold, Some(0)) => bail!("no input was hashed though no digest was known"),
        _ => Ok(()),
    }
}

fn forget(folder: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

fn report(who: &str, sample: &Sample) {
    let peak =
        sample.peak_bytes.map_or(String::new(), |bytes| format!(", peak {:.1} MB", bytes as f64 / 1e6));
    let part = |name: &str, seconds: Option<f64>| {
        seconds.map_or(String::new(), |seconds| format!(", {name} {seconds:.3} s"))
    };
    let (step, pass) = (part("step", sample.step_seconds), part("pass", sample.pass_seconds));
    eprintln!(
        "  {who}: user {:.2} s, system {:.2} s, wall {:.2} s{peak}{step}{pass}",
        sample.user, sample.system, sample.wall
    );
}

/// One that hashes, one where the models were too new for that, and one that finds the digests.
const WARMING_RUNS: usize = 3;

/// Longer than a file must lie still before its digest is remembered.
const SETTLING: Duration = Duration::from_secs(3);

/// Of the models' values.
const SEED: u64 = 1;
