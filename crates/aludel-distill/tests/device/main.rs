//! Holds the operations of a CUDA device to the CPU's, where there is no GPU: on CUDA in software.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "../../examples/device/batches.rs"]
mod batches;
#[path = "../../examples/device/compare.rs"]
mod compare;
mod graphs;
#[path = "../../examples/device/operations.rs"]
mod operations;
mod tuning;

use std::process::Command;

use aludel_kernels::gpu::NoStore;
use aludel_kernels::nn::{Cpu, Cuda};

use compare::Findings;

/// Which of how many processes this is, and what the names of its comparisons begin with.
const PART: &str = "ALUDEL_PART";
const BEGINS: &str = "ALUDEL_BEGINS";

/// Compares what falls to this process with whatever device it finds.
#[test]
#[ignore = "needs a CUDA device: the other tests start it where they have one in software"]
fn operations_agree() {
    let part = std::env::var(PART).ok();
    let part = part.as_deref().and_then(|part| part.split_once('/')).unwrap_or(("0", "1"));
    let part = [part.0.parse().unwrap(), part.1.parse().unwrap()];
    let mut findings = Findings::of_part(part).of(&std::env::var(BEGINS).unwrap_or_default());
    let cuda = Cuda::open(0, Box::new(NoStore)).unwrap();
    operations::compare(&Cpu::new(None).unwrap(), &cuda, &mut findings).unwrap();
    findings.finish().unwrap();
}

/// What a test of this program says that is run in a process which finds CUDA in software; `None` where there is none.
fn started(test: &str, settings: &[(&str, &str)]) -> Option<String> {
    let path = aludel_soft_cuda::library_path()?;
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", test, "--nocapture"])
        .env_remove("ALUDEL_TUNE")
        // Memory that is given back is looked at, and not kept.
        .env("ALUDEL_GRAPHS", "0")
        .env("LD_LIBRARY_PATH", &path)
        .envs(settings.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    Some(said.into_owned())
}

/// Compares a part in a process that finds CUDA in software, of an architecture.
fn compare(architecture: &str, part: &str, begins: &str) {
    // By what is built in: trials of large shapes take long in software.
    let built_in = ("ALUDEL_TUNE", "0");
    compare_with(&[("SOFT_CUDA_ARCHITECTURE", architecture), (PART, part), (BEGINS, begins), built_in]);
}

fn compare_with(settings: &[(&str, &str)]) {
    let Some(said) = started("operations_agree", settings) else { return };
    assert!(said.contains(" compared, 0 wrong"), "{said}");
}

#[test]
fn one_half_agrees_on_hopper() {
    compare("90", "0/2", "");
}

#[test]
fn the_other_half_agrees_on_hopper() {
    compare("90", "1/2", "");
}

/// Without warpgroups.
#[test]
fn attention_agrees_on_ampere() {
    compare("80", "0/1", "attention");
}

/// By the ways that trials choose, whatever the size.
#[test]
fn products_agree_by_what_is_chosen() {
    compare_with(&[("ALUDEL_TUNE", "all"), (BEGINS, "linear 37")]);
}

#[test]
fn attention_agrees_by_what_is_chosen() {
    compare_with(&[("ALUDEL_TUNE", "all"), (BEGINS, "attention 64 packed")]);
}

#[test]
fn attention_of_wide_heads_agrees_by_what_is_chosen() {
    compare_with(&[("ALUDEL_TUNE", "all"), (BEGINS, "attention 128 cap")]);
}

#[test]
fn attention_agrees_on_ampere_by_what_is_chosen() {
    compare_with(&[("ALUDEL_TUNE", "all"), (BEGINS, "attention 8"), ("SOFT_CUDA_ARCHITECTURE", "80")]);
}

#[test]
fn losses_agree_by_what_is_chosen() {
    compare_with(&[("ALUDEL_TUNE", "all"), (BEGINS, "loss mixed Teacher Gradient")]);
}

/// Clusters are a candidate that loses, where a device refuses them.
#[test]
fn losses_agree_where_no_cluster_can_be_launched() {
    let refused = ("SOFT_CUDA_CLUSTERS", "0");
    compare_with(&[("ALUDEL_TUNE", "all"), (BEGINS, "loss ForwardKl Gradient 131072"), refused]);
}
