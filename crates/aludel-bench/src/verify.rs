//! Checks the answers of what is measured: a time is believed only for an output that is right.
//!
//! In: model folders. Out: whether an output has the tensors it should have, a fingerprint of its weights, and how far it
//! is from another tool's output. Weights stream through small buffers: see `measure` on this process's own memory.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use aludel_checkpoint::{Checkpoint, DigestCache, Dtype, TensorEntry};
use anyhow::{Context, ensure};
use half::bf16;
use serde::{Deserialize, Serialize};

use crate::definition::Agreement;

/// How far two outputs are apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Distance {
    /// The largest difference of two values.
    pub(crate) max_abs: f64,
    /// The share of values that differ.
    pub(crate) differing: f64,
    /// Aludel's output against the base.
    pub(crate) ours: Change,
    /// The reference's output against the base.
    pub(crate) reference: Change,
}

/// How far an output is from the base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Change {
    /// The share of values that differ from the base's.
    pub(crate) changed: f64,
    pub(crate) mean: f64,
    pub(crate) mean_magnitude: f64,
}

/// Checks names, shapes and types of an output against a model of the set, and returns the number of tensors.
pub(crate) fn check_tensors(output: &Path, model: &Path) -> anyhow::Result<usize> {
    let (output, model) = (Checkpoint::open(output)?, Checkpoint::open(model)?);
    for (name, expected) in model.tensors() {
        let entry = output.tensor(name).with_context(|| format!("the output has no tensor {name}"))?;
        let same = entry.dtype == expected.dtype && entry.shape == expected.shape;
        ensure!(same, "tensor {name} is {:?} {:?} in the output", entry.dtype, entry.shape);
    }
    let (count, expected) = (output.tensors().len(), model.tensors().len());
    ensure!(count == expected, "the output has {count} tensors instead of {expected}");
    ensure!(output.config().is_some(), "the output has no config.json");
    Ok(count)
}

/// A digest of all weight files.
pub(crate) fn fingerprint(output: &Path) -> anyhow::Result<Vec<String>> {
    let cache = DigestCache::disabled();
    let checkpoint = Checkpoint::open(output)?;
    let digest = |file: &aludel_checkpoint::WeightFile| {
        Ok(cache.sha256(&file.path, &mut |_| std::ops::ControlFlow::Continue(()))?)
    };
    checkpoint.files().iter().map(digest).collect()
}

/// Compares two outputs, value by value and each with the base, and holds the result against a rule.
///
/// Errors: the outputs do not agree, or are not of the same tensors in bf16.
pub(crate) fn compare(
    ours: &Path,
    reference: &Path,
    base: &Path,
    rule: Agreement,
) -> anyhow::Result<Distance> {
    let mut models = [Weights::open(ours)?, Weights::open(reference)?, Weights::open(base)?];
    let names: Vec<String> = models[2].checkpoint.tensors().keys().cloned().collect();
    let mut sums = Sums::default();
    for name in names {
        let entries = [models[0].entry(&name)?, models[1].entry(&name)?, models[2].entry(&name)?];
        let bytes = entries[2].bytes;
        ensure!(entries.iter().all(|e| e.bytes == bytes), "tensor {name} has another size in one output");
        for start in (0..bytes).step_by(BUFFER) {
            let count = (bytes - start).min(BUFFER as u64) as usize;
            let [ours, reference, base] = &mut models;
            let ours = ours.read(&entries[0], start, count)?;
            let reference = reference.read(&entries[1], start, count)?;
            sums.add(ours, reference, base.read(&entries[2], start, count)?);
        }
    }
    let distance = sums.distance();
    check(&distance, rule).map(|()| distance)
}

fn check(distance: &Distance, rule: Agreement) -> anyhow::Result<()> {
    let Distance { ours, reference, .. } = distance;
    let scale = reference.mean_magnitude;
    let agrees = rule.max_abs.is_none_or(|bound| distance.max_abs <= bound)
        && rule.differing.is_none_or(|bound| distance.differing <= bound)
        && (ours.changed - reference.changed).abs() <= rule.change
        && (ours.mean - reference.mean).abs() <= rule.change * scale
        && (ours.mean_magnitude - scale).abs() <= rule.change * scale;
    ensure!(agrees, "the two outputs do not agree: {distance:?} under {rule:?}");
    Ok(())
}

/// A model whose weights are read in pieces.
struct Weights {
    checkpoint: Checkpoint,
    files: Vec<File>,
    buffer: Vec<u8>,
}

impl Weights {
    fn open(folder: &Path) -> anyhow::Result<Self> {
        let checkpoint = Checkpoint::open(folder)?;
        let files = checkpoint.files().iter().map(|file| File::open(&file.path)).collect::<Result<_, _>>()?;
        Ok(Self { checkpoint, files, buffer: vec![0; BUFFER] })
    }

    fn entry(&self, name: &str) -> anyhow::Result<TensorEntry> {
        let folder = self.checkpoint.path().display();
        let entry = self.checkpoint.tensor(name).with_context(|| format!("{folder} has no tensor {name}"))?;
        ensure!(entry.dtype == Dtype::BF16, "tensor {name} of {folder} is {:?}", entry.dtype);
        Ok(entry.clone())
    }

    fn read(&mut self, entry: &TensorEntry, start: u64, count: usize) -> anyhow::Result<&[u8]> {
        let file = &mut self.files[entry.file];
        file.seek(SeekFrom::Start(entry.offset + start))?;
        let buffer = &mut self.buffer[..count];
        file.read_exact(buffer)?;
        Ok(buffer)
    }
}

/// Running totals over all values.
#[derive(Default)]
struct Sums {
    values: u64,
    differing: u64,
    max_abs: f64,
    ours: ChangeSums,
    reference: ChangeSums,
}

#[derive(Default)]
struct ChangeSums {
    changed: u64,
    sum: f64,
    magnitude: f64,
}

impl Sums {
    fn add(&mut self, ours: &[u8], reference: &[u8], base: &[u8]) {
        for ((ours, reference), base) in
            ours.chunks_exact(2).zip(reference.chunks_exact(2)).zip(base.chunks_exact(2))
        {
            let [ours, reference, base] = [decode(ours), decode(reference), decode(base)];
            let difference = (ours - reference).abs();
            // A NaN in either output is a difference without bound.
            self.max_abs = self.max_abs.max(if difference.is_nan() { f64::INFINITY } else { difference });
            self.differing += u64::from(ours != reference);
            self.values += 1;
            self.ours.add(ours - base);
            self.reference.add(reference - base);
        }
    }

    fn distance(&self) -> Distance {
        let values = self.values.max(1) as f64;
        Distance {
            max_abs: self.max_abs,
            differing: self.differing as f64 / values,
            ours: self.ours.change(values),
            reference: self.reference.change(values),
        }
    }
}

impl ChangeSums {
    fn add(&mut self, change: f64) {
        self.changed += u64::from(change != 0.0);
        self.sum += change;
        self.magnitude += change.abs();
    }

    fn change(&self, values: f64) -> Change {
        Change {
            changed: self.changed as f64 / values,
            mean: self.sum / values,
            mean_magnitude: self.magnitude / values,
        }
    }
}

fn decode(pair: &[u8]) -> f64 {
    bf16::from_le_bytes([pair[0], pair[1]]).to_f64()
}

const BUFFER: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::make::make;

    fn models() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        make(&"llama-tiny".parse().unwrap(), 1, folder.path()).unwrap();
        folder
    }

    fn distance(pairs: [(f32, f32, f32); 4]) -> Distance {
        let bytes = |values: [f32; 4]| values.map(|v| bf16::from_f32(v).to_le_bytes()).concat();
        let mut sums = Sums::default();
        sums.add(&bytes(pairs.map(|p| p.0)), &bytes(pairs.map(|p| p.1)), &bytes(pairs.map(|p| p.2)));
        sums.distance()
    }

    #[test]
    fn distances_are_those_computed_by_hand() {
        let found = distance([(1.0, 1.0, 1.0), (2.0, 1.5, 1.0), (0.0, 0.0, 1.0), (-1.0, -1.0, -1.0)]);
        assert_eq!((found.max_abs, found.differing), (0.5, 0.25));
        assert_eq!(found.ours, Change { changed: 0.5, mean: 0.0, mean_magnitude: 0.5 });
        assert_eq!(found.reference, Change { changed: 0.5, mean: -0.125, mean_magnitude: 0.375 });
        let values = |max_abs, differing, change| {
            check(&found, Agreement { max_abs: Some(max_abs), differing: Some(differing), change }).is_ok()
        };
        assert!(values(0.5, 0.25, 1.0) && !values(0.4, 0.25, 1.0) && !values(0.5, 0.2, 1.0));
        let change = |change| check(&found, Agreement { change, ..Agreement::default() }).is_ok();
        assert!(change(0.34) && !change(0.33), "the magnitudes are a third apart");
    }

    #[test]
    fn not_a_number_agrees_with_nothing() {
        let found = distance([(f32::NAN, f32::NAN, 1.0), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)]);
        assert_eq!(found.max_abs, f64::INFINITY);
        assert!(check(&found, Agreement { change: 1e9, ..Agreement::default() }).is_err());
    }

    #[test]
    fn a_fine_tune_is_told_from_its_base_and_from_another() {
        let folder = models();
        let at = |role: &str| folder.path().join(role);
        let exact = Agreement { max_abs: Some(0.0), differing: Some(0.0), change: 0.0 };
        assert!(compare(&at("a"), &at("a"), &at("base"), exact).unwrap().ours.changed > 0.8);
        let loose = Agreement { change: 1.0, ..Agreement::default() };
        assert!(compare(&at("a"), &at("b"), &at("base"), loose).unwrap().differing > 0.8);
        let error = compare(&at("a"), &at("b"), &at("base"), exact).unwrap_err();
        assert!(error.to_string().contains("do not agree"), "{error}");
        assert_ne!(fingerprint(&at("a")).unwrap(), fingerprint(&at("b")).unwrap());
    }

    #[test]
    fn an_output_without_a_tensor_is_refused() {
        let (whole, other) = (models(), tempfile::tempdir().unwrap());
        assert_eq!(check_tensors(&whole.path().join("a"), &whole.path().join("base")).unwrap(), 21);
        let tensors = vec![aludel_checkpoint::OutputTensor {
            name: "lm_head.weight".into(),
            dtype: Dtype::BF16,
            shape: vec![512, 64],
        }];
        let layout = aludel_checkpoint::Layout::plan(tensors, 1 << 30).unwrap();
        let output = other.path().join("model.safetensors");
        std::fs::write(&output, &layout.shards()[0].header).unwrap();
        File::options().write(true).open(&output).unwrap().set_len(layout.total_bytes()).unwrap();
        let error = check_tensors(other.path(), &whole.path().join("base")).unwrap_err();
        assert!(error.to_string().contains("no tensor"), "{error}");
    }
}
