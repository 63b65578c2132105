//! Chooses what a run does without where it would not fit the memory that there is.
//!
//! In: a run and a limit. Out: the run with settings changed that its file leaves open, the cheapest first, as few as needed; or why none fits.

use std::fmt;
use std::path::Path;

use aludel_checkpoint::resident;
use aludel_document::Problem;
use aludel_kernels::loss::LossDevice;
use aludel_kernels::nn::Device;
use serde_json::Value;

use super::Memory;
use super::count::{Counted, counted};
use crate::error::Error;
use crate::run::{Checkpointing, Moments, Run};

/// A setting that saves memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Saving {
    /// Activations inside of blocks are computed again: about a third more time for a forward and backward pass.
    Checkpointing,
    /// Moments in eight bits: no time, some precision.
    Moments,
    /// Masters and moments go to the device and back in every step.
    Optimizer,
    /// The teacher's layers go to the device for every micro-batch.
    Teacher,
}

/// All of them, the cheapest first.
const SAVINGS: [Saving; 4] = [Saving::Checkpointing, Saving::Moments, Saving::Optimizer, Saving::Teacher];

/// Bytes of a device's free memory that are left to its kernels and libraries, which nobody counts.
const RESERVE: u64 = 512 << 20;

/// A run that fits.
pub(crate) struct Fitted {
    pub(crate) run: Run,
    pub(crate) savings: Vec<Saving>,
    pub(crate) counted: Counted,
}

/// Bytes that there are for a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    /// In all.
    pub(crate) bytes: u64,
    /// Whether the user said so.
    pub(crate) is_given: bool,
    /// What the process holds of them already.
    pub(crate) process: u64,
}

/// What the process holds of the memory that a run takes, before anything of it is there: a device's libraries in its own, all else in the host's.
pub(crate) fn held<D: Device>(device: &D) -> u64 {
    let held = if device.free_memory().is_some() { device.peak_memory() } else { resident::now() };
    held.unwrap_or(0)
}

impl Limit {
    /// What is given, or what is free where the device or the system tells.
    pub(crate) fn of<D: Device>(device: &D, given: Option<u64>) -> Option<Self> {
        let (process, free) = (held(device), device.free_memory());
        let free = free.map(|free| free.saturating_sub(RESERVE)).or_else(resident::available);
        let bytes = given.or(free.map(|free| free + process))?;
        Some(Self { bytes, is_given: given.is_some(), process })
    }

    fn holds(self, memory: Memory) -> bool {
        memory.total() + self.process <= self.bytes
    }
}

impl Saving {
    /// Whether the run leaves it open, and the device has it.
    fn is_open(self, run: &Run, has_memory: bool) -> bool {
        let open = run.train.open;
        match self {
            Self::Checkpointing => open.checkpointing,
            Self::Moments => open.moments,
            Self::Optimizer => open.offload && has_memory,
            Self::Teacher => open.offload && has_memory && run.teacher.is_some(),
        }
    }

    fn apply(self, run: &mut Run) {
        match self {
            Self::Checkpointing => run.train.checkpointing = Checkpointing::Block,
            Self::Moments => run.train.moments = Moments::Int8,
            Self::Optimizer => run.train.offload.optimizer = true,
            Self::Teacher => run.train.offload.teacher = true,
        }
    }

    /// A bit of its own, for other processes.
    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for Saving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Checkpointing => "`checkpointing: block`",
            Self::Moments => "`moments: int8`",
            Self::Optimizer => "`offload: optimizer`",
            Self::Teacher => "`offload: teacher`",
        })
    }
}

/// The run with these savings.
pub(crate) fn with(run: &Run, savings: &[Saving]) -> Run {
    let mut run = run.clone();
    savings.iter().for_each(|saving| saving.apply(&mut run));
    run
}

/// Savings as a byte, and back.
pub(crate) fn bits(savings: &[Saving]) -> u8 {
    savings.iter().fold(0, |bits, saving| bits | saving.bit())
}

/// See [`bits`].
pub(crate) fn of_bits(bits: u8) -> Vec<Saving> {
    SAVINGS.into_iter().filter(|saving| bits & saving.bit() != 0).collect()
}

/// A run that goes on has the moments that it had, where its file leaves them open.
pub(crate) fn as_recorded(run: &Run, recorded: &Value) -> Run {
    let mut run = run.clone();
    if run.train.open.moments && recorded["train"]["moments"] == "int8" {
        run.train.moments = Moments::Int8;
    }
    run.train.open.moments = false;
    run
}

/// Chooses what is needed; without a limit, nothing.
///
/// # Errors
/// [`Error::Problems`] where the models cannot be opened, or nothing that is open suffices.
pub(crate) fn fit<D: LossDevice>(
    device: &D,
    run: &Run,
    processes: usize,
    limit: Option<Limit>,
) -> Result<Fitted, Error> {
    let count = |savings: &[Saving]| {
        let run = with(run, savings);
        counted(device, &run, processes).map_err(Error::into_problem)
    };
    let all = count(&[])?;
    let Some(limit) = limit.filter(|limit| !limit.holds(all.memory)) else {
        return Ok(Fitted { run: run.clone(), savings: Vec::new(), counted: all });
    };
    let has_memory = device.free_memory().is_some();
    let mut savings: Vec<Saving> = Vec::new();
    let mut least = all.memory;
    for saving in SAVINGS.into_iter().filter(|saving| saving.is_open(run, has_memory)) {
        savings.push(saving);
        let counted = count(&savings)?;
        // What saves nothing here is left.
        if counted.memory.total() >= least.total() {
            savings.pop();
            continue;
        }
        least = counted.memory;
        if limit.holds(counted.memory) {
            return fewest(run, savings, counted, &count, limit);
        }
    }
    Err(too_large(all.memory, least, &savings, limit).into())
}

/// The same without what turns out not to be needed.
fn fewest(
    run: &Run,
    mut savings: Vec<Saving>,
    mut counted: Counted,
    count: &dyn Fn(&[Saving]) -> Result<Counted, Error>,
    limit: Limit,
) -> Result<Fitted, Error> {
    for saving in savings.clone() {
        let others: Vec<Saving> = savings.iter().copied().filter(|&other| other != saving).collect();
        let without = count(&others)?;
        if limit.holds(without.memory) {
            (savings, counted) = (others, without);
        }
    }
    Ok(Fitted { run: with(run, &savings), savings, counted })
}

fn too_large(all: Memory, least: Memory, tried: &[Saving], limit: Limit) -> Problem {
    let given = if limit.is_given { "of --memory" } else { "that are free" };
    let whole = |memory: Memory| megabytes(memory.total() + limit.process);
    let tried: Vec<String> = tried.iter().map(ToString::to_string).collect();
    let tried = match tried.is_empty() {
        true => String::new(),
        false => format!(", and {} with {}", whole(least), tried.join(", ")),
    };
    let message =
        format!("the run takes {}{tried}, more than the {} {given}", whole(all), megabytes(limit.bytes));
    let smaller = "lower `micro_batch` or `sequence_length`, train adapters (`lora`), or share the state with other processes (`zero: 1`)";
    let hint = if limit.is_given {
        smaller.to_owned()
    } else {
        format!("{smaller}; `--memory` overrides what is free")
    };
    Problem::general(message).with_hint(hint)
}

/// `1234.5 MB`.
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// What was chosen, in words; `None` where nothing was.
pub(crate) fn told(savings: &[Saving]) -> Option<String> {
    let names: Vec<String> = savings.iter().map(ToString::to_string).collect();
    (!names.is_empty()).then(|| format!("to fit the memory: {}", names.join(", ")))
}

/// The settings that the last checkpoint of a run was written with.
pub(crate) fn last_recorded(output: &Path) -> Result<Option<Value>, Error> {
    let states = crate::folder::RunFolder::states_of(output);
    let Ok(steps) = states.steps() else { return Ok(None) };
    steps.last().map(|&step| Ok(states.read(step)?.run)).transpose()
}

#[cfg(test)]
mod tests {
    use aludel_kernels::element::Element;
    use aludel_kernels::nn::{Cpu, Like, Tally};

    use super::*;

    fn run_of(train: &str) -> Run {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/training");
        let text = format!(
            "teacher: {golden}/teacher\nstudent: {golden}/student\noutput: out\ndata: {{train: a.txt, sequence_length: 64}}\ntrain: {{steps: 1{train}}}\n"
        );
        Run::parse(&text).unwrap()
    }

    fn total(train: &str) -> u64 {
        let device = Cpu::new(None).unwrap();
        counted(&device, &run_of(train), 1).unwrap().memory.total()
    }

    /// What is chosen for so many bytes, or why nothing is.
    fn chosen(train: &str, bytes: u64) -> Result<Vec<Saving>, String> {
        let device = Cpu::new(None).unwrap();
        let limit = Limit { bytes, is_given: true, process: 0 };
        let fitted = fit(&device, &run_of(train), 1, Some(limit)).map_err(|error| error.to_string())?;
        assert!(fitted.counted.memory.total() <= bytes);
        Ok(fitted.savings)
    }

    #[test]
    fn the_cheapest_that_suffices_is_chosen_and_nothing_besides() {
        let [all, block, both, int8] =
            ["", ", checkpointing: block", ", checkpointing: block, moments: int8", ", moments: int8"]
                .map(total);
        assert!(both < block.min(int8) && block.max(int8) < all, "{all} {block} {int8} {both}");
        assert_eq!(chosen("", all), Ok(vec![]));
        assert_eq!(chosen("", all - 1), Ok(vec![Saving::Checkpointing]));
        assert_eq!(chosen("", both), Ok(vec![Saving::Checkpointing, Saving::Moments]));
        // Where the second alone suffices, the first is not kept.
        if int8 < block {
            assert_eq!(chosen("", int8), Ok(vec![Saving::Moments]));
        }
        assert_eq!(chosen(", checkpointing: none", all - 1), Ok(vec![Saving::Moments]));
        let message = chosen(", checkpointing: none, moments: float32", all - 1).unwrap_err();
        assert!(message.contains("the run takes 0.") && message.contains("of --memory"), "{message}");
        let message = chosen("", both - 1).unwrap_err();
        assert!(message.contains("with `checkpointing: block`, `moments: int8`"), "{message}");
    }

    /// On a device with a memory of its own, what can lie elsewhere does so last.
    #[test]
    fn a_devices_own_memory_is_left_for_the_hosts_at_last() {
        let like = Like { activation: Element::BF16, logit_memory: 1 << 20, has_memory: true, missing: &[] };
        let device = Tally::new(like);
        let total =
            |savings: &[Saving]| counted(&device, &with(&run_of(""), savings), 1).unwrap().memory.total();
        let chosen = |bytes| {
            let limit = Limit { bytes, is_given: true, process: 0 };
            fit(&device, &run_of(""), 1, Some(limit))
                .map(|fitted| fitted.savings)
                .map_err(|error| error.to_string())
        };
        assert!(total(&SAVINGS) < total(&SAVINGS[..3]), "{} {}", total(&SAVINGS), total(&SAVINGS[..3]));
        assert!(chosen(total(&SAVINGS)).unwrap().contains(&Saving::Teacher));
        assert!(!chosen(total(&SAVINGS[..2])).unwrap().contains(&Saving::Optimizer));
        assert!(chosen(total(&SAVINGS) / 4).unwrap_err().contains("`offload: teacher`"));
    }

    #[test]
    fn a_run_that_goes_on_keeps_its_moments() {
        let device = Cpu::new(None).unwrap();
        let mut recorded = run_of(", moments: int8").to_json().unwrap();
        let run = as_recorded(&run_of(""), &recorded);
        assert_eq!((run.train.moments, run.train.open.moments), (Moments::Int8, false));
        recorded["train"]["moments"] = "float32".into();
        let run = as_recorded(&run_of(""), &recorded);
        let limit = Limit { bytes: total("") - 1, is_given: false, process: 0 };
        assert_eq!(fit(&device, &run, 1, Some(limit)).unwrap().savings, [Saving::Checkpointing]);
        assert_eq!(as_recorded(&run_of(", moments: float32"), &recorded).train.moments, Moments::Float32);
    }

    #[test]
    fn savings_go_to_other_processes_as_bits() {
        for savings in [vec![], vec![Saving::Moments], SAVINGS.to_vec()] {
            assert_eq!(of_bits(bits(&savings)), savings);
        }
    }
}
