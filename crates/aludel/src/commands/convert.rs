//! `aludel convert`: writes a model anew, with another type, shard size or format.

use std::path::Path;

use aludel_document::{Problem, Problems};
use aludel_hub::Hub;
use aludel_merge::plan::{Form, Plan, PlanOptions};
use aludel_merge::recipe::Recipe;

use crate::args::{ConvertArguments, FloatName, WeightName};
use crate::failure::Refusal;
use crate::hub;
use crate::printer::Printer;
use crate::settings::{Verbosity, float_type, plan_options};

use super::{gguf, merge};

/// Converts, and prints a summary; the report is the result where JSON is asked for.
pub(super) fn run(arguments: &ConvertArguments, printer: &Printer) -> anyhow::Result<()> {
    // FP8 needs the largest value of each row first, which a merge's passes find.
    if gguf::is_gguf(&arguments.input) && arguments.dtype != Some(WeightName::Fp8) {
        return gguf::run(arguments, printer);
    }
    let plan = plan(arguments, hub::open(printer)).map_err(|problems| Refusal { recipe: None, problems })?;
    printer.say(Verbosity::Verbose, &plan);
    let report = merge::execute(&plan, &arguments.output, &arguments.writing, None, printer)?;
    let subject = arguments.input.display().to_string();
    printer.say(Verbosity::Normal, &merge::summary("converted", &subject, &report));
    if printer.talk().json { printer.json(&report) } else { Ok(()) }
}

/// A merge of one model that passes it through.
fn plan(arguments: &ConvertArguments, hub: Hub) -> Result<Plan, Problems> {
    let dtype = arguments.dtype.and_then(WeightName::float);
    let recipe = Recipe::parse(&passthrough(&arguments.input, dtype)?)?;
    let form = if arguments.dtype == Some(WeightName::Fp8) { Form::Fp8 } else { Form::Dense };
    let options =
        plan_options(&arguments.planning, 0, Some(&arguments.output), arguments.writing.folder.force);
    Plan::new(&recipe, &PlanOptions { hub, form, ..options })
}

fn passthrough(input: &Path, dtype: Option<FloatName>) -> Result<String, Problem> {
    let Some(path) = input.to_str() else {
        return Err(Problem::general(format!("{} is no name in UTF-8", input.display())));
    };
    // A JSON string is a YAML string, whatever is in it.
    let mut recipe =
        format!("merge_method: passthrough\nmodels:\n  - model: {}\n", serde_json::Value::from(path));
    if let Some(dtype) = dtype {
        recipe.push_str(&format!("dtype: {}\n", float_type(dtype).torch_name()));
    }
    Ok(recipe)
}
