//! Compares the gradients of whole models, on the same weights in bf16 and the same documents.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use aludel_distill::data::MicroBatch;
use aludel_kernels::loss::{HeadGradient, LabelTerm, LossDevice, Objective, Target, head_loss};
use aludel_kernels::nn::{Cpu, Cuda};
use aludel_model::{Decoder, Keep, Use, WeightType};

use crate::batches::learned;
use crate::compare::{Findings, TOLERANCE, distance};

/// Loss, hidden states, and gradients by the names of their parameters.
struct Outcome {
    loss: f64,
    hidden: Vec<f32>,
    gradients: Vec<(String, Vec<f32>)>,
}

pub(crate) fn compare(
    path: &Path,
    cpu: &Arc<Cpu>,
    cuda: &Arc<Cuda>,
    findings: &mut Findings,
) -> Result<(), Box<dyn Error>> {
    let (want, got) = (gradients(path, cpu)?, gradients(path, cuda)?);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    println!("{name}: loss {} on the CPU, {} on the GPU", want.loss, got.loss);
    findings.add(&format!("{name} loss"), &[got.loss as f32], &[want.loss as f32], 2e-3);
    findings.add(&format!("{name} hidden states"), &got.hidden, &want.hidden, 2.0 * TOLERANCE);
    let flat = |outcome: &Outcome| outcome.gradients.iter().flat_map(|(_, values)| values).copied().collect();
    let (got_all, want_all): (Vec<f32>, Vec<f32>) = (flat(&got), flat(&want));
    findings.add(&format!("{name} gradient"), &got_all, &want_all, TOLERANCE);
    let mut parts: Vec<(f64, &String)> = want
        .gradients
        .iter()
        .zip(&got.gradients)
        .map(|((name, want), (_, got))| (distance(got, want), name))
        .collect();
    parts.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (error, name) in parts.iter().take(5) {
        println!("      {error:.2e} {name}");
    }
    Ok(())
}

fn gradients<D: LossDevice>(path: &Path, device: &Arc<D>) -> Result<Outcome, Box<dyn Error>> {
    let decoder = Decoder::open(path, Arc::clone(device), Use::Trainable(WeightType::BFloat16))?;
    let vocabulary = decoder.config().vocabulary as u32;
    let document = |seed: u32, len: u32| {
        (0..len).map(|at| (at * at * 31 + at * seed + 7 * seed) % 4001 % vocabulary).collect::<Vec<u32>>()
    };
    let micro = learned(&[document(3, 120), document(11, 33), document(5, 103)]);
    let (targets, MicroBatch { batch, labels, .. }) = (micro.targets(), micro);
    let mut gradients = decoder.gradients()?;
    let pass = decoder.forward(&batch, Keep::Blocks, &[])?;
    let hidden = device.read(pass.hidden(), 0..device.len(pass.hidden()))?;
    let mut d_hidden = device.zeros(batch.rows() * decoder.config().hidden, device.activation())?;
    let objective = Objective::new(Vec::new(), Some(LabelTerm { weight: 1.0 }), Target::Teacher)?;
    let gradient = HeadGradient {
        d_hidden: &mut d_hidden,
        d_weight: decoder.head_gradient(&mut gradients),
        d_bias: None,
    };
    let (head, factor) = (decoder.head(), 1.0 / targets as f64);
    let student = (&head, pass.hidden());
    let memory = device.logit_memory();
    let report = head_loss(&**device, &objective, student, None, &labels, factor, Some(gradient), memory)?
        .report(&**device)?;
    decoder.backward(pass, &d_hidden, &[], &mut gradients)?;
    let names = decoder.parameters().trainable().map(|parameter| parameter.name.clone());
    let values = gradients.iter().map(|buffer| device.read(buffer, 0..device.len(buffer)));
    let gradients =
        names.zip(values).map(|(name, values)| Ok((name, values?))).collect::<Result<_, Box<dyn Error>>>()?;
    Ok(Outcome { loss: report.cross_entropy * factor, hidden, gradients })
}
