//! Holds choices among ways to compute the same to what they promise, on CUDA in software, whose clock counts blocks of launches, and by what each product says
//! that it takes.

use std::path::{Path, PathBuf};

use aludel_kernels::cuda::Choice;
use aludel_kernels::element::Element;
use aludel_kernels::gpu::KernelStore;
use aludel_kernels::nn::{Attention, Cuda, Device, Product, Span};

use crate::started;

/// Where the process that is started remembers kernels and choices.
const FOLDER: &str = "ALUDEL_FOLDER";

/// What it says of its results.
const RESULTS: &str = "results: ";

struct Folder(PathBuf);

impl KernelStore for Folder {
    fn load(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.0.join(name)).ok()
    }

    fn save(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.0.join(name), bytes).unwrap();
    }
}

/// A product that is added to what is there, and attention, by whatever is chosen; says how many shapes ways were timed for, and the bits of the results.
#[test]
#[ignore = "needs a CUDA device: the other tests start it where they have one in software"]
fn results_are_told() {
    let cuda = Cuda::open(0, Box::new(Folder(std::env::var_os(FOLDER).unwrap().into()))).unwrap();
    let halves = |len: usize, factor: f32| {
        let values: Vec<f32> = (0..len).map(|at| (at as f32 * factor).sin()).collect();
        let mut buffer = cuda.zeros(len, Element::BF16).unwrap();
        cuda.write(&mut buffer, 0, &values).unwrap();
        buffer
    };
    let product = Product { rows: 40, inputs: 72, outputs: 56, scale: 1.0 };
    let (x, dy) = (halves(40 * 72, 0.7), halves(40 * 56, 1.3));
    let mut dw = cuda.zeros(56 * 72, Element::F32).unwrap();
    cuda.write(&mut dw, 0, &[0.3; 56 * 72]).unwrap();
    cuda.linear_backward_weight(product, &dy, &x, &mut dw, None);
    let attention = Attention { heads: 2, key_heads: 1, width: 64, scale: 0.1, window: None, soft_cap: None };
    let (q, k, v) = (halves(150 * 128, 0.7), halves(150 * 64, 1.3), halves(150 * 64, 0.3));
    let (mut out, mut lse) = (halves(150 * 128, 0.0), cuda.zeros(300, Element::F32).unwrap());
    cuda.attention(attention, &[Span { queries: 0..150, keys: 0..150 }], &q, &k, &v, &mut out, &mut lse);
    let results = [&dw, &out, &lse].map(|buffer| cuda.read(buffer, 0..cuda.len(buffer)).unwrap());
    assert!(results.iter().flatten().all(|value| value.is_finite()));
    let bits: Vec<u32> = results.iter().flatten().map(|value| value.to_bits()).collect();
    println!("\ntimed: {}\n{RESULTS}{bits:?}", cuda.timed());
}

/// What a process said of its results, and how many shapes it timed ways for; nothing where there is no CUDA in software.
fn told(folder: &Path, settings: &[(&str, &str)]) -> Option<(String, String)> {
    let folder = folder.to_str().unwrap();
    let said = started("tuning::results_are_told", &[&[(FOLDER, folder)], settings].concat())?;
    let line = |begins: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(begins));
        line.unwrap_or_else(|| panic!("{said}")).to_owned()
    };
    Some((line(RESULTS), line("timed: ")))
}

/// What is remembered in a folder.
fn choices(folder: &Path) -> Vec<Choice> {
    let text = std::fs::read(folder.join("tuned-models-software-sm_90.json"));
    text.map_or_else(|_| Vec::new(), |text| serde_json::from_slice(&text).unwrap())
}

const ALL: (&str, &str) = ("ALUDEL_TUNE", "all");

#[test]
fn the_next_process_times_nothing_and_has_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let Some((first, timed)) = told(folder.path(), &[ALL]) else { return };
    assert_eq!(timed, "2");
    let made = choices(folder.path());
    let kernels: Vec<&str> = made.iter().map(|choice| &*choice.kernel).collect();
    assert_eq!(kernels, ["product", "attention"]);
    // The way that says that it takes two milliseconds; tiles of most rows.
    assert_eq!((made[0].words[0], made[0].tried, made[0].disagreed), (3, 3, 0));
    assert_eq!((made[0].seconds, made[0].first_seconds), (2e-3, 4e-3));
    assert_eq!((&made[1].words[..], made[1].failed), (&[3, 64, 1][..], 0));
    assert_eq!(told(folder.path(), &[ALL]).unwrap(), (first.clone(), "0".to_owned()));
    assert_eq!(choices(folder.path()), made);
    // What is remembered is not looked at where choices are not asked for, and a small shape is none that they are made for.
    let (built_in, timed) = told(folder.path(), &[("ALUDEL_TUNE", "0")]).unwrap();
    assert_eq!(timed, "0");
    assert_ne!(built_in, first);
    assert_eq!(told(folder.path(), &[]).unwrap().0, built_in);
}

#[test]
fn a_way_that_gives_something_else_never_wins() {
    let (wrong, right) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some((first, _)) = told(wrong.path(), &[ALL, ("SOFT_CUDA_WRONG_PRODUCT", "1")]) else { return };
    let made = choices(wrong.path());
    assert_eq!((made[0].words[0], made[0].tried, made[0].disagreed), (3, 4, 1));
    assert_eq!(told(right.path(), &[ALL]).unwrap().0, first);
}

/// Trials need memory beside what is left to kernels and libraries.
#[test]
fn without_memory_for_trials_the_first_way_is_taken_and_nothing_remembered() {
    let (small, off) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let memory = (512 << 20).to_string();
    let Some((first, timed)) = told(small.path(), &[ALL, ("SOFT_CUDA_MEMORY", &memory)]) else { return };
    assert_eq!((timed.as_str(), choices(small.path())), ("0", vec![]));
    assert_eq!(told(off.path(), &[("ALUDEL_TUNE", "0")]).unwrap().0, first);
}
