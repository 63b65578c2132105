//! `aludel merge-lora`: combines adapters into one.

use aludel_document::Problem;
use aludel_merge::adapter::combine::{self, Mixing, Of, Report, Settings, Sign};
use aludel_merge::execute::ExecuteOptions;
use aludel_merge::plan::{Bytes, PlanOptions};

use crate::args::{CombinationName, CombineArguments, SignName};
use crate::failure::{self, Refusal};
use crate::hub;
use crate::printer::Printer;
use crate::progress::{Progress, Stage, duration};
use crate::settings::{Verbosity, float_type};
use crate::signals::Signals;

/// Combines, and prints a table of modules; the report is the result where JSON is asked for.
pub(super) fn run(arguments: &CombineArguments, printer: &Printer) -> anyhow::Result<()> {
    let report = combine(arguments, printer)?;
    let line = format!(
        "combined {} adapters into {} ({}) in {}",
        report.adapters.len(),
        report.output.display(),
        Bytes(report.bytes_written),
        duration(report.seconds)
    );
    printer.say(Verbosity::Normal, &line);
    match printer.talk() {
        talk if talk.json => printer.json(&report),
        talk if talk.verbosity >= Verbosity::Verbose => Ok(printer.data(&format_args!("{report:#}"))?),
        _ => Ok(printer.data(&report)?),
    }
}

fn combine(arguments: &CombineArguments, printer: &Printer) -> anyhow::Result<Report> {
    let adapters = weighted(arguments)?;
    let (mixing, of) = method(arguments);
    let settings = Settings { adapters: &adapters, mixing, of, dtype: arguments.dtype.map(float_type) };
    let defaults = PlanOptions::default();
    let options = PlanOptions {
        hub: hub::open(printer),
        seed: arguments.seed.seed,
        threads: arguments.threads.map_or(defaults.threads, usize::from),
        ..defaults
    };
    let signals = Signals::listen()?;
    let progress = Progress::new(printer);
    let execute = ExecuteOptions {
        replace: arguments.writing.force,
        cancel: signals.cancel(),
        on_progress: &|state| progress.show(Stage::bytes("combining", state.bytes_read, state.bytes_to_read)),
        sync: !arguments.writing.no_sync,
        ..ExecuteOptions::default()
    };
    let result = combine::combine(&settings, &arguments.output, &options, &execute);
    drop(progress);
    result.map_err(|error| failure::of_merging(error, signals.received(), None))
}

/// The adapters with their weights: all 1 where none is given.
fn weighted(arguments: &CombineArguments) -> Result<Vec<(String, f64)>, Refusal> {
    let (adapters, weights) = (&arguments.adapter, &arguments.weight);
    if !weights.is_empty() && weights.len() != adapters.len() {
        let message = format!("{} adapters and {} weights", adapters.len(), weights.len());
        let problem = Problem::general(message).with_hint("give a --weight for each --adapter, or none");
        return Err(Refusal { recipe: None, problems: problem.into() });
    }
    let weights = weights.iter().copied().chain(std::iter::repeat(1.0));
    Ok(adapters.iter().cloned().zip(weights).collect())
}

fn method(arguments: &CombineArguments) -> (Mixing, Of) {
    use CombinationName as Name;
    let density = arguments.density;
    let sign = match arguments.majority_sign_method {
        SignName::Total => Sign::Total,
        SignName::Frequency => Sign::Frequency,
    };
    let products = Of::Products { rank: arguments.rank.map(usize::from) };
    match arguments.method {
        Name::Cat => (Mixing::Linear, Of::Concatenated),
        Name::Linear => (Mixing::Linear, Of::Factors),
        Name::Svd => (Mixing::Linear, products),
        Name::Ties => (Mixing::Ties { density, sign }, Of::Factors),
        Name::TiesSvd => (Mixing::Ties { density, sign }, products),
        Name::DareLinear => (Mixing::DareLinear { density }, Of::Factors),
        Name::DareLinearSvd => (Mixing::DareLinear { density }, products),
        Name::DareTies => (Mixing::DareTies { density, sign }, Of::Factors),
        Name::DareTiesSvd => (Mixing::DareTies { density, sign }, products),
        Name::MagnitudePrune => (Mixing::MagnitudePrune { density }, Of::Factors),
        Name::MagnitudePruneSvd => (Mixing::MagnitudePrune { density }, products),
    }
}
