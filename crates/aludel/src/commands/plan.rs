//! `aludel plan`: prints what a merge would do.

use aludel_merge::plan::{Plan, PlanOptions};

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
    let Some(results) = &arguments.stages.intermediate_dir else {
        let plan = recipe::plan_any(&arguments.recipe, &options)?;
        return if printer.talk().json { printer.json(&plan) } else { print(&plan, printer) };
    };
    let sequence = recipe::Runs::of(&arguments.recipe, &options, results)?;
    if printer.talk().json {
        return printer.json(&sequence.foreseen);
    }
    for (run, plan) in sequence.runs().iter().zip(&sequence.foreseen) {
        if let Some(name) = run.name() {
            printer.data(&format_args!("result   {name}, in {}", results.join(name).display()))?;
        }
        print(plan, printer)?;
    }
    Ok(())
}

fn print(plan: &Plan, printer: &Printer) -> anyhow::Result<()> {
    if printer.talk().verbosity >= Verbosity::Verbose {
        Ok(printer.data(&format_args!("{plan:#}"))?)
    } else {
        Ok(printer.data(plan)?)
    }
}
