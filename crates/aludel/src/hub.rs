//! Looks for the models that a user names, on a hub too, and shows what is downloaded.

use std::path::{Path, PathBuf};

use aludel_document::Problem;
use aludel_hub::{Event, Hub, Settings};
use aludel_merge::plan::Bytes;

use crate::elsewhere;
use crate::failure::Refusal;
use crate::printer::Printer;
use crate::progress::{Progress, Stage};
use crate::settings::Verbosity;

/// The hub of the environment.
pub(crate) fn open(printer: &Printer) -> Hub {
    // One for each command, and a process runs one: whoever is told of a download has to live as long as the hub does.
    let printer: &'static Printer = Box::leak(Box::new(Printer::new(*printer.talk())));
    let progress = Progress::new(printer);
    Hub::new(Settings::from_environment(), move |event| match event {
        Event::Progress { bytes, total_bytes, .. } => {
            progress.show(Stage::bytes("downloading", bytes, total_bytes));
        }
        Event::Finished { model, bytes } => {
            progress.clear();
            printer.say(Verbosity::Normal, &format_args!("downloaded {} of {model}", Bytes(bytes)));
        }
        Event::FromCache { model, reason } => {
            printer.warning(&format_args!(
                "the hub does not answer ({reason}): {model} is taken from the cache"
            ));
        }
        _ => {}
    })
    .with_elsewhere(move |text| elsewhere::model(text, printer))
}

/// The folder or file of a model that the command line or a run names, with a revision after an `@` where it has one.
pub(crate) fn locate(hub: &Hub, model: &Path) -> Result<PathBuf, Refusal> {
    let Some(text) = model.to_str().filter(|_| !model.exists()) else { return Ok(model.to_path_buf()) };
    let (name, revision) = match text.rsplit_once('@') {
        Some((name, revision)) => (name, Some(revision)),
        None => (text, None),
    };
    match hub.locate(name, revision) {
        Ok(located) => Ok(located.path),
        Err(error) => Err(Refusal { recipe: None, problems: Problem::general(error.to_string()).into() }),
    }
}
