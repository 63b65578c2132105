//! `aludel plan`: prints what a merge would do.

use aludel_merge::plan::PlanOptions;

use crate::args::PlanArguments;
use crate::hub;
use crate::printer::Printer;
use crate::settings::{Verbosity, plan_options};

use super::recipe;

/// Plans, and prints the plan as the result.
pub(super) fn run(arguments: &PlanArguments, printer: &Printer) -> anyhow::Result<()> {
    let options = PlanOptions {
        hub: hub::open(printer).with_headers_only(),
        ..plan_options(&arguments.planning, arguments.seed.seed, arguments.output.as_deref(), true)
    };
    let plan = recipe::plan(&arguments.recipe, &options)?;
    match printer.talk() {
        talk if talk.json => printer.json(&plan),
        talk if talk.verbosity >= Verbosity::Verbose => Ok(printer.data(&format_args!("{plan:#}"))?),
        _ => Ok(printer.data(&plan)?),
    }
}
