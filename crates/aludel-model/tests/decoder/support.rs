//! Opens recorded models and computes logits, loss and gradients by hand, so that no other part is trusted.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aludel_checkpoint::{Checkpoint, Dtype, WeightMap};
use aludel_kernels::element::Element;
use aludel_kernels::nn::{Accumulate, Cpu, Device, Product};
use aludel_model::{Batch, Decoder, Gradients, Keep, Use, WeightType};

/// The documents of `generate.py`.
pub(crate) const DOCUMENTS: [&[u32]; 2] =
    [&[1, 40, 7, 33, 33, 12, 5, 47, 0, 21, 18], &[1, 9, 26, 2, 14, 9, 30]];

pub(crate) fn batch() -> Batch {
    Batch::pack(DOCUMENTS)
}

pub(crate) fn cpu(threads: usize) -> Arc<Cpu> {
    Arc::new(Cpu::new(NonZeroUsize::new(threads)).unwrap())
}

pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/decoder").canonicalize().unwrap()
}

/// The recorded models, by name.
pub(crate) fn cases() -> Vec<String> {
    let entries = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<String> = entries
        .filter(|path| path.is_dir())
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

pub(crate) fn trained(case: &str, threads: usize) -> Decoder<Cpu> {
    Decoder::open(&copy_of(case).0, cpu(threads), Use::Trainable(WeightType::Float32)).unwrap()
}

/// A recorded folder without what was computed from it, since a model folder holds no other weights.
pub(crate) fn copy_of(case: &str) -> (PathBuf, tempfile::TempDir) {
    let copy = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(folder().join(case).join(name), copy.path().join(name)).unwrap();
    }
    (copy.path().to_path_buf(), copy)
}

/// All values of a file, by name.
pub(crate) struct Tensors {
    checkpoint: Checkpoint,
    map: WeightMap,
}

impl Tensors {
    pub(crate) fn open(path: &Path) -> Self {
        let checkpoint = Checkpoint::open(path).unwrap();
        let map = WeightMap::open(&checkpoint).unwrap();
        Self { checkpoint, map }
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        self.checkpoint.tensors().keys().map(String::as_str).collect()
    }

    pub(crate) fn values(&self, name: &str) -> Vec<f32> {
        let entry = self.checkpoint.tensor(name).unwrap_or_else(|| panic!("{name} is not there"));
        assert_eq!(entry.dtype, Dtype::F32);
        Element::F32.decode(self.map.bytes(entry, 0..entry.bytes))
    }
}

/// What a step computes.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) logits: Vec<f32>,
    pub(crate) loss: f64,
    /// By the names of the parameters.
    pub(crate) gradients: Vec<(String, Vec<f32>)>,
}

impl Outcome {
    pub(crate) fn gradient(&self, name: &str) -> &[f32] {
        &self.gradients.iter().find(|(own, _)| own == name).unwrap_or_else(|| panic!("no {name}")).1
    }
}

/// The mean cross-entropy of all next tokens of a batch's documents, and every gradient.
pub(crate) fn step(decoder: &Decoder<Cpu>, batch: &Batch, keep: Keep) -> Outcome {
    let device = &**decoder.device();
    let mut gradients = decoder.gradients().unwrap();
    let pass = decoder.forward(batch, keep, &[]).unwrap();
    let logits = logits(decoder, pass.hidden());
    let (loss, d_logits) = cross_entropy(decoder, batch, &logits);
    let d_hidden = head_backward(decoder, &d_logits, pass.hidden(), &mut gradients);
    decoder.backward(pass, &d_hidden, &[], &mut gradients).unwrap();
    let names = decoder.parameters().trainable().map(|parameter| parameter.name.clone());
    let values = gradients.iter().map(|buffer| device.read(buffer, 0..device.len(buffer)).unwrap());
    Outcome { logits, loss, gradients: names.zip(values).collect() }
}

/// `[T, V]`.
pub(crate) fn logits(decoder: &Decoder<Cpu>, hidden: &<Cpu as Device>::Buffer) -> Vec<f32> {
    let (device, head) = (&**decoder.device(), decoder.head());
    let rows = device.len(hidden) / head.width;
    let product = Product { rows, inputs: head.width, outputs: head.vocabulary, scale: head.scale };
    let mut logits = device.zeros(rows * head.vocabulary, Element::F32).unwrap();
    device.linear(product, hidden, head.weight, head.bias, &mut logits, Accumulate::Overwrite);
    let logits = device.read(&logits, 0..rows * head.vocabulary).unwrap();
    match head.soft_cap {
        Some(cap) => logits.iter().map(|logit| cap * (logit / cap).tanh()).collect(),
        None => logits,
    }
}

/// Loss, and its gradient for the logits before the soft cap.
fn cross_entropy(decoder: &Decoder<Cpu>, batch: &Batch, logits: &[f32]) -> (f64, Vec<f32>) {
    let (vocabulary, cap) = (decoder.head().vocabulary, decoder.head().soft_cap);
    let targets: usize = batch.documents.iter().map(|rows| rows.len() - 1).sum();
    let mut d_logits = vec![0.0; logits.len()];
    let mut loss = 0.0;
    for row in batch.documents.iter().flat_map(|rows| rows.start..rows.end - 1) {
        let target = batch.ids[row + 1] as usize;
        let row = row * vocabulary..(row + 1) * vocabulary;
        let logits = &logits[row.clone()];
        let most = logits.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = logits.iter().map(|&z| f64::from(z - most).exp()).sum();
        loss -= f64::from(logits[target] - most) - sum.ln();
        for (id, (d, &z)) in d_logits[row].iter_mut().zip(logits).enumerate() {
            let probability = f64::from(z - most).exp() / sum;
            let capped = cap.map_or(1.0, |cap| 1.0 - f64::from(z / cap).powi(2));
            *d = ((probability - f64::from(u8::from(id == target))) * capped / targets as f64) as f32;
        }
    }
    (loss / targets as f64, d_logits)
}

fn head_backward(
    decoder: &Decoder<Cpu>,
    d_logits: &[f32],
    hidden: &<Cpu as Device>::Buffer,
    gradients: &mut Gradients<Cpu>,
) -> <Cpu as Device>::Buffer {
    let (device, head) = (&**decoder.device(), decoder.head());
    let rows = device.len(hidden) / head.width;
    let product = Product { rows, inputs: head.width, outputs: head.vocabulary, scale: head.scale };
    let mut d = device.zeros(d_logits.len(), Element::F32).unwrap();
    device.write(&mut d, 0, d_logits).unwrap();
    let mut d_hidden = device.zeros(rows * head.width, Element::F32).unwrap();
    device.linear_backward_input(product, &d, head.weight, &mut d_hidden, Accumulate::Overwrite);
    if let Some(d_weight) = decoder.head_gradient(gradients) {
        device.linear_backward_weight(product, &d, hidden, d_weight, None);
    }
    d_hidden
}

/// Says where two arrays are further apart than `tolerance`, relative to the second one's norm or root mean square.
pub(crate) fn differ(got: &[f32], expected: &[f32], tolerance: f64) -> Result<(), String> {
    if got.len() != expected.len() {
        return Err(format!("{} elements, should be {}", got.len(), expected.len()));
    }
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let norm = squares(&mut expected.iter().map(|&v| f64::from(v))).sqrt();
    let rms = norm / (expected.len().max(1) as f64).sqrt();
    let apart = || got.iter().zip(expected).map(|(&a, &b)| f64::from(a) - f64::from(b));
    let distance = squares(&mut apart()).sqrt();
    if distance > tolerance * norm || distance.is_nan() {
        return Err(format!("{:e} apart by norm", distance / norm));
    }
    match apart()
        .zip(expected)
        .enumerate()
        .find(|(_, (d, e))| d.abs() > tolerance * rms.max(f64::from(e.abs())))
    {
        Some((index, (d, e))) => Err(format!("element {index} is {:e}, should be {e:e}", d + f64::from(*e))),
        None => Ok(()),
    }
}
