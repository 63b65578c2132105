//! Holds comparisons of models to sums that are added up one element at a time.

use std::path::Path;

use crate::made::{Given, noise, quietly, write};
use aludel_checkpoint::Dtype;
use aludel_kernels::cpu::CHUNK;
use aludel_merge::execute::MergeError;
use aludel_merge::inspect::{Comparison, ModelFigures, PairFigures, Settings, compare, contents, page};
use aludel_merge::plan::PlanOptions;
use serde_json::json;

const LARGE: [usize; 2] = [300, 700];

const THRESHOLD: f64 = 0.01;

/// A model whose values lie around those of the base: every third is the base's own, every fifth near to it.
fn moved(base: &[f32], seed: u64) -> Vec<f32> {
    let step = |i: usize, noise: f32| match i {
        _ if i.is_multiple_of(3) => 0.0,
        _ if i.is_multiple_of(5) => noise * 0.01,
        _ => noise * 0.2,
    };
    base.iter()
        .zip(noise(base.len(), seed))
        .enumerate()
        .map(|(i, (base, noise))| base + step(i, noise))
        .collect()
}

/// Tensors of two layers and an embedding, as the base has them (0) or as a model has moved them.
fn tensors(model: u64) -> Vec<Given<'static>> {
    let one = |name, dtype, shape: &'static [usize], seed| {
        let base = noise(shape.iter().product(), seed);
        let values = if model == 0 { base } else { moved(&base, 1000 * model + seed) };
        (name, dtype, shape, values)
    };
    vec![
        one("model.embed_tokens.weight", Dtype::F32, &LARGE, 1),
        one("model.layers.0.mlp.up.weight", Dtype::F32, &[5, 7], 2),
        one("model.layers.0.norm.weight", Dtype::F32, &[11], 3),
        one("model.layers.1.mlp.up.weight", Dtype::F32, &[5, 7], 4),
        one("model.layers.1.norm.weight", Dtype::F32, &[0], 5),
    ]
}

fn models(folder: &Path) -> Vec<String> {
    let config = json!({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "vocab_size": 300});
    let name = |model: u64| {
        let path = folder.join(model.to_string());
        write(&path, &config, &tensors(model));
        path.to_str().unwrap().to_owned()
    };
    (0..4).map(name).collect()
}

fn compared(references: &[String], options: &PlanOptions) -> Result<Comparison, MergeError> {
    let models: Vec<&str> = references[1..].iter().map(String::as_str).collect();
    let settings = Settings { base: &references[0], models: &models, threshold: THRESHOLD };
    quietly(|execute| compare(&settings, options, execute))
}

/// What is expected of one model over some tensors, by definition.
fn expected_of_model(pairs: &[(f32, f32)]) -> ModelFigures {
    let sum = |f: &dyn Fn(f64, f64) -> f64| pairs.iter().map(|&(b, x)| f(b.into(), x.into())).sum::<f64>();
    // The difference is rounded to f32, as all arithmetic on elements is.
    let delta = |b: f64, x: f64| f64::from(x as f32 - b as f32);
    let (base, model) = (sum(&|b, _| b * b), sum(&|_, x| x * x));
    let share =
        |is: &dyn Fn(f64) -> bool| sum(&|b, x| f64::from(u8::from(is(delta(b, x))))) / pairs.len() as f64;
    let norm = sum(&|b, x| delta(b, x).powi(2)).sqrt();
    ModelFigures {
        delta_norm: norm,
        relative: Some(norm / base.sqrt()),
        largest: pairs.iter().map(|&(b, x)| f64::from((x - b).abs())).fold(0.0, f64::max),
        cosine: Some(sum(&|b, x| b * x) / (base * model).sqrt()),
        unchanged: Some(share(&|d| d == 0.0)),
        small: Some(share(&|d| d.abs() <= THRESHOLD as f32 as f64)),
        not_finite: 0,
    }
}

/// What is expected of the changes of two models, by definition.
fn expected_of_pair(first: usize, second: usize, changes: &[(f32, f32)]) -> PairFigures {
    let sum = |f: &dyn Fn(f64, f64) -> f64| changes.iter().map(|&(a, b)| f(a.into(), b.into())).sum::<f64>();
    let count = |is: &dyn Fn(f64) -> bool| sum(&|a, b| f64::from(u8::from(is(a * b))));
    let both = count(&|product| product != 0.0);
    PairFigures {
        first,
        second,
        cosine: Some(sum(&|a, b| a * b) / (sum(&|a, _| a * a) * sum(&|_, b| b * b)).sqrt()),
        both: Some(both / changes.len() as f64),
        agreement: Some(count(&|product| product > 0.0) / both),
        conflict: Some(count(&|product| product < 0.0) / both),
    }
}

fn assert_near(got: Option<f64>, expected: Option<f64>, what: &str) {
    let (got, expected) = (got.unwrap(), expected.unwrap());
    assert!((got - expected).abs() <= 1e-12 * expected.abs().max(1.0), "{what}: {got}, should be {expected}");
}

fn assert_model(got: &ModelFigures, expected: &ModelFigures) {
    assert_near(Some(got.delta_norm), Some(expected.delta_norm), "delta norm");
    assert_near(got.relative, expected.relative, "relative");
    assert_near(got.cosine, expected.cosine, "cosine");
    let exact =
        |figures: &ModelFigures| (figures.largest, figures.unchanged, figures.small, figures.not_finite);
    assert_eq!(exact(got), exact(expected));
}

#[test]
fn figures_are_those_of_their_definitions() {
    let folder = tempfile::tempdir().unwrap();
    let references = models(folder.path());
    let comparison = compared(&references, &PlanOptions::default()).unwrap();
    let all: Vec<Vec<Given<'_>>> = (0..4).map(tensors).collect();
    let values = |model: usize, name: &str| -> Vec<f32> {
        let is_in = |given: &&Given<'_>| given.0.starts_with(name);
        all[model].iter().filter(is_in).flat_map(|given| given.3.clone()).collect()
    };
    // Of all, of a layer, of a tensor.
    let group = |name: &str| &comparison.groups.iter().find(|group| group.name == name).unwrap().figures;
    let tensor = |name: &str| &comparison.tensors.iter().find(|tensor| tensor.name == name).unwrap().figures;
    let up = "model.layers.1.mlp.up.weight";
    let places = [("", &comparison.whole), ("model.layers.0", group("model.layers.0")), (up, tensor(up))];
    for (name, figures) in places {
        let base = values(0, name);
        assert_eq!(figures.parameters, base.len() as u64);
        let changes = |model: usize| values(model, name).into_iter().zip(base.clone()).map(|(x, b)| x - b);
        for model in 1..4 {
            let pairs: Vec<(f32, f32)> = base.iter().copied().zip(values(model, name)).collect();
            assert_model(&figures.models[model - 1].unwrap(), &expected_of_model(&pairs));
        }
        for (at, (first, second)) in [(0, 1), (0, 2), (1, 2)].into_iter().enumerate() {
            let changes: Vec<(f32, f32)> = changes(first + 1).zip(changes(second + 1)).collect();
            let (got, expected) = (figures.pairs[at].unwrap(), expected_of_pair(first, second, &changes));
            assert_near(got.cosine, expected.cosine, "cosine of changes");
            let exact =
                |pair: PairFigures| (pair.first, pair.second, pair.both, pair.agreement, pair.conflict);
            assert_eq!(exact(got), exact(expected), "{name}");
        }
        let signs: Vec<[f32; 3]> =
            changes(1).zip(changes(2)).zip(changes(3)).map(|((a, b), c)| [a, b, c]).collect();
        let any = |is: fn(f32) -> bool| move |signs: &[f32; 3]| signs.iter().any(|&sign| is(sign));
        let (moved, up, down) = (any(|x| x != 0.0), any(|x| x > 0.0), any(|x| x < 0.0));
        let moved = signs.iter().filter(|signs| moved(signs)).count() as f64;
        let conflict = signs.iter().filter(|signs| up(signs) && down(signs)).count() as f64;
        assert_eq!(
            (figures.moved, figures.conflict),
            (Some(moved / signs.len() as f64), Some(conflict / moved))
        );
    }
    let empty = tensor("model.layers.1.norm.weight");
    assert_eq!((empty.parameters, empty.moved, empty.models[0].unwrap().delta_norm), (0, None, 0.0));
}

#[test]
fn figures_do_not_depend_on_threads_tiles_or_memory() {
    let folder = tempfile::tempdir().unwrap();
    let references = models(folder.path());
    let run = |threads, tile, memory| {
        let options = PlanOptions { threads, tile, memory, ..PlanOptions::default() };
        serde_json::to_string(&compared(&references, &options).unwrap()).unwrap()
    };
    let expected = run(1, None, 128 << 20);
    for (threads, tile, memory) in
        [(2, None, 128 << 20), (3, Some(CHUNK), 128 << 20), (4, Some(3 * CHUNK), 64 << 20)]
    {
        assert_eq!(run(threads, tile, memory), expected);
    }
}

#[test]
fn types_may_differ_and_what_has_no_counterpart_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let config = json!({});
    let base = vec![
        ("a", Dtype::F32, &[3][..], vec![1.0, 2.0, -0.5]),
        ("b", Dtype::F32, &[2], vec![1.0, 1.0]),
        ("c", Dtype::F32, &[2], vec![1.0, 1.0]),
        ("packed", Dtype::U8, &[2], vec![1.0, 2.0]),
    ];
    write(Path::new(&path("base")), &config, &base);
    let model = vec![
        ("a", Dtype::BF16, &[3][..], vec![1.0, 2.5, f32::NAN]),
        ("b", Dtype::F32, &[2, 1], vec![1.0, 1.0]),
        ("d", Dtype::F32, &[1], vec![1.0]),
    ];
    write(Path::new(&path("model")), &config, &model);
    let comparison = compared(&[path("base"), path("model")], &PlanOptions::default()).unwrap();
    let figures = comparison.tensors[0].figures.models[0].unwrap();
    assert_eq!((figures.unchanged, figures.not_finite), (Some(1.0 / 3.0), 1));
    assert!(figures.delta_norm.is_nan());
    let told: Vec<String> =
        comparison.uncompared.iter().map(|one| format!("{}: {}", one.tensor, one.reason)).collect();
    assert_eq!(
        told,
        [
            "b: it is [2] in the base and [2, 1] in the model",
            "c: the model has no such tensor",
            "packed: its type is U8, which is not computed on",
            "d: the base has no such tensor",
        ]
    );
    let page = page::render(&comparison);
    assert!(!page.contains("NaN") && page.contains("the base has no such tensor"), "{page}");
}

#[test]
fn a_base_compared_with_itself_has_not_moved() {
    let folder = tempfile::tempdir().unwrap();
    let base = models(folder.path()).swap_remove(0);
    let comparison = compared(&[base.clone(), base], &PlanOptions::default()).unwrap();
    let figures = comparison.whole.models[0].unwrap();
    assert_eq!((figures.delta_norm, figures.unchanged, comparison.whole.moved), (0.0, Some(1.0), Some(0.0)));
    assert_eq!((figures.cosine, comparison.whole.conflict), (Some(1.0), None));
}

#[test]
fn contents_are_counted_by_layer() {
    let folder = tempfile::tempdir().unwrap();
    let model = models(folder.path()).swap_remove(0);
    let contents = contents(&model, &PlanOptions::default().hub).unwrap();
    assert_eq!(contents.architecture.as_deref(), Some("LlamaForCausalLM"));
    assert_eq!((contents.layers, contents.vocabulary, contents.tied_embeddings), (Some(2), Some(300), None));
    assert_eq!((contents.parameters, contents.bytes), (210_081, 840_324));
    let groups: Vec<(&str, usize, u64)> = contents
        .groups
        .iter()
        .map(|(name, counted)| (name.as_str(), counted.tensors, counted.parameters))
        .collect();
    assert_eq!(
        groups,
        [("model.embed_tokens", 1, 210_000), ("model.layers.0", 2, 46), ("model.layers.1", 2, 35)]
    );
}
