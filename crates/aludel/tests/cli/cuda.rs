//! Trainings on CUDA devices, where there is no GPU: on CUDA in software, by the program's own kernels.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::distill::example;
use crate::processes::{COMPARED, measured, place, port};
use crate::sandbox::{Sandbox, printed};
use crate::uld;

/// A run of four steps of two micro-batches, as short as what a device of software takes long for.
fn short(train: &str) -> Sandbox {
    let sandbox = example();
    let texts = fs::read_to_string(sandbox.path("examples/data/genesis-train.jsonl")).unwrap();
    let beginning = |line: &str, length: usize| {
        let text =
            serde_json::from_str::<Value>(line).unwrap()["text"].as_str().unwrap()[..length].to_owned();
        serde_json::json!({ "text": text }).to_string() + "\n"
    };
    sandbox.write("train.jsonl", texts.lines().take(4).map(|line| beginning(line, 800)).collect::<String>());
    sandbox.write("held.jsonl", beginning(texts.lines().nth(5).unwrap(), 250));
    let text = format!(
        "teacher: examples/models/scripture\nstudent: {{from_teacher: {{layers: [0, 3]}}}}\noutput: out\n\
         data: {{train: train.jsonl, validation: held.jsonl, sequence_length: 40}}\n\
         train: {{steps: 4, batch_size: 2, micro_batch: 1, learning_rate: 3e-3{train}}}\n"
    );
    sandbox.write("run.yml", text);
    sandbox
}

/// The program on a device; `None` where there is nothing to have one by.
fn on_cuda(sandbox: &Sandbox, more: &[&str]) -> Option<Command> {
    let mut command =
        sandbox.with_cuda(&[&["distill", "run.yml", "--device", "cuda", "-q"], more].concat())?;
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Some(command)
}

#[track_caller]
fn succeed(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The student of a run on a device.
fn student(train: &str) -> Option<Vec<u8>> {
    let sandbox = short(train);
    succeed(on_cuda(&sandbox, &[])?);
    Some(fs::read(sandbox.path("out/model.safetensors")).unwrap())
}

#[test]
fn a_training_on_cuda_follows_that_on_the_cpu() {
    for train in ["", ", weights: bfloat16, gradients: bfloat16"] {
        assert_follows(&short(train), &short(train));
    }
}

/// Student and teacher have tokens of their own.
#[test]
fn a_training_by_sorted_probabilities_on_cuda_follows_that_on_the_cpu() {
    let sandbox = || {
        let sandbox = uld::sandbox();
        for (from, to, count) in [("train.jsonl", "few.jsonl", 3), ("heldout.jsonl", "held.jsonl", 1)] {
            let rows = fs::read_to_string(sandbox.path(from)).unwrap();
            sandbox.write(to, rows.split_inclusive('\n').take(count).collect::<String>());
        }
        let text = "teacher: examples/models/scripture\nstudent: {config: bytes, seed: 1}\noutput: out\n\
             objective: [{loss: uld, temperature: 1.5}, {loss: cross_entropy, weight: 0.5}]\n\
             data: {train: few.jsonl, validation: held.jsonl, sequence_length: 256}\n\
             train: {steps: 3, batch_size: 1, learning_rate: 3e-3}\n";
        sandbox.write("run.yml", text);
        sandbox
    };
    assert_follows(&sandbox(), &sandbox());
}

/// Losses and norms of gradients of a run on the CPU, and of the same on a device.
fn assert_follows(cpu: &Sandbox, cuda: &Sandbox) {
    let Some(command) = on_cuda(cuda, &[]) else { return };
    succeed(command);
    assert_followed(cpu, cuda);
}

/// The same of a run on devices that is over.
fn assert_followed(cpu: &Sandbox, cuda: &Sandbox) {
    cpu.aludel(&["distill", "run.yml", "-q"]).assert().code(0);
    let (got, want) = (measured(cuda, &COMPARED), measured(cpu, &COMPARED));
    assert_eq!(got.len(), want.len());
    for (at, (got, want)) in got.iter().zip(&want).enumerate() {
        assert!((got - want).abs() <= 1e-2 * want.abs(), "{at}: {got} for {want}");
    }
}

#[test]
fn what_is_computed_again_or_lies_elsewhere_changes_no_bit() {
    let Some(plain) = student("") else { return };
    for train in [", checkpointing: block", ", offload: [optimizer, teacher]"] {
        assert!(student(train).unwrap() == plain, "{train}");
    }
    for stored in [", moments: int8", ", weights: bfloat16", ", weights: bfloat16, moments: int8"] {
        let offloaded = format!("{stored}, offload: [optimizer]");
        assert!(student(stored) == student(&offloaded), "{stored}");
    }
}

#[test]
fn two_devices_take_the_steps_of_one() {
    let Some(alone) = student("") else { return };
    for train in ["", ", zero: 1, offload: [optimizer]"] {
        let sandbox = short(train);
        two_devices(&sandbox);
        // Each adds up one of the two micro-batches of a step, which one process adds up in the same order.
        assert!(fs::read(sandbox.path("out/model.safetensors")).unwrap() == alone, "{train}");
    }
}

/// A sum that is rounded by each device is not one that is rounded in the end.
#[test]
fn two_devices_add_rounded_gradients_up() {
    let (cpu, sandbox) = (short(", gradients: bfloat16"), short(", gradients: bfloat16"));
    if on_cuda(&sandbox, &[]).is_some() {
        two_devices(&sandbox);
        assert_followed(&cpu, &sandbox);
    }
}

/// Takes a run on two devices.
fn two_devices(sandbox: &Sandbox) {
    let port = port();
    let start = |rank: usize| {
        let mut command = on_cuda(sandbox, &[]).unwrap();
        place(&mut command, rank, port);
        command.env("SOFT_CUDA_DEVICES", "2").spawn().unwrap()
    };
    for child in [0, 1].map(start) {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_run_on_cuda_goes_on_to_the_same_bytes() {
    let sandbox = short(", save_every: 2");
    let Some(command) = on_cuda(&sandbox, &[]) else { return };
    succeed(command);
    let whole = fs::read(sandbox.path("out/model.safetensors")).unwrap();
    fs::remove_dir_all(sandbox.path("out.run/checkpoints/step-00000004")).unwrap();
    fs::remove_dir_all(sandbox.path("out")).unwrap();
    succeed(on_cuda(&sandbox, &["--resume"]).unwrap());
    assert!(fs::read(sandbox.path("out/model.safetensors")).unwrap() == whole);
}

#[test]
fn the_memory_of_a_device_is_what_was_predicted() {
    for train in ["", ", weights: bfloat16, gradients: bfloat16"] {
        assert_predicts(&short(train));
    }
}

#[track_caller]
fn assert_predicts(sandbox: &Sandbox) {
    let Some(mut dry) = on_cuda(sandbox, &["--dry-run", "--json"]) else { return };
    let memory = printed(&mut dry)["memory"].as_object().unwrap().clone();
    let predicted: f64 =
        memory.iter().filter(|(name, _)| *name != "aside").map(|(_, bytes)| bytes.as_f64().unwrap()).sum();
    succeed(on_cuda(sandbox, &[]).unwrap());
    let peak = measured(sandbox, &["device_memory_bytes"]).into_iter().fold(0.0, f64::max);
    assert!((peak - predicted).abs() <= 0.05 * peak, "{predicted} for {peak}: {memory:?}");
}

#[test]
fn what_does_not_fit_a_device_is_refused_with_all_that_would_be_held() {
    let sandbox = short("");
    let Some(mut command) = on_cuda(&sandbox, &["--memory", "1MB"]) else { return };
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}");
    let all = "`checkpointing: block`, `moments: int8`, `offload: optimizer`, `offload: teacher`, more than the 1.0 MB of --memory";
    assert!(said.contains(all), "{said}");
    assert_eq!(sandbox.names("."), ["examples", "held.jsonl", "run.yml", "train.jsonl"]);
}
