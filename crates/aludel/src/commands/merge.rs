//! `aludel merge`: plans, runs the plan, and reports.

use std::path::{Path, PathBuf};

use aludel_checkpoint::{DigestCache, check_target};
use aludel_document::Problem;
use aludel_merge::execute::{
    self, DeviceReport, ExecuteOptions, MergeError, Opening, Pipeline, Report, forget_finished, is_finished,
    mark_begun, mark_finished, parts_of,
};
use aludel_merge::plan::{Bytes, Compute, Form, Part, Plan, PlanOptions, Role, Values};
use aludel_merge::sequence::Run;

use crate::args::{ComputeName, MergeArguments, OutputForm, ResumableFlags, WritingFlags};
use crate::elsewhere::Destination;
use crate::failure::{Refusal, of_merging};
use crate::hub;
use crate::printer::Printer;
use crate::progress::{Progress, Stage, duration};
use crate::settings::{Verbosity, plan_options};
use crate::signals::Signals;

use super::{gpu, recipe};

/// Merges, and prints a summary; the report is the result where JSON is asked for.
pub(super) fn run(arguments: &MergeArguments, printer: &Printer) -> anyhow::Result<()> {
    arguments.mergekit.heed(printer)?;
    let part = arguments.part.map(|part| Part { number: part.number as usize, of: part.of as usize });
    let part = part.filter(|part| *part != Part::WHOLE);
    if part.is_some() {
        check_target(&arguments.output, arguments.writing.folder.force)?;
    }
    if part.is_some() && matches!(arguments.form, OutputForm::SparseDelta | OutputForm::SparseDeltaFp8) {
        let problem = Problem::general("a sparse delta is written in one piece")
            .with_hint("leave `--part` or `--output sparse-delta` out");
        return Err(Refusal { recipe: None, problems: problem.into() }.into());
    }
    let destination = Destination::of(&arguments.output)?;
    if let Some(destination) = &destination {
        if part.is_some() || arguments.stages.intermediate_dir.is_some() {
            let message = "an output in object storage is written in one piece and one merge";
            let problem = Problem::general(message).with_hint("leave --part and --intermediate-dir out");
            return Err(Refusal { recipe: None, problems: problem.into() }.into());
        }
        return merge_elsewhere(destination, arguments, printer);
    }
    let target = match part {
        Some(Part { number, of }) => parts_of(&arguments.output).join(format!("{number}-of-{of}")),
        None => arguments.output.clone(),
    };
    let part = part.unwrap_or(Part::WHOLE);
    let options =
        PlanOptions { part, ..options(arguments, &target, arguments.writing.folder.force, printer) };
    let Some(results) = &arguments.stages.intermediate_dir else {
        let device = gpu::for_merges(arguments.device)?;
        let plan = recipe::plan(&arguments.recipe, &options)?;
        let report = merge(&plan, &target, &arguments.writing, device, printer)?;
        return if printer.talk().json { printer.json(&report) } else { Ok(()) };
    };
    if arguments.writing.resume {
        check_target(&arguments.output, arguments.writing.folder.force)?;
    }
    // Results that are there already are in nobody's way: those of this recipe are gone on with, others are refused in their turn.
    let options = PlanOptions { replace: options.replace || arguments.writing.resume, ..options };
    let device = gpu::for_merges(arguments.device)?;
    let sequence = recipe::Runs::of(&arguments.recipe, &options, results)?;
    let reports = merge_all(&sequence, arguments, device.as_ref(), printer)?;
    if printer.talk().json { printer.json(&reports) } else { Ok(()) }
}

/// Merges into a folder of this machine, and puts what is there where the output is to be.
fn merge_elsewhere(
    destination: &Destination,
    arguments: &MergeArguments,
    printer: &Printer,
) -> anyhow::Result<()> {
    let (staged, resumes) = (destination.staged(), arguments.writing.resume);
    // What is staged is this program's own, and gives way.
    let plan = recipe::plan(&arguments.recipe, &options(arguments, staged, true, printer))?;
    let is_merged = resumes && is_finished(&plan, staged);
    destination.check(arguments.writing.folder.force || is_merged)?;
    let mut report = None;
    if !is_merged {
        let folder = WritingFlags { force: true, no_sync: arguments.writing.folder.no_sync };
        let device = gpu::for_merges(arguments.device)?;
        let writing = ResumableFlags { folder, resume: resumes, pipeline: arguments.writing.pipeline };
        mark_begun(&plan, staged)?;
        let merged = merge(&plan, staged, &writing, device, printer)?;
        mark_finished(&plan, staged)?;
        report = Some(Report { output: PathBuf::from(destination.address()), ..merged });
    }
    let put = destination.put(is_merged, printer);
    put.map_err(|error| error.context("the output is whole here and not there: `--resume` goes on with it"))?;
    forget_finished(staged);
    match report.filter(|_| printer.talk().json) {
        Some(report) => printer.json(&report),
        None => Ok(()),
    }
}

/// What the plan of a merge depends on.
fn options(arguments: &MergeArguments, target: &Path, replace: bool, printer: &Printer) -> PlanOptions {
    PlanOptions {
        hub: hub::open(printer),
        form: match arguments.form {
            OutputForm::Dense => Form::Dense,
            OutputForm::SparseDelta => Form::SparseDelta(Values::Exact),
            OutputForm::SparseDeltaFp8 => Form::SparseDelta(Values::Fp8),
            OutputForm::Fp8 => Form::Fp8,
        },
        compute: match arguments.compute {
            ComputeName::Exact => Compute::Exact,
            ComputeName::Fp8 => Compute::Fp8,
        },
        ..plan_options(&arguments.planning, arguments.seed.seed, Some(target), replace)
    }
}

/// Merges one after the other. Results in between are marked until the last has been written: a run that goes on passes over them.
fn merge_all(
    sequence: &recipe::Runs,
    arguments: &MergeArguments,
    device: Option<&Opening>,
    printer: &Printer,
) -> anyhow::Result<Vec<Report>> {
    let target = |run: &Run| run.target().cloned().unwrap_or_else(|| arguments.output.clone());
    let mut reports = Vec::new();
    for run in sequence.runs() {
        let (plan, target) = (sequence.plan(run)?, target(run));
        if arguments.writing.resume && run.name().is_some() && is_finished(&plan, &target) {
            let line = format!("{} is there from an earlier run", target.display());
            printer.say(Verbosity::Normal, &line);
            continue;
        }
        if run.name().is_some() {
            // Before the mark of what is there: a run that is refused changes nothing.
            check_target(&target, arguments.writing.folder.force)?;
            mark_begun(&plan, &target)?;
        }
        reports.push(merge(&plan, &target, &arguments.writing, device.cloned(), printer)?);
        if run.name().is_some() {
            mark_finished(&plan, &target)?;
        }
    }
    sequence.runs().iter().filter(|run| run.name().is_some()).for_each(|run| forget_finished(&target(run)));
    Ok(reports)
}

/// Merges as planned; the report is the result where JSON is asked for.
pub(super) fn carry_out(
    plan: &Plan,
    output: &Path,
    writing: &ResumableFlags,
    printer: &Printer,
) -> anyhow::Result<()> {
    let report = merge(plan, output, writing, None, printer)?;
    if printer.talk().json { printer.json(&report) } else { Ok(()) }
}

/// Merges as planned, and says what it did.
fn merge(
    plan: &Plan,
    output: &Path,
    writing: &ResumableFlags,
    device: Option<Opening>,
    printer: &Printer,
) -> anyhow::Result<Report> {
    let subject = subject(plan);
    announce(plan, &subject, output, printer);
    let report = execute(plan, output, writing, device, printer)?;
    aligned(&report).iter().for_each(|line| printer.say(Verbosity::Normal, line));
    printer.say(Verbosity::Normal, &summary("merged", &subject, &report));
    report.device.iter().flat_map(on_device).for_each(|line| printer.say(Verbosity::Normal, &line));
    printer.say(Verbosity::Verbose, &copied(&report));
    Ok(report)
}

/// Runs a plan with progress and signals.
pub(super) fn execute(
    plan: &Plan,
    target: &Path,
    writing: &ResumableFlags,
    device: Option<Opening>,
    printer: &Printer,
) -> anyhow::Result<Report> {
    let signals = Signals::listen()?;
    let progress = Progress::new(printer);
    let result = execute::execute(
        plan,
        target,
        &ExecuteOptions {
            replace: writing.folder.force,
            digests: DigestCache::user(),
            cancel: signals.cancel(),
            on_progress: &|state| progress.show(Stage::of_merge(state)),
            sync: !writing.folder.no_sync,
            resume: writing.resume,
            device,
            pipeline: Pipeline {
                overlaps: !writing.pipeline.no_overlap,
                groups: !writing.pipeline.no_group,
                ..Pipeline::default()
            },
        },
    );
    drop(progress);
    // What fails after a signal fails because of it: a stopped run has not written all that it planned, for one.
    result.map_err(|error| {
        let left = left(&error);
        of_merging(error, signals.received(), left)
    })
}

/// What a run that was interrupted has left.
fn left(error: &MergeError) -> Option<String> {
    let MergeError::Unfinished { kept, .. } = error else { return None };
    Some(format!("what was done is kept in {}: `--resume` goes on with it", kept.display()))
}

/// `merged 3 models into out (2.20 GB) in 4.1 s: 2.1 GB/s read, 0.5 GB/s written, peak memory 21.0 MB`.
pub(super) fn summary(verb: &str, subject: &str, report: &Report) -> String {
    let per_second = |bytes: u64| Bytes((bytes as f64 / report.seconds.max(1e-3)) as u64);
    let memory = report.peak_memory.map_or(String::new(), |bytes| format!(", peak memory {}", Bytes(bytes)));
    let earlier = match report.tensors_resumed {
        0 => String::new(),
        count => format!(", {count} of {} tensors from an earlier run", report.tensors),
    };
    let size = match report.bytes_dense {
        None => Bytes(report.bytes_written).to_string(),
        Some(dense) => format!("sparse delta, {} of {}", Bytes(report.bytes_written), Bytes(dense)),
    };
    format!(
        "{verb} {subject} into {} ({size}) in {}: {}/s read, {}/s written{memory}{earlier}",
        report.output.display(),
        duration(report.seconds),
        per_second(report.bytes_read),
        per_second(report.bytes_written),
    )
}

/// What a device computed, and why the CPU did the rest: a line each.
fn on_device(device: &DeviceReport) -> Vec<String> {
    let tensors = |count: usize| format!("{count} tensor{}", if count == 1 { "" } else { "s" });
    let first = format!("{} computed {}", device.name, tensors(device.tensors));
    let kept =
        device.on_cpu.iter().map(|(reason, count)| format!("the CPU did {}: {reason}", tensors(*count)));
    [first].into_iter().chain(kept).collect()
}

/// What became of the experts of each model that was put in another's order.
fn aligned(report: &Report) -> Vec<String> {
    let mut models: Vec<(&str, &str, usize, usize)> = Vec::new();
    for aligned in &report.aligned {
        let (moved, all) = (aligned.moved(), aligned.order.len());
        match models
            .iter_mut()
            .find(|(model, reference, ..)| (*model, *reference) == (&*aligned.model, &*aligned.reference))
        {
            Some((.., moved_so_far, so_far)) => {
                (*moved_so_far, *so_far) = (*moved_so_far + moved, *so_far + all);
            }
            None => models.push((&aligned.model, &aligned.reference, moved, all)),
        }
    }
    let line = |(model, reference, moved, all)| {
        format!("put the experts of {model} in the order of those of {reference}: {moved} of {all} moved")
    };
    models.into_iter().map(line).collect()
}

/// `copied 1.02 bytes for each byte written`.
fn copied(report: &Report) -> String {
    let each = report.bytes_copied as f64 / report.bytes_written.max(1) as f64;
    format!("copied {each:.2} bytes for each byte written")
}

/// How many models are merged; an adapter makes one more of the model that it is added to.
fn subject(plan: &Plan) -> String {
    let count = |role: Role| plan.sources.iter().filter(|source| source.role == role).count();
    let (models, adapters) = (count(Role::Member), count(Role::Adapter));
    let plural = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    if adapters == 0 {
        return plural(models, "model");
    }
    format!("{} and {}", plural(models, "model"), plural(adapters, "adapter"))
}

/// Says what is about to happen, and what the output will be without.
fn announce(plan: &Plan, subject: &str, target: &Path, printer: &Printer) {
    let work = &plan.work;
    let (read, written) = (Bytes(work.bytes_read), Bytes(work.bytes_written));
    match printer.talk().verbosity {
        Verbosity::Steps => printer.say(Verbosity::Steps, &format_args!("{plan:#}")),
        _ => printer.say(Verbosity::Verbose, plan),
    }
    let line = format!(
        "merging {subject} by {} into {}: {read} to read, {written} to write",
        plan.method,
        target.display()
    );
    printer.say(Verbosity::Normal, &line);
    if printer.talk().verbosity == Verbosity::Normal {
        dropped(plan).iter().for_each(|line| printer.say(Verbosity::Normal, line));
    }
}

/// One line for each reason for which tensors are left out of the output.
fn dropped(plan: &Plan) -> Vec<String> {
    let mut groups: Vec<(&str, &str, usize)> = Vec::new();
    for dropped in &plan.dropped {
        match groups.iter_mut().find(|(_, reason, _)| *reason == dropped.reason) {
            Some((_, _, count)) => *count += 1,
            None => groups.push((&dropped.tensor, &dropped.reason, 1)),
        }
    }
    let line = |(tensor, reason, count): (&str, &str, usize)| {
        let others = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
        format!("left out {tensor}{others}: {reason}")
    };
    groups.into_iter().map(line).collect()
}
