//! Replays every golden case: the recipe is merged as the command would, and the output is held against what mergekit
//! wrote for it, in the case's tier. See `tests/golden/README.md`.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::sync::atomic::AtomicBool;

use aludel_checkpoint::{Checkpoint, DigestCache, Dtype, TensorEntry, WeightMap};
use aludel_kernels::element::Element;
use aludel_merge::execute::{ExecuteOptions, execute};
use aludel_merge::plan::{Plan, PlanOptions};
use aludel_merge::recipe::Recipe;
use serde_json::Value;

#[test]
fn outputs_agree_with_mergekit() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").canonicalize().unwrap();
    let output = tempfile::tempdir().unwrap();
    let mut cases: Vec<_> =
        std::fs::read_dir(folder.join("cases")).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    let mut failures = Vec::new();
    for case in &cases {
        if let Err(failure) = replay(&folder, case, output.path()) {
            failures.push(format!("{}: {failure}", case.file_name().unwrap().to_string_lossy()));
        }
    }
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
    assert!(cases.len() >= 190, "only {} cases were found", cases.len());
}

fn replay(folder: &Path, case: &Path, output: &Path) -> Result<(), String> {
    let description: Value = serde_json::from_slice(&std::fs::read(case.join("case.json")).unwrap()).unwrap();
    let text = std::fs::read_to_string(case.join("recipe.yml")).unwrap();
    let text = text.replace("model: models/", &format!("model: {}/models/", folder.display()));
    let text = text.replace(": statistics/", &format!(": {}/statistics/", folder.display()));
    let recipe = Recipe::parse(&text);
    let options =
        PlanOptions { seed: description["seed"].as_u64().unwrap_or(0), threads: 2, ..PlanOptions::default() };
    let plan =
        Plan::new(&recipe.map_err(|p| p.to_string())?, &options).map_err(|problems| problems.to_string())?;
    let target = output.join(case.file_name().unwrap());
    let run = ExecuteOptions {
        replace: false,
        digests: DigestCache::disabled(),
        cancel: &AtomicBool::new(false),
        on_progress: &|_| {},
        sync: false,
    };
    execute(&plan, &target, &run).map_err(|error| error.to_string())?;
    compare(&target, &case.join("expected.safetensors"), &description)
}

fn compare(got: &Path, expected: &Path, description: &Value) -> Result<(), String> {
    let (got, expected) = (Tensors::open(got), Tensors::open(expected));
    if got.names() != expected.names() {
        return Err(format!("tensors are {:?}, should be {:?}", got.names(), expected.names()));
    }
    for (name, entry) in expected.checkpoint.tensors() {
        let ours = &got.checkpoint.tensors()[name];
        if (ours.dtype, &ours.shape) != (entry.dtype, &entry.shape) {
            return Err(format!(
                "{name} is {} {:?}, should be {} {:?}",
                ours.dtype, ours.shape, entry.dtype, entry.shape
            ));
        }
        agree(&got.values(ours), &expected.values(entry), description)
            .map_err(|failure| format!("{name}: {failure}"))?;
    }
    Ok(())
}

fn agree(got: &[f32], expected: &[f32], description: &Value) -> Result<(), String> {
    let exact = description["tier"] == "exact";
    let tolerance = description["tolerance"].as_f64().unwrap_or(0.0);
    assert!(exact || tolerance > 0.0, "a case without a tier");
    let squares: f64 = expected.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let rms = (squares / expected.len().max(1) as f64).sqrt();
    for (i, (&a, &b)) in got.iter().zip(expected).enumerate() {
        let same = if exact {
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
        let element = match entry.dtype {
            Dtype::F32 => Element::F32,
            Dtype::F16 => Element::F16,
            Dtype::BF16 => Element::BF16,
            other => panic!("a golden of type {other}"),
        };
        element.decode(self.map.bytes(entry, 0..entry.bytes))
    }
}
