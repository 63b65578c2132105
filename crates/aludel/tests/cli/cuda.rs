//! Trainings on CUDA devices, where there is no GPU: on CUDA in software, by the program's own kernels.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::distill::short;
use crate::sandbox::{Sandbox, printed};

/// A run on a device, or `None` where there is nothing to have one by.
fn on_cuda(sandbox: &Sandbox, more: &[&str]) -> Option<Command> {
    sandbox.with_cuda(&[&["distill", "run.yml", "--device", "cuda", "-q"], more].concat())
}

/// Losses and gradient norms of steps, and losses of evaluations, in their order.
fn measured(sandbox: &Sandbox) -> Vec<f64> {
    let text = fs::read_to_string(sandbox.path("out.run/metrics.jsonl")).unwrap();
    let entries = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    entries.flat_map(|entry| ["loss", "kl"].map(|name| entry[name].as_f64())).flatten().collect()
}

#[test]
fn a_training_on_cuda_follows_that_on_the_cpu() {
    let run = "";
    let (cpu, cuda) = (short(run), short(run));
    let Some(mut command) = on_cuda(&cuda, &["--json"]) else { return };
    let outcome = printed(&mut command);
    assert_eq!(outcome["ending"], "complete", "{outcome}");
    cpu.aludel(&["distill", "run.yml", "-q"]).assert().code(0);
    let (got, want) = (measured(&cuda), measured(&cpu));
    assert_eq!(got.len(), want.len());
    for (at, (got, want)) in got.iter().zip(&want).enumerate() {
        assert!((got - want).abs() <= 2e-2 * want.abs(), "{at}: {got} for {want}");
    }
}
