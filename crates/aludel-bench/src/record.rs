//! Keeps what was measured: one JSON file for each definition, day and machine.
//!
//! In: samples, and what can be learnt of the machine. Out: medians, ratios, and files under `benches/record`. A record
//! says nothing of where it was made: no paths, no names of hosts.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::capture::CacheFigures;
use crate::definition::{Bars, Digests};
use crate::measure::Sample;
use crate::verify::Distance;

/// The results of one definition on one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) definition: String,
    pub(crate) title: String,
    /// UTC, to the second.
    pub(crate) date: String,
    pub(crate) machine: Machine,
    /// Of this repository; ends in `+` when there were changes.
    pub(crate) commit: String,
    /// What `aludel --version` prints.
    pub(crate) aludel: String,
    /// The reference's name and version, when it ran.
    pub(crate) reference: Option<String>,
    /// The command that made this record.
    pub(crate) command: String,
    pub(crate) cases: Vec<CaseRecord>,
}

/// The results of one case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CaseRecord {
    pub(crate) name: String,
    pub(crate) model: String,
    pub(crate) digests: Digests,
    /// In the output.
    pub(crate) tensors: usize,
    /// The runs in the order of the rounds; in a round aludel, the reference and the floor take turns.
    pub(crate) ours: Vec<Sample>,
    pub(crate) reference: Vec<Sample>,
    pub(crate) floor: Vec<Sample>,
    /// How far the outputs were apart, where the reference ran.
    pub(crate) distance: Option<Distance>,
    /// Of a cache: how large it is, and how near its teacher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cache: Option<CacheFigures>,
    pub(crate) bars: Bars,
    /// Computed from the above.
    pub(crate) summary: Summary,
}

/// What a table shows of a case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) ours: Option<Medians>,
    pub(crate) reference: Option<Medians>,
    pub(crate) floor: Option<Medians>,
    /// The reference's processor time over aludel's.
    pub(crate) cpu: Option<Ratio>,
    /// The reference's wall time over aludel's.
    pub(crate) wall: Option<Ratio>,
    /// Aludel's wall time over the floor's.
    pub(crate) over_floor: Option<Ratio>,
    /// The reference's seconds for a training step over aludel's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) step: Option<Ratio>,
    /// The time of a capture over the floor's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pass: Option<Ratio>,
}

/// Medians over runs; the peak is the largest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Medians {
    pub(crate) cpu: f64,
    pub(crate) wall: f64,
    pub(crate) peak_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) step_seconds: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pass_seconds: Option<f64>,
}

/// A ratio of medians, and the extremes that the single runs allow.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// Where it was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_gb: u64,
    pub(crate) system: String,
    /// The first NVIDIA GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gpu: Option<String>,
    /// Processes that were running or waiting to, averaged over the minute before the first run.
    pub(crate) load: Option<f64>,
}

impl Summary {
    pub(crate) fn of(ours: &[Sample], reference: &[Sample], floor: &[Sample]) -> Self {
        Self {
            ours: Medians::of(ours),
            reference: Medians::of(reference),
            floor: Medians::of(floor),
            cpu: Ratio::of(reference, ours, Sample::cpu),
            wall: Ratio::of(reference, ours, |sample| sample.wall),
            over_floor: Ratio::of(ours, floor, |sample| sample.wall),
            step: Ratio::of_known(reference, ours, |sample| sample.step_seconds),
            pass: Ratio::of_known(ours, floor, |sample| sample.pass_seconds),
        }
    }
}

impl Medians {
    fn of(samples: &[Sample]) -> Option<Self> {
        let cpu = median(samples, Sample::cpu)?;
        let wall = median(samples, |sample| sample.wall)?;
        let step_seconds = median_of_known(samples, |sample| sample.step_seconds);
        let pass_seconds = median_of_known(samples, |sample| sample.pass_seconds);
        let peak_bytes = samples.iter().filter_map(|sample| sample.peak_bytes).max();
        Some(Self { cpu, wall, peak_bytes, step_seconds, pass_seconds })
    }
}

impl Ratio {
    fn of(above: &[Sample], below: &[Sample], figure: impl Fn(&Sample) -> f64 + Copy) -> Option<Self> {
        let (least_above, most_above) = extremes(above, figure)?;
        let (least_below, most_below) = extremes(below, figure)?;
        let median = median(above, figure)? / median(below, figure)?;
        Some(Self { median, min: least_above / most_below, max: most_above / least_below })
    }

    /// Of the samples that have the figure.
    fn of_known(above: &[Sample], below: &[Sample], figure: Figure) -> Option<Self> {
        Self::of(&with(above, figure), &with(below, figure), |sample| figure(sample).unwrap_or_default())
    }
}

/// What only some runs tell.
type Figure = fn(&Sample) -> Option<f64>;

fn with(samples: &[Sample], figure: Figure) -> Vec<Sample> {
    samples.iter().filter(|sample| figure(sample).is_some()).copied().collect()
}

fn median_of_known(samples: &[Sample], figure: Figure) -> Option<f64> {
    median(&with(samples, figure), |sample| figure(sample).unwrap_or_default())
}

fn sorted<T>(samples: &[T], figure: impl Fn(&T) -> f64) -> Vec<f64> {
    let mut figures: Vec<f64> = samples.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures
}

/// The median of a figure; `None` without samples.
pub(crate) fn median<T>(samples: &[T], figure: impl Fn(&T) -> f64) -> Option<f64> {
    let figures = sorted(samples, figure);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => None,
        length if length % 2 == 1 => Some(figures[middle]),
        _ => Some(f64::midpoint(figures[middle - 1], figures[middle])),
    }
}

fn extremes(samples: &[Sample], figure: impl Fn(&Sample) -> f64) -> Option<(f64, f64)> {
    let figures = sorted(samples, figure);
    Some((*figures.first()?, *figures.last()?))
}

impl Machine {
    /// This machine, as far as it tells.
    pub(crate) fn here() -> Self {
        let kibibytes =
            field("/proc/meminfo", "MemTotal").and_then(|text| first_word(&text)?.parse::<f64>().ok());
        // The part after the dash names who built the kernel.
        let kernel = field("/proc/sys/kernel/osrelease", "").unwrap_or_default();
        let kernel = kernel.split('-').next().unwrap_or_default();
        Self {
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gb: kibibytes.map_or(0, |kibibytes| (kibibytes * 1024.0 / 1e9).round() as u64),
            system: format!("{} {kernel}", std::env::consts::OS).trim_end().to_owned(),
            gpu: gpu(),
            load: field("/proc/loadavg", "").and_then(|text| first_word(&text)?.parse().ok()),
        }
    }

    /// Lower-case letters, digits and dashes: `amd-epyc-2-cores`.
    fn slug(&self) -> String {
        let text = format!("{} {} cores", self.cpu, self.cores).to_lowercase();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        words.collect::<Vec<_>>().join("-")
    }
}

/// What follows a key in a file of lines.
fn field(file: impl AsRef<Path>, key: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim_start_matches([' ', '\t', ':']).trim().to_owned())
}

/// What the first NVIDIA GPU is called by its driver.
fn gpu() -> Option<String> {
    let mut folders = fs::read_dir("/proc/driver/nvidia/gpus").ok()?.filter_map(Result::ok);
    folders.find_map(|folder| field(folder.path().join("information"), "Model"))
}

fn first_word(text: &str) -> Option<&str> {
    text.split_whitespace().next()
}

impl Record {
    /// Writes the record to its place. Cases of an earlier record of the same day, machine, commit and tools that this one
    /// lacks are kept, so that cases can be measured one at a time. `order` names all cases in their order.
    pub(crate) fn save(mut self, folder: &Path, order: &[String]) -> anyhow::Result<PathBuf> {
        let day = &self.date[..self.date.len().min(10)];
        let path = folder.join(format!("{day}-{}-{}.json", self.machine.slug(), self.definition));
        if let Some(earlier) = read(&path).ok().filter(|earlier| self.continues(earlier)) {
            let lacking = |case: &CaseRecord| self.cases.iter().all(|own| own.name != case.name);
            let kept: Vec<CaseRecord> = earlier.cases.into_iter().filter(lacking).collect();
            self.cases.extend(kept);
        }
        self.cases.sort_by_key(|case| order.iter().position(|name| *name == case.name));
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        fs::write(&path, format!("{:#}\n", serde_json::to_value(&self)?))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn continues(&self, earlier: &Self) -> bool {
        let same_machine = Machine { load: None, ..self.machine.clone() }
            == Machine { load: None, ..earlier.machine.clone() };
        let tools = |record: &Self| (record.aludel.clone(), record.reference.clone());
        same_machine && self.commit == earlier.commit && tools(self) == tools(earlier)
    }
}

fn read(path: &Path) -> anyhow::Result<Record> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no record", path.display()))
}

/// The newest record of each definition, by name.
pub(crate) fn newest(folder: &Path) -> anyhow::Result<BTreeMap<String, Record>> {
    let mut records: BTreeMap<String, Record> = BTreeMap::new();
    let Ok(entries) = folder.read_dir() else { return Ok(records) };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let record = read(&path)?;
            let is_newer = records.get(&record.definition).is_none_or(|other| other.date < record.date);
            if is_newer {
                records.insert(record.definition.clone(), record);
            }
        }
    }
    Ok(records)
}

/// Now, in UTC, to the second.
pub(crate) fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// The commit of the current folder's repository.
pub(crate) fn commit() -> String {
    let git = |arguments: &[&str]| output("git".as_ref(), arguments);
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    // Records and what is rendered from them do not change what is measured.
    let changes = git(&["status", "--porcelain", "--", "crates", "Cargo.toml", "Cargo.lock"]);
    if changes.is_some_and(|changes| !changes.is_empty()) { format!("{commit}+") } else { commit }
}

/// What a program prints, trimmed; `None` when it fails.
pub(crate) fn output(program: &Path, arguments: &[&str]) -> Option<String> {
    let output =
        Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn samples(walls: &[f64]) -> Vec<Sample> {
        walls.iter().map(|&wall| Sample { user: 2.0 * wall, wall, ..Sample::default() }).collect()
    }

    /// A record with one case of round figures.
    pub(crate) fn example(date: &str, case: &str) -> Record {
        let mut ours = samples(&[2.0, 1.0, 4.0]);
        ours.iter_mut().for_each(|sample| sample.peak_bytes = Some(40_000_000));
        let (reference, floor) = (samples(&[30.0]), samples(&[1.0, 2.0, 1.5]));
        Record {
            definition: "test".into(),
            title: "A test".into(),
            date: date.into(),
            machine: Machine {
                cpu: "Some CPU @ 2 GHz".into(),
                cores: 2,
                memory_gb: 8,
                system: "linux 6.1".into(),
                gpu: None,
                load: None,
            },
            commit: "abc".into(),
            aludel: "aludel 0.1.0".into(),
            reference: Some("other 1".into()),
            command: "run it".into(),
            cases: vec![CaseRecord {
                name: case.into(),
                model: "llama-tiny".into(),
                digests: Digests::Warm,
                tensors: 21,
                summary: Summary::of(&ours, &reference, &floor),
                ours,
                reference,
                floor,
                distance: None,
                cache: None,
                bars: Bars { cpu: Some(9.0), wall: Some(16.0), floor: Some(1.3), ..Bars::default() },
            }],
        }
    }

    #[test]
    fn ratios_are_of_medians_with_the_extremes_that_runs_allow() {
        let summary = example("d", "x").cases[0].summary;
        assert_eq!(summary.ours.unwrap().wall, 2.0);
        assert_eq!(summary.cpu.unwrap(), Ratio { median: 15.0, min: 7.5, max: 30.0 });
        assert_eq!(summary.over_floor.unwrap(), Ratio { median: 2.0 / 1.5, min: 0.5, max: 4.0 });
        assert_eq!(median(&samples(&[1.0, 4.0]), |sample| sample.wall), Some(2.5));
        assert_eq!(Summary::of(&[], &[], &[]), Summary::default());
    }

    #[test]
    fn cases_of_one_day_and_commit_gather_in_one_record() {
        let folder = tempfile::tempdir().unwrap();
        let path =
            example("2030-01-02T03:04:05Z", "x").save(folder.path(), &["x".into(), "y".into()]).unwrap();
        assert_eq!(path.file_name().unwrap(), "2030-01-02-some-cpu-2-ghz-2-cores-test.json");
        example("2030-01-02T04:04:05Z", "y").save(folder.path(), &["x".into(), "y".into()]).unwrap();
        let names = |record: &Record| record.cases.iter().map(|case| case.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&newest(folder.path()).unwrap()["test"]), ["x", "y"]);
        let other = Record { commit: "def".into(), ..example("2030-01-02T05:04:05Z", "z") };
        other.clone().save(folder.path(), &["x".into(), "y".into()]).unwrap();
        assert_eq!(newest(folder.path()).unwrap()["test"], other);
        example("2030-01-01T05:04:05Z", "old").save(folder.path(), &["x".into(), "y".into()]).unwrap();
        assert_eq!(newest(folder.path()).unwrap()["test"], other);
    }
}
