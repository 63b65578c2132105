//! Holds statistics against what torch collects, and against themselves in other shares of memory.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use aludel_checkpoint::{Checkpoint, DigestCache, WeightMap};
use aludel_distill::Error;
use aludel_distill::statistics::{Collected, Forecast, Kind, Settings, collect, forecast};
use aludel_kernels::element::Element;
use aludel_kernels::nn::Cpu;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Everything that a test may want to be different.
struct Asked<'a> {
    kind: Kind,
    memory: u64,
    tokens: Option<u64>,
    cancel: &'a AtomicBool,
}

fn asked(kind: Kind, cancel: &AtomicBool) -> Asked<'_> {
    Asked { kind, memory: 1 << 30, tokens: None, cancel }
}

fn with<T>(
    asked: &Asked<'_>,
    target: Option<&Path>,
    run: impl FnOnce(&Arc<Cpu>, &Settings<'_>) -> Result<T, Error>,
) -> Result<T, Error> {
    let device = Arc::new(Cpu::new(NonZeroUsize::new(2)).unwrap());
    let (model, data) =
        (root().join("examples/models/scripture"), root().join("tests/golden/collected/text.jsonl"));
    let settings = Settings {
        model: &model,
        kind: asked.kind,
        data: &[data],
        window: Some(40),
        tokens: asked.tokens,
        memory: asked.memory,
        target,
        replace: false,
        sync: false,
        shard_bytes: 300_000,
        digests: &DigestCache::disabled(),
        cancel: asked.cancel,
        on_stage: &|_| {},
        on_forecast: &|_| {},
    };
    run(&device, &settings)
}

fn collected(asked: &Asked<'_>, target: &Path) -> Result<Collected, Error> {
    with(asked, Some(target), collect)
}

fn foretold(asked: &Asked<'_>) -> Result<Forecast, Error> {
    with(asked, None, forecast)
}

fn values(folder: &Path, name: &str) -> Vec<f32> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let entry = checkpoint.tensor(name).unwrap_or_else(|| panic!("{name} is not there"));
    Element::F32.decode(WeightMap::open(&checkpoint).unwrap().bytes(entry, 0..entry.bytes))
}

#[test]
fn statistics_agree_with_torch() {
    let folder = tempfile::tempdir().unwrap();
    let never = AtomicBool::new(false);
    for (kind, tolerance) in [(Kind::Gram, 1e-5), (Kind::Fisher, 1e-3)] {
        let target = folder.path().join(kind.name());
        let done = collected(&asked(kind, &never), &target).unwrap();
        assert_eq!((done.forecast.tokens, done.forecast.pieces, done.forecast.passes), (310, 9, 1));
        let expected = root().join(format!("tests/golden/collected/{}.safetensors", kind.name()));
        for name in Checkpoint::open(&expected).unwrap().tensors().keys() {
            let (got, expected) = (values(&target, name), values(&expected, name));
            assert_eq!(got.len(), expected.len(), "{name}");
            let squares: f64 = expected.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            let scale = (squares / expected.len() as f64).sqrt();
            for (place, (got, expected)) in got.iter().zip(&expected).enumerate() {
                let apart = f64::from((got - expected).abs());
                assert!(
                    apart <= tolerance * scale.max(f64::from(expected.abs())),
                    "{name} {place}: {got} {expected}"
                );
            }
        }
    }
}

#[test]
fn what_is_collected_and_of_what_stands_in_the_header() {
    let folder = tempfile::tempdir().unwrap();
    let never = AtomicBool::new(false);
    let target = folder.path().join("gram");
    let done = collected(&Asked { tokens: Some(100), ..asked(Kind::Gram, &never) }, &target).unwrap();
    let checkpoint = Checkpoint::open(&target).unwrap();
    assert!(checkpoint.files().len() > 1, "an index is needed");
    let said = |key: &str| checkpoint.metadata()[key].clone();
    assert_eq!([said("kind"), said("tokens"), said("pieces"), said("window")], ["gram", "100", "3", "40"]);
    let weights = root().join("examples/models/scripture/model.safetensors");
    let digest =
        DigestCache::disabled().sha256(&weights, &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
    assert_eq!(said("model_sha256"), digest);
    assert_eq!((said("data_sha256").len(), done.forecast.tensors), (64, 4 * 7));
    // What has one input has one sum, under the name of each weight.
    let [query, key] =
        ["q_proj", "k_proj"].map(|name| values(&target, &format!("model.layers.1.self_attn.{name}.weight")));
    assert_eq!(query, key);
    let size: u64 = checkpoint.tensors().values().map(|entry| entry.bytes).sum();
    assert_eq!(size, done.forecast.bytes);
}

#[test]
fn passes_change_nothing_but_the_memory() {
    let folder = tempfile::tempdir().unwrap();
    let never = AtomicBool::new(false);
    for (kind, memory) in [(Kind::Gram, 200_000), (Kind::Fisher, 600_000)] {
        let whole = asked(kind, &never);
        let parts = Asked { memory, ..asked(kind, &never) };
        let told = foretold(&parts).unwrap();
        assert!(told.passes > 2 && told.memory <= memory, "{told:?}");
        assert!(foretold(&whole).unwrap().memory > 2 * memory);
        let [one, several] =
            ["one", "several"].map(|name| folder.path().join(format!("{name}-{}", kind.name())));
        collected(&whole, &one).unwrap();
        collected(&parts, &several).unwrap();
        for file in Checkpoint::open(&one).unwrap().files() {
            let other = several.join(file.path.file_name().unwrap());
            assert!(
                std::fs::read(&file.path).unwrap() == std::fs::read(&other).unwrap(),
                "{}",
                other.display()
            );
        }
    }
}

#[test]
fn what_cannot_be_collected_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("out");
    let never = AtomicBool::new(false);
    let said =
        collected(&Asked { memory: 100_000, ..asked(Kind::Gram, &never) }, &target).unwrap_err().to_string();
    assert!(
        said.contains("the sums for model.layers.3.mlp.down_proj.weight alone take 1 MiB of memory"),
        "{said}"
    );
    let stopped = AtomicBool::new(true);
    assert!(matches!(collected(&asked(Kind::Gram, &stopped), &target), Err(Error::Interrupted)));
    // Stopped while it collects.
    let soon = AtomicBool::new(false);
    let error = with(&asked(Kind::Fisher, &soon), Some(&target), |device, settings| {
        collect(device, &Settings { on_stage: &|_| soon.store(true, Relaxed), ..copy(settings) })
    });
    assert!(matches!(error, Err(Error::Interrupted)), "{error:?}");
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join("note"), "mine").unwrap();
    let said = collected(&asked(Kind::Gram, &never), &target).unwrap_err().to_string();
    assert!(said.contains("exists"), "{said}");
}

fn copy<'a>(settings: &Settings<'a>) -> Settings<'a> {
    let &Settings { model, kind, data, window, tokens, memory, target, replace, sync, shard_bytes, .. } =
        settings;
    let &Settings { digests, cancel, on_stage, on_forecast, .. } = settings;
    Settings {
        model,
        kind,
        data,
        window,
        tokens,
        memory,
        target,
        replace,
        sync,
        shard_bytes,
        digests,
        cancel,
        on_stage,
        on_forecast,
    }
}
