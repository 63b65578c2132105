//! Holds a model folder against recorded tensors, in the tier that their record names, and written in half precision as those rounded once.

use std::path::Path;

use aludel_checkpoint::{Checkpoint, Dtype, TensorEntry, WeightMap};
use aludel_kernels::element::Element;
use serde_json::Value;

/// The types of half precision that a record in f32 is rounded to, by their names in recipes.
pub(crate) const HALVES: [(&str, Dtype); 2] = [("bfloat16", Dtype::BF16), ("float16", Dtype::F16)];

/// Whether all that is recorded is in f32.
pub(crate) fn is_whole(expected: &Path) -> bool {
    Tensors::open(expected).checkpoint.tensors().values().all(|entry| entry.dtype == Dtype::F32)
}

/// Names, types, shapes and values; what differs first. With a type `written`, the values are those recorded in f32, rounded to it.
pub(crate) fn compare(
    got: &Path,
    expected: &Path,
    description: &Value,
    written: Option<Dtype>,
) -> Result<(), String> {
    let (got, expected) = (Tensors::open(got), Tensors::open(expected));
    if got.names() != expected.names() {
        return Err(format!("tensors are {:?}, should be {:?}", got.names(), expected.names()));
    }
    for (name, entry) in expected.checkpoint.tensors() {
        let ours = &got.checkpoint.tensors()[name];
        let dtype = written.unwrap_or(entry.dtype);
        if (ours.dtype, &ours.shape) != (dtype, &entry.shape) {
            return Err(format!(
                "{name} is {} {:?}, should be {dtype} {:?}",
                ours.dtype, ours.shape, entry.shape
            ));
        }
        agree(&got.values(ours), &expected.values(entry), description, written.map(element_of))
            .map_err(|failure| format!("{name}: {failure}"))?;
    }
    Ok(())
}

fn agree(got: &[f32], expected: &[f32], description: &Value, half: Option<Element>) -> Result<(), String> {
    let exact = description["tier"] == "exact";
    let tolerance = description["tolerance"].as_f64().unwrap_or(0.0);
    assert!(exact || tolerance > 0.0, "a case without a tier");
    let squares: f64 = expected.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let rms = (squares / expected.len().max(1) as f64).sqrt();
    for (i, (&a, &b)) in got.iter().zip(expected).enumerate() {
        let same = if let Some(half) = half {
            // Whatever lies within the tolerance may have been rounded.
            let off = if exact { 0.0 } else { tolerance * f64::from(b).abs().max(rms) };
            let rounded = |off: f64| half.decode(&half.encode(&[(f64::from(b) + off) as f32]))[0];
            (rounded(-off)..=rounded(off)).contains(&a)
        } else if exact {
            // The sign of a zero is nobody's.
            a.to_bits() == b.to_bits() || (a == 0.0 && b == 0.0)
        } else {
            (f64::from(a) - f64::from(b)).abs() <= tolerance * f64::from(b).abs().max(rms)
        };
        if !same {
            return Err(format!("element {i} is {a:e}, should be {b:e}"));
        }
    }
    Ok(())
}

struct Tensors {
    checkpoint: Checkpoint,
    map: WeightMap,
}

impl Tensors {
    fn open(path: &Path) -> Self {
        let checkpoint = Checkpoint::open(path).unwrap();
        let map = WeightMap::open(&checkpoint).unwrap();
        Self { checkpoint, map }
    }

    fn names(&self) -> Vec<&String> {
        let mut names: Vec<_> = self.checkpoint.tensors().keys().collect();
        names.sort();
        names
    }

    fn values(&self, entry: &TensorEntry) -> Vec<f32> {
        element_of(entry.dtype).decode(self.map.bytes(entry, 0..entry.bytes))
    }
}

fn element_of(dtype: Dtype) -> Element {
    match dtype {
        Dtype::F32 => Element::F32,
        Dtype::F16 => Element::F16,
        Dtype::BF16 => Element::BF16,
        other => panic!("a golden of type {other}"),
    }
}
