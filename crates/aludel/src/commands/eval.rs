//! `aludel eval`: measures how well a model predicts text.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use aludel_distill::evaluate::{self, Evaluation, Settings};
use aludel_kernels::loss::LossDevice;

use crate::args::EvalArguments;
use crate::failure;
use crate::hub;
use crate::printer::Printer;
use crate::progress::{Progress, Stage};
use crate::signals::Signals;

use super::device::{self, Opened};
use super::listing::listing;

/// Evaluates, and prints what was measured.
pub(super) fn run(arguments: &EvalArguments, printer: &Printer) -> anyhow::Result<()> {
    let hub = hub::open(printer);
    let model = hub::locate(&hub, &arguments.model)?;
    let against = arguments.against.as_deref().map(|against| hub::locate(&hub, against)).transpose()?;
    match device::open(&arguments.computing)? {
        Opened::Cpu(device) => evaluate_on(&device, arguments, (&model, against.as_deref()), printer),
        Opened::Cuda(device) => evaluate_on(&device, arguments, (&model, against.as_deref()), printer),
    }
}

fn evaluate_on<D: LossDevice>(
    device: &Arc<D>,
    arguments: &EvalArguments,
    (model, against): (&Path, Option<&Path>),
    printer: &Printer,
) -> anyhow::Result<()> {
    let signals = Signals::listen()?;
    let progress = Progress::new(printer);
    let result = evaluate::evaluate(
        device,
        &Settings {
            model,
            against,
            data: &arguments.data,
            window: arguments.window.map(NonZeroUsize::get),
            stride: arguments.stride.map(NonZeroUsize::get),
            cancel: signals.cancel(),
            on_progress: &|tokens| {
                progress.show(Stage::measured("scoring", tokens, 0, format!("{tokens} tokens")));
            },
        },
    );
    drop(progress);
    let evaluation = result.map_err(|error| failure::of_distilling(error, signals.received(), None))?;
    if printer.talk().json { printer.json(&evaluation) } else { Ok(printer.data(&table(&evaluation))?) }
}

fn table(evaluation: &Evaluation) -> String {
    let mut rows = vec![
        ("model", evaluation.model.display().to_string()),
        ("tokens", format!("{} of {} documents", evaluation.tokens, evaluation.documents)),
        ("window", format!("{} tokens, every {}", evaluation.window, evaluation.stride)),
        ("cross-entropy", format!("{:.4} nats a token", evaluation.cross_entropy)),
        ("perplexity", format!("{:.3}", evaluation.perplexity)),
        ("token accuracy", percent(evaluation.accuracy)),
    ];
    if let Some(against) = &evaluation.against {
        rows.push(("against", against.model.display().to_string()));
        rows.push(("KL(against, model)", format!("{:.4} nats a token", against.kl)));
        rows.push(("KL(model, against)", format!("{:.4} nats a token", against.reverse_kl)));
        rows.push(("top-1 agreement", percent(against.top1)));
    }
    listing(&rows)
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}
