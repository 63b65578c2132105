//! Holds a CUDA device to the CPU, and times it: what CI cannot, having no GPU.
//!
//! `device operations [PART PARTS]` compares every operation on random inputs, or one of so many parts of them: most of the time one thread compiles
//! kernels; `device operations of NAME` those whose name begins so. `device gradients MODEL...` compares whole models' gradients on the same weights;
//! `device head ROWS STUDENT TEACHER VOCABULARY` times the fused head; `device dense ROWS VOCABULARY` losses of logits that are there; `device sorted
//! ROWS VOCABULARY TEACHER` distances of sorted probabilities, also on the host; `device step DOCUMENTS LENGTH [TEACHER]` training steps of a Llama of 1.5 B
//! parameters (of 0.25 B where the variable STUDENT is `small`), distilled where a teacher (`3b` or `8b`) is named, with
//! more settings of `train` where the variable TRAIN has them (`checkpointing: block, offload: optimizer`). The exit code says whether what was compared
//! agrees.

mod batches;
mod compare;
mod models;
mod operations;
mod speed;

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use aludel_kernels::gpu::NoStore;
use aludel_kernels::nn::{Cpu, Cuda};

use compare::Findings;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let cuda = Arc::new(Cuda::open(0, Box::new(NoStore))?);
    let mut findings = Findings::of_part([0, 1]);
    match words.as_slice() {
        ["operations", part @ ..] => {
            match part {
                [] => {}
                ["of", begins] => findings = findings.of(begins),
                _ => findings = Findings::of_part(numbers(part)?),
            }
            operations::compare(&Cpu::new(None)?, &cuda, &mut findings)?;
        }
        ["gradients", models @ ..] => {
            let cpu = Arc::new(Cpu::new(None)?);
            for model in models {
                models::compare(Path::new(model), &cpu, &cuda, &mut findings)?;
            }
        }
        ["head", sizes @ ..] => speed::head(&cuda, numbers(sizes)?)?,
        ["dense", sizes @ ..] => speed::dense(&cuda, numbers(sizes)?)?,
        ["sorted", sizes @ ..] => speed::sorted(&cuda, numbers(sizes)?)?,
        ["step", documents, length, teacher @ ..] => {
            speed::step(&cuda, numbers(&[documents, length])?, teacher.first().copied())?;
        }
        _ => {
            return Err(
                "usage: device operations | gradients MODEL... | head ... | dense ... | sorted ... | step ...".into()
            );
        }
    }
    findings.finish()
}

fn numbers<const N: usize>(words: &[&str]) -> Result<[usize; N], Box<dyn Error>> {
    let numbers = words.iter().map(|word| word.parse()).collect::<Result<Vec<usize>, _>>()?;
    numbers.try_into().map_err(|_| format!("{N} numbers are wanted").into())
}
