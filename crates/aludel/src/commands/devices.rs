//! `aludel devices`: lists the GPUs that merges can be computed on, tunes kernels for them, and lists what was chosen for models.

use std::sync::Arc;

use aludel_kernels::cuda::{Choice, CudaError, Device, Finding, Shape, Tuned};
use aludel_kernels::wgpu::{self, AdapterFacts, WgpuError};
use aludel_merge::plan::Bytes;
use serde_json::json;

use crate::args::DevicesArguments;
use crate::printer::Printer;
use crate::settings::Verbosity;

use super::gpu;

/// Prints every GPU, or why there is none; tunes them first where that is asked for.
pub(super) fn run(arguments: &DevicesArguments, printer: &Printer) -> anyhow::Result<()> {
    let mut found = Vec::new();
    let mut missing = None;
    for ordinal in 0.. {
        match gpu::open(ordinal) {
            Ok(device) => found.push(Arc::new(device)),
            // Past the last one.
            Err(CudaError::NoDevice) if ordinal > 0 => break,
            Err(error) => {
                missing = Some(error);
                break;
            }
        }
    }
    let mut listed = Vec::new();
    for (ordinal, device) in found.iter().enumerate() {
        let (tuned, findings) =
            if arguments.tune { tune(device, printer)? } else { (device.tuned(), Vec::new()) };
        if printer.talk().json {
            listed.push(described(ordinal, device, tuned, &findings));
        } else {
            show(ordinal, device, tuned, printer)?;
        }
    }
    let adapters = wgpu::adapters();
    if printer.talk().json {
        let missing = missing.map(|error| error.to_string());
        let by_wgpu: Vec<_> = adapters.iter().enumerate().map(adapter_described).collect();
        return printer.json(&json!({"cuda": listed, "missing": missing, "wgpu": by_wgpu}));
    }
    if let Some(error) = missing {
        printer.data(&format_args!("no GPU by CUDA: {error}"))?;
    }
    if adapters.is_empty() {
        printer.data(&format_args!("no GPU by wgpu: {}", WgpuError::NoAdapter))?;
    }
    for adapter in adapters.iter().enumerate() {
        show_adapter(adapter, printer)?;
    }
    Ok(())
}

/// Tunes a device, and tells of every candidate.
fn tune(device: &Arc<Device>, printer: &Printer) -> Result<(Option<Tuned>, Vec<Finding>), CudaError> {
    let mut findings = Vec::new();
    let tuned = device.tune(&mut |finding| {
        let Finding { kernel, shape, registers, bytes_per_second, share_of_copy, is_equal } = finding;
        let rate = Bytes(*bytes_per_second as u64);
        let equal = if *is_equal { "" } else { ", not the CPU's bits" };
        let line = format!(
            "{kernel}: {}, {registers} registers: {rate}/s, {:.0} % of a copy{equal}",
            text_of(*shape),
            100.0 * share_of_copy
        );
        printer.say(Verbosity::Normal, &line);
        findings.push(finding.clone());
    })?;
    Ok((Some(tuned), findings))
}

fn show(ordinal: usize, device: &Device, tuned: Option<Tuned>, printer: &Printer) -> std::io::Result<()> {
    let facts = device.facts();
    printer.data(&format_args!(
        "cuda:{ordinal}   {}, {}, {} of memory, {} multiprocessors",
        facts.name,
        facts.architecture,
        Bytes(facts.memory),
        facts.multiprocessors
    ))?;
    let shapes = tuned.map_or_else(|| device.shapes(), |tuned| tuned.shapes);
    let how = match tuned {
        Some(tuned) => format!("tuned, copies {}/s", Bytes(tuned.copied_per_second as u64)),
        None => "not tuned, `aludel devices --tune` does it".to_owned(),
    };
    printer.data(&format_args!("         {how}"))?;
    printer.data(&format_args!("         writes by {}", text_of(shapes.write)))?;
    printer.data(&format_args!("         selects by {}", text_of(shapes.select)))?;
    device.choices_of_models().iter().try_for_each(|choice| show_choice(choice, printer))
}

fn show_choice(choice: &Choice, printer: &Printer) -> std::io::Result<()> {
    let Choice { kernel, shape, choice, seconds, first_seconds, tried, disagreed, failed, .. } = choice;
    let [own, first] = [seconds, first_seconds].map(|seconds| 1000.0 * seconds);
    printer.data(&format_args!("         {kernel} of {shape}: {choice}"))?;
    printer.data(&format_args!(
        "           {own:.3} ms, the first of {tried} ways {first:.3} ms; {disagreed} disagreed, {failed} failed"
    ))
}

fn show_adapter((ordinal, facts): (usize, &AdapterFacts), printer: &Printer) -> std::io::Result<()> {
    printer.data(&format_args!("wgpu:{ordinal}   {}, {}, {}", facts.name, facts.api, facts.driver))?;
    let memory = if facts.is_shared { "the host's memory" } else { "memory of its own" };
    let kind = if facts.is_software { ", a program on the CPU that `auto` does not take" } else { "" };
    printer.data(&format_args!("         {memory}, batches of at most {}{kind}", Bytes(facts.batch)))
}

fn adapter_described((ordinal, facts): (usize, &AdapterFacts)) -> serde_json::Value {
    json!({
        "ordinal": ordinal,
        "name": facts.name,
        "api": facts.api,
        "driver": facts.driver,
        "software": facts.is_software,
        "shared_memory": facts.is_shared,
        "batch": facts.batch,
    })
}

fn text_of(shape: Shape) -> String {
    let Shape { threads, vector, parts } = shape;
    format!("{threads} threads of {vector} elements, {parts} blocks for a chunk")
}

fn described(
    ordinal: usize,
    device: &Device,
    tuned: Option<Tuned>,
    findings: &[Finding],
) -> serde_json::Value {
    let facts = device.facts();
    json!({
        "ordinal": ordinal,
        "name": facts.name,
        "architecture": facts.architecture,
        "memory": facts.memory,
        "multiprocessors": facts.multiprocessors,
        "shapes": tuned.map_or_else(|| device.shapes(), |tuned| tuned.shapes),
        "tuned": tuned,
        "findings": findings,
        "models": device.choices_of_models(),
    })
}
