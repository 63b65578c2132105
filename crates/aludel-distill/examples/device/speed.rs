//! Times the fused head, losses of logits, and training steps.

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use aludel_checkpoint::Config;
use aludel_distill::data::MicroBatch;
use aludel_distill::run::Run;
use aludel_distill::step::Trainer;
use aludel_kernels::cuda::Submitted;
use aludel_kernels::element::Element;
use aludel_kernels::loss::{
    Column, Columns, Divergence, Head, HeadGradient, LossDevice, Mode, Objective, Ranked, RowLoss,
    SortedRows, Target, TeacherRows, Term, head_loss,
};
use aludel_kernels::nn::{Cpu, Cuda, Device, DeviceError};
use aludel_model::{Decoder, WeightType};

use crate::batches::learned;
use crate::operations::of_type;

/// The median of some calls' seconds, after two that are not counted.
fn median(
    cuda: &Cuda,
    count: usize,
    mut run: impl FnMut() -> Result<(), DeviceError>,
) -> Result<f64, DeviceError> {
    let mut seconds = Vec::new();
    for at in 0..count + 2 {
        cuda.synchronize()?;
        let begin = Instant::now();
        run()?;
        cuda.synchronize()?;
        if at >= 2 {
            seconds.push(begin.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}

/// Normal numbers, repeated: what matters is that they are no zeros.
fn noise(cuda: &Cuda, len: usize, deviation: f32) -> Result<<Cuda as Device>::Buffer, DeviceError> {
    let mut piece = vec![0.0; (1 << 22).min(len)];
    aludel_kernels::normal::fill_normal(
        aludel_kernels::random::StreamKey(7),
        len as u64,
        deviation,
        &mut piece,
    );
    let mut buffer = cuda.zeros(len, Element::BF16)?;
    for at in (0..len).step_by(piece.len().max(1)) {
        let count = piece.len().min(len - at);
        cuda.write(&mut buffer, at, &piece[..count])?;
    }
    Ok(buffer)
}

fn objectives() -> [(&'static str, Objective); 2] {
    [("forward_kl", Divergence::ForwardKl), ("jsd", Divergence::JensenShannon { beta: 0.5 })].map(
        |(name, divergence)| {
            let terms = vec![Term { divergence, weight: 1.0, temperature: 1.0, scale_by_t2: false }];
            match Objective::new(terms, None, Target::Teacher) {
                Ok(objective) => (name, objective),
                Err(error) => unreachable!("{error}"),
            }
        },
    )
}

pub(crate) fn head(
    cuda: &Cuda,
    [rows, student, teacher, vocabulary]: [usize; 4],
) -> Result<(), Box<dyn Error>> {
    let (s, z) = (noise(cuda, rows * student, 1.0)?, noise(cuda, rows * teacher, 1.0)?);
    let (ws, wz) = (noise(cuda, vocabulary * student, 0.02)?, noise(cuda, vocabulary * teacher, 0.02)?);
    let mut d_hidden = cuda.zeros(rows * student, Element::BF16)?;
    let mut d_weight = cuda.zeros(vocabulary * student, Element::F32)?;
    let labels: Vec<u32> = (0..rows).map(|row| (row * 37 % vocabulary) as u32).collect();
    let of = |weight, width| Head {
        weight,
        bias: None,
        vocabulary,
        valid: vocabulary,
        width,
        scale: 1.0,
        soft_cap: None,
    };
    let before = cuda.peak_memory().unwrap_or(0);
    let (own, taught) = (of(&ws, student), of(&wz, teacher));
    // All of the memory for logits, and parts of it, which take more and smaller chunks.
    let parts = [1, 2, 4];
    let all = objectives()
        .into_iter()
        .flat_map(|(name, objective)| parts.map(|part| (name, objective.clone(), part)));
    for (name, objective, part) in all {
        let seconds = median(cuda, 7, || {
            let gradient =
                HeadGradient { d_hidden: &mut d_hidden, d_weight: Some(&mut d_weight), d_bias: None };
            let given = TeacherRows::Hidden { head: taught, hidden: &z };
            let memory = cuda.logit_memory() / part;
            head_loss(cuda, &objective, (&own, &s), Some(&given), &labels, 1e-3, Some(gradient), memory)
                .map(drop)
        })?;
        let operations = 2.0 * (rows * vocabulary * (3 * student + teacher)) as f64;
        println!(
            "head {name} rows {rows} student {student} teacher {teacher}, memory / {part}: {:.2} ms, {:.0} TFLOP/s, {:.2} GB beyond inputs and gradients",
            1e3 * seconds,
            1e-12 * operations / seconds,
            (cuda.peak_memory().unwrap_or(0) - before) as f64 * 1e-9,
        );
    }
    Ok(())
}

pub(crate) fn dense(cuda: &Cuda, [rows, vocabulary]: [usize; 2]) -> Result<(), Box<dyn Error>> {
    let (mut s, z) = (noise(cuda, rows * vocabulary, 2.0)?, noise(cuda, rows * vocabulary, 2.0)?);
    let labels = cuda.indices(&(0..rows as u32).collect::<Vec<_>>())?;
    let columns = Columns { stored: vocabulary, valid: vocabulary };
    for (name, objective) in objectives() {
        let mut values = cuda.zeros(rows * (objective.terms().len() + Column::COUNT), Element::F32)?;
        let seconds = median(cuda, 7, || {
            let loss = RowLoss {
                objective: &objective,
                rows,
                student: columns,
                teacher: Some(columns),
                soft_cap: None,
                factor: 1.0,
                mode: Mode::Gradient,
            };
            cuda.loss_rows(loss, &labels, &mut s, Some(&z), &mut values);
            Ok(())
        })?;
        println!("dense {name} {rows} x {vocabulary}: {:.2} ms", 1e3 * seconds);
    }
    Ok(())
}

/// The device's way, and the default's by way of the host, each with a copy of the student's logits, which become their gradient.
pub(crate) fn sorted(cuda: &Cuda, [rows, vocabulary, teacher]: [usize; 3]) -> Result<(), Box<dyn Error>> {
    let (given, z) = (noise(cuda, rows * vocabulary, 2.0)?, noise(cuda, rows * teacher, 2.0)?);
    let mut s = cuda.zeros(rows * vocabulary, Element::BF16)?;
    let labels: Vec<u32> = (0..rows as u32).collect();
    let partners: Vec<Option<usize>> = (0..rows).map(Some).collect();
    let term =
        Term { divergence: Divergence::SortedDistance, weight: 1.0, temperature: 1.0, scale_by_t2: false };
    let objective = Objective::new(vec![term], None, Target::Teacher)?;
    let mut values = cuda.zeros(rows * (1 + Column::COUNT), Element::F32)?;
    let columns = |columns| Columns { stored: columns, valid: columns };
    let loss = RowLoss {
        objective: &objective,
        rows,
        student: columns(vocabulary),
        teacher: None,
        soft_cap: None,
        factor: 1.0,
        mode: Mode::Gradient,
    };
    let ranked = || Ranked::Logits(&z, columns(teacher));
    let sorted = || SortedRows { partners: &partners, teacher: Some(ranked()), factor: 1.0 };
    let seconds = median(cuda, 7, || {
        cuda.copy(&given, &mut s);
        cuda.sorted_rows(loss, &labels, sorted(), &mut s, &mut values)
    })?;
    println!("sorted {rows} x {vocabulary}, teacher {teacher}: {:.2} ms", 1e3 * seconds);
    let cpu = Cpu::new(None)?;
    let on_host = |buffer| cuda.read(buffer, 0..cuda.len(buffer));
    let begin = Instant::now();
    let (mut s, z) =
        (of_type(&cpu, &on_host(&given)?, Element::F32)?, of_type(&cpu, &on_host(&z)?, Element::F32)?);
    let mut values = cpu.zeros(rows * (1 + Column::COUNT), Element::F32)?;
    let ranked = Ranked::Logits(&z, columns(teacher));
    let sorted = SortedRows { partners: &partners, teacher: Some(ranked), factor: 1.0 };
    cpu.sorted_rows(loss, &labels, sorted, &mut s, &mut values)?;
    println!("the same on the host: {:.2} ms", 1e3 * begin.elapsed().as_secs_f64());
    Ok(())
}

pub(crate) fn step(
    cuda: &Arc<Cuda>,
    [documents, length]: [usize; 2],
    teacher: Option<&str>,
) -> Result<(), Box<dyn Error>> {
    let begin = Instant::now();
    let shape = match std::env::var("STUDENT").as_deref() {
        Ok("small") => llama(30, 576, 9, 3, 1536)?,
        _ => llama(16, 2048, 32, 8, 8192)?,
    };
    let student = Decoder::fresh(shape, Arc::clone(cuda), WeightType::BFloat16, 1)?;
    let shape = match teacher {
        Some("3b") => Some(llama(28, 3072, 24, 8, 8192)?),
        Some("8b") => Some(llama(32, 4096, 32, 8, 14336)?),
        _ => None,
    };
    let teacher =
        shape.map(|shape| Decoder::fresh(shape, Arc::clone(cuda), WeightType::BFloat16, 2)).transpose()?;
    let objective = if teacher.is_some() {
        "teacher: teacher\nobjective:\n  - {loss: jsd, beta: 0.5}"
    } else {
        "objective:\n  - {loss: cross_entropy}"
    };
    println!("models made in {:.1} s", begin.elapsed().as_secs_f64());
    let text = format!(
        "{objective}\nstudent: student\ndata: {{train: [none.txt]}}\noutput: out\ntrain: {{steps: 100, weights: bfloat16, \
         learning_rate: 1e-5{}}}\n",
        std::env::var("TRAIN").map(|more| format!(", {more}")).unwrap_or_default(),
    );
    let run = Run::parse(&text).map_err(|error| format!("{error:?}"))?;
    let mut trainer = Trainer::new(student, teacher, &run, 100)?;
    let rows = documents * length;
    let is_packed = std::env::var("DOCUMENTS").as_deref() == Ok("packed");
    let mut seconds = Vec::new();
    let before = cuda.submitted();
    for at in 0..12 {
        let micro = [micro_batch([documents, length], is_packed.then_some(at))];
        let begin = Instant::now();
        let Some(report) = trainer.step(&micro, &|| false)? else { break };
        cuda.synchronize()?;
        let took = begin.elapsed().as_secs_f64();
        println!("step {at}: {took:.4} s, loss {:.4}", report.loss);
        if at >= 4 {
            seconds.push(took);
        }
    }
    let Submitted { operations, batches, by_graphs, graphs, updates } = cuda.submitted();
    println!(
        "{} operations in {} batches, {by_graphs} of them by {graphs} graphs with {updates} updates",
        operations - before.operations,
        batches - before.batches
    );
    seconds.sort_by(f64::total_cmp);
    let middle = seconds[seconds.len() / 2];
    println!(
        "step of {rows} tokens: {:.1} ms, {:.0} tokens/s, {:.2} GB at the most",
        1e3 * middle,
        rows as f64 / middle,
        cuda.peak_memory().unwrap_or(0) as f64 * 1e-9
    );
    Ok(())
}

/// Documents of equal length; or of as many tokens in all, cut elsewhere in every step.
fn micro_batch([documents, length]: [usize; 2], step: Option<usize>) -> MicroBatch {
    let rows = documents * length;
    let mut ends: Vec<usize> = (1..=documents).map(|at| at * length).collect();
    if let Some(step) = step {
        let cut = |at: usize| 1 + (at * 7919 + step * 104_729) % (rows - 1);
        ends.extend((0..3 * documents).map(cut));
        ends.sort_unstable();
        ends.dedup();
    }
    let starts = std::iter::once(0).chain(ends.iter().copied());
    let document = |(start, end): (usize, &usize)| -> Vec<u32> {
        (start..*end).map(|at| ((at * 7919 + start * 104_729) % 128_000) as u32).collect()
    };
    learned(&starts.zip(&ends).map(document).collect::<Vec<_>>())
}

fn llama(
    layers: usize,
    hidden: usize,
    heads: usize,
    key_heads: usize,
    inner: usize,
) -> Result<Config, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("config.json");
    let text = format!(
        r#"{{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": {hidden}, "intermediate_size": {inner},
        "num_hidden_layers": {layers}, "num_attention_heads": {heads}, "num_key_value_heads": {key_heads}, "vocab_size": 128256,
        "hidden_act": "silu", "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16"}}"#
    );
    std::fs::write(&path, text)?;
    Ok(Config::read(&path)?)
}
