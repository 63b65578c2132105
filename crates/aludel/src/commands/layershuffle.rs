//! `aludel layershuffle`: draws layers from several models into a recipe, and merges it.

use aludel_merge::plan::PlanOptions;
use aludel_merge::shuffle::{self, Drawn, Shuffle};

use crate::args::{FloatName, LayershuffleArguments};
use crate::failure::Refusal;
use crate::hub;
use crate::printer::Printer;
use crate::settings::{float_type, plan_options};

use super::{measuring, merge, recipe};

/// The name of the recipe in messages.
const NAME: &str = "layershuffle";

/// Makes the recipe, prints or writes it where asked to, and merges unless told not to.
pub(super) fn run(arguments: &LayershuffleArguments, printer: &Printer) -> anyhow::Result<()> {
    arguments.mergekit.heed(printer)?;
    let hub = hub::open(printer);
    let dtype = arguments.dtype.or(arguments.fp16.then_some(FloatName::Float16));
    let drawn = if arguments.full_random { Drawn::Layers } else { Drawn::Models };
    let asked = Shuffle {
        models: &arguments.model,
        weights: &arguments.weight,
        drawn,
        dtype: dtype.map(float_type),
        seed: arguments.seed.seed,
        hub: hub.clone().with_headers_only(),
    };
    let text = shuffle::recipe(&asked).map_err(|problems| Refusal { recipe: None, problems })?;
    if arguments.print_yaml || (arguments.dry_run && arguments.write_yaml.is_none()) {
        printer.part(&text)?;
    }
    if let Some(file) = &arguments.write_yaml {
        measuring::write_whole(file, &text)?;
    }
    let Some(output) = arguments.output.as_ref().filter(|_| !arguments.dry_run) else { return Ok(()) };
    let seed = arguments.seed.seed;
    let options = PlanOptions {
        hub,
        ..plan_options(&arguments.planning, seed, Some(output), arguments.writing.folder.force)
    };
    let plan = recipe::plan_text(NAME, &text, &options)?;
    merge::carry_out(&plan, output, &arguments.writing, printer)
}
