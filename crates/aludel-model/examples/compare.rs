//! Writes what the decoder computes of a model and some documents, for `tests/reference/decoder.py` to compare.
//!
//! `compare MODEL IDS OUT [TARGETS]`: one document of token ids on each line of the file IDS. The folder OUT receives `logits`
//! (f32, little-endian, row by row), and the gradient of the mean cross-entropy of all next tokens for every parameter, in a
//! file of its name. The loss, and the seconds of three steps, go to standard output. With TARGETS, such as `q_proj,o_proj`, the
//! model has adapters with made-up weights, which are written to `OUT/adapter` for `tests/reference/adapter.py`.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use aludel_checkpoint::OutputFolder;
use aludel_kernels::element::Element;
use aludel_kernels::loss::{HeadGradient, IGNORED, LabelTerm, Objective, Target, head_loss};
use aludel_kernels::nn::{Accumulate, Cpu, Device, Product};
use aludel_model::{AdapterSpec, Batch, Decoder, Keep, Use, WeightType};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, ids, out, targets @ ..] = arguments.as_slice() else {
        return Err("usage: compare MODEL IDS OUT [TARGETS]".into());
    };
    let device = Arc::new(Cpu::new(None)?);
    let purpose = Use::Trainable(WeightType::Float32);
    let mut decoder = Decoder::open(Path::new(model), Arc::clone(&device), purpose)?;
    let out = Path::new(out);
    if let Some(targets) = targets.first() {
        adapt(&mut decoder, targets)?;
        let folder = OutputFolder::create(&out.join("adapter"), true)?;
        decoder.write_adapters(&folder, model)?;
        folder.finish()?;
    }
    let text = std::fs::read_to_string(ids)?;
    let documents = text
        .lines()
        .map(|line| line.split_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>())
        .collect::<Result<Vec<_>, _>>()?;
    let batch = Batch::pack(documents.iter().map(Vec::as_slice));
    let labels = labels(&batch);
    let targets = labels.iter().filter(|&&label| label != IGNORED).count();
    let mut gradients = decoder.gradients()?;
    for _ in 0..3 {
        let begin = Instant::now();
        gradients.clear(&device);
        let pass = decoder.forward(&batch, Keep::Everything, &[])?;
        let mut d_hidden = device.zeros(batch.rows() * decoder.config().hidden, device.activation())?;
        let objective = Objective::new(Vec::new(), Some(LabelTerm { weight: 1.0 }), Target::Teacher)?;
        let gradient = HeadGradient {
            d_hidden: &mut d_hidden,
            d_weight: decoder.head_gradient(&mut gradients),
            d_bias: None,
        };
        let report = head_loss(
            &*device,
            &objective,
            (&decoder.head(), pass.hidden()),
            None,
            &labels,
            1.0 / targets as f64,
            Some(gradient),
            64 << 20,
        )?
        .report(&*device)?;
        decoder.backward(pass, &d_hidden, &[], &mut gradients)?;
        println!("loss {} in {:.3} s", report.cross_entropy / targets as f64, begin.elapsed().as_secs_f64());
    }
    std::fs::create_dir_all(out)?;
    let write = |name: &str, values: &[f32]| std::fs::write(out.join(name), Element::F32.encode(values));
    write("logits", &logits(&decoder, &batch)?)?;
    for (parameter, gradient) in decoder.parameters().trainable().zip(gradients.iter()) {
        write(&parameter.name, &device.read(gradient, 0..parameter.elements())?)?;
    }
    Ok(())
}

/// Adds adapters whose B is not zero.
fn adapt(decoder: &mut Decoder<Cpu>, targets: &str) -> Result<(), Box<dyn Error>> {
    let targets = targets.split(',').map(str::to_owned).collect();
    decoder.add_adapters(&AdapterSpec { rank: 4, alpha: 6.0, rank_stabilised: true, targets, seed: 5 })?;
    let device = Arc::clone(decoder.device());
    for parameter in decoder.parameters_mut().trainable_mut().filter(|p| p.name.contains("lora_B")) {
        let values: Vec<f32> =
            (0..parameter.elements()).map(|i| ((i * 37 + 11) % 23) as f32 / 46.0 - 0.25).collect();
        device.write(&mut parameter.buffer, 0, &values)?;
    }
    Ok(())
}

/// The next token of each row, in its document.
fn labels(batch: &Batch) -> Vec<u32> {
    let next = |rows: &std::ops::Range<usize>| {
        let next = batch.ids[rows.start + 1..rows.end].iter().copied();
        next.chain([IGNORED]).collect::<Vec<u32>>()
    };
    batch.documents.iter().flat_map(next).collect()
}

fn logits(decoder: &Decoder<Cpu>, batch: &Batch) -> Result<Vec<f32>, Box<dyn Error>> {
    let (device, head) = (decoder.device(), decoder.head());
    let pass = decoder.forward(batch, Keep::Nothing, &[])?;
    let rows = batch.rows();
    let product = Product { rows, inputs: head.width, outputs: head.vocabulary, scale: head.scale };
    let mut logits = device.zeros(rows * head.vocabulary, Element::F32)?;
    device.linear(product, pass.hidden(), head.weight, head.bias, &mut logits, Accumulate::Overwrite);
    Ok(device.read(&logits, 0..rows * head.vocabulary)?)
}
