//! `aludel inspect`: lists what is in a model, or measures how models differ from their base.

use std::time::Instant;

use aludel_document::Problem;
use aludel_merge::inspect::{self, Comparison, Settings, page};
use aludel_merge::plan::{Bytes, PlanOptions};

use crate::args::InspectArguments;
use crate::failure::Refusal;
use crate::hub;
use crate::printer::Printer;
use crate::progress::duration;
use crate::settings::{Verbosity, reading_options};

use super::measuring;

/// Prints the contents of a model, or the comparison of models with a base.
pub(super) fn run(arguments: &InspectArguments, printer: &Printer) -> anyhow::Result<()> {
    match (&arguments.against, &arguments.models[..]) {
        (Some(base), models) => compare(arguments, base, models, printer),
        (None, [model]) => contents(model, printer),
        (None, _) => {
            let problem = Problem::general("several models, and none to compare them with");
            let problem = problem.with_hint("give the model that they come from with --against");
            Err(Refusal { recipe: None, problems: problem.into() }.into())
        }
    }
}

fn contents(model: &str, printer: &Printer) -> anyhow::Result<()> {
    let contents = inspect::contents(model, &hub::open(printer).with_headers_only())
        .map_err(|problems| Refusal { recipe: None, problems })?;
    match printer.talk() {
        talk if talk.json => printer.json(&contents),
        talk if talk.verbosity >= Verbosity::Verbose => Ok(printer.data(&format_args!("{contents:#}"))?),
        _ => Ok(printer.data(&contents)?),
    }
}

fn compare(
    arguments: &InspectArguments,
    base: &str,
    models: &[String],
    printer: &Printer,
) -> anyhow::Result<()> {
    let begin = Instant::now();
    let models: Vec<&str> = models.iter().map(String::as_str).collect();
    let settings = Settings { base, models: &models, threshold: arguments.threshold };
    let options = PlanOptions { hub: hub::open(printer), ..reading_options(&arguments.reading) };
    let comparison =
        measuring::run("comparing", printer, |execute| inspect::compare(&settings, &options, execute))?;
    if let Some(file) = &arguments.html {
        measuring::write_whole(file, &page::render(&comparison))?;
    }
    printer.say(Verbosity::Normal, &summary(arguments, &comparison, begin.elapsed().as_secs_f64()));
    match printer.talk() {
        talk if talk.json => printer.json(&comparison),
        talk if talk.verbosity >= Verbosity::Verbose => Ok(printer.data(&format_args!("{comparison:#}"))?),
        _ => Ok(printer.data(&comparison)?),
    }
}

/// `compared 2 models with base over 134.5 M parameters in 1.2 s: 1.3 GB/s read; page.html shows it`.
fn summary(arguments: &InspectArguments, comparison: &Comparison, seconds: f64) -> String {
    let models = comparison.models.len();
    let plural = if models == 1 { "model" } else { "models" };
    let rate = Bytes((comparison.bytes_read as f64 / seconds.max(1e-3)) as u64);
    let page = arguments.html.as_ref().map_or(String::new(), |file| format!("; {} shows it", file.display()));
    let took = duration(seconds);
    format!("compared {models} {plural} with {} in {took}: {rate}/s read{page}", comparison.base)
}
