//! Gives models the tokenizers of others: rows as numpy and scikit-learn have them, tokens, configs, and what is refused. See
//! `tests/golden/transplant/generate.py`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::made::{config_of, execute_plan};
use aludel_checkpoint::{Checkpoint, Dtype, WeightMap};
use aludel_kernels::element::Element;
use aludel_kernels::pursuit::{Metric, Weighting};
use aludel_merge::plan::{Approximation, Likeness, PieceWeights, Plan, PlanOptions, Transplant};
use serde_json::{Value, json};
use tokenizers::Tokenizer;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").canonicalize().unwrap()
}

fn folder_of(model: &str) -> String {
    let of = if model == "wide" { "transplant" } else { "vocabulary" };
    golden().join(of).join("models").join(model).display().to_string()
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

const fn plain<'a>(model: &'a str, donor: &'a str, approximation: Approximation) -> Transplant<'a> {
    Transplant {
        model,
        donor,
        approximation,
        prefix_match: Likeness::No,
        byte_match: Likeness::No,
        noise: 0.0,
        scale: 1.0,
    }
}

fn approximation(asked: &Value) -> Approximation {
    let k = asked["k"].as_u64().unwrap_or(0) as usize;
    match asked["approximation_method"].as_str().unwrap() {
        "omp" => Approximation::Matching { k },
        "common_interpolation" => Approximation::Nearest {
            k,
            metric: if asked["cosine_similarity"] == true { Metric::Cosine } else { Metric::Euclidean },
            weighting: match asked["weight_scheme"].as_str() {
                Some("barycentric") => Weighting::Barycentric,
                Some("least_squares") => Weighting::LeastSquares,
                _ => Weighting::DistanceProportional,
            },
        },
        "subword" => Approximation::Pieces(match asked["subword_method"].as_str() {
            Some("sum") => PieceWeights::Sum,
            Some("weighted_mean") => PieceWeights::Weighted,
            Some("first_last") => PieceWeights::FirstLast,
            _ => PieceWeights::Mean,
        }),
        "mean" => Approximation::Mean,
        "zero" => Approximation::Zero,
        other => panic!("no case of {other}"),
    }
}

fn planned(transplant: &Transplant<'_>, options: &PlanOptions) -> Result<Plan, String> {
    let tokenizer = Tokenizer::from_file(Path::new(transplant.model).join("tokenizer.json"));
    let cut = |text: &str| {
        let encoding = tokenizer.as_ref().unwrap().encode(text, false).map_err(|error| error.to_string())?;
        Ok(encoding.get_ids().to_vec())
    };
    Plan::of_transplant(transplant, &cut, options).map_err(|problems| problems.to_string())
}

fn carried_out(transplant: &Transplant<'_>, target: &Path) -> Result<Plan, String> {
    let plan = planned(transplant, &PlanOptions { threads: 2, ..PlanOptions::default() })?;
    execute_plan(&plan, target);
    Ok(plan)
}

/// The type, the sides and the elements of a tensor.
fn tensor(folder: &Path, name: &str) -> (Dtype, Vec<usize>, Vec<f32>) {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let map = WeightMap::open(&checkpoint).unwrap();
    let entry = checkpoint.tensor(name).unwrap_or_else(|| panic!("{} has no {name}", folder.display()));
    let element = match entry.dtype {
        Dtype::F32 => Element::F32,
        Dtype::BF16 => Element::BF16,
        other => panic!("a table of {other}"),
    };
    (entry.dtype, entry.shape.clone(), element.decode(map.bytes(entry, 0..entry.bytes)))
}

fn row<'v>(values: &'v [f32], shape: &[usize], row: usize) -> &'v [f32] {
    &values[row * shape[1]..][..shape[1]]
}

#[test]
fn tables_are_those_of_the_reference() {
    let cases = fs::read_dir(golden().join("transplant/cases")).unwrap();
    let mut cases: Vec<PathBuf> = cases.map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| path.extension().is_some_and(|end| end == "json"));
    cases.sort();
    assert!(cases.len() >= 20, "only {} cases were found", cases.len());
    let target = tempfile::tempdir().unwrap();
    for case in cases {
        let name = case.file_stem().unwrap().to_string_lossy().into_owned();
        replay(&name, &json_of(&case), &case.with_extension("safetensors"), &target.path().join(&name));
    }
}

fn replay(name: &str, case: &Value, expected: &Path, target: &Path) {
    let asked = &case["asked"];
    let path = |key: &str| folder_of(asked[key].as_str().unwrap());
    let (model, donor) = (path("model"), path("donor"));
    let transplant = Transplant {
        scale: asked["new_vocab_scale"].as_f64().unwrap_or(1.0),
        ..plain(&model, &donor, approximation(asked))
    };
    carried_out(&transplant, target).unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
    let tokens = case["tokens"].as_array().unwrap();
    let same: Vec<(usize, usize)> = serde_json::from_value(case["same"].clone()).unwrap();
    for table in Checkpoint::open(expected).unwrap().tensors().keys() {
        let (dtype, shape, values) = tensor(target, table);
        let (expected_dtype, expected_shape, expected) = tensor(expected, table);
        assert_eq!((dtype, &shape), (expected_dtype, &expected_shape), "{name}: {table}");
        let (_, own_shape, own) = tensor(Path::new(&model), table);
        for &(id, of_model) in &same {
            assert_eq!(
                row(&values, &shape, id),
                row(&own, &own_shape, of_model),
                "{name}: {table}, token {id}"
            );
        }
        let squares: f64 = expected.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let rms = (squares / expected.len() as f64).sqrt();
        // A bf16 that lies between two may be rounded to either by the last bit of an f32.
        let tolerance = if dtype == Dtype::BF16 { 0.004 } else { 2e-6 };
        for (at, (found, expected)) in values.iter().zip(&expected).enumerate() {
            let apart = (f64::from(*found) - f64::from(*expected)).abs();
            let near = tolerance * f64::from(expected.abs()).max(rms);
            assert!(apart <= near, "{name}: {table}, row {}: {found}, not {expected}", at / shape[1]);
        }
    }
    // Everything else is the model's, to the bit.
    let output = Checkpoint::open(target).unwrap();
    for name in Checkpoint::open(Path::new(&model)).unwrap().tensors().keys() {
        if !["model.embed_tokens.weight", "lm_head.weight"].contains(&name.as_str()) {
            assert_eq!(tensor(target, name), tensor(Path::new(&model), name), "{name}");
        }
        assert!(output.tensor(name).is_some(), "{name}");
    }
    let config = config_of(target);
    assert_eq!(config["vocab_size"], tokens.len(), "{name}");
    for (key, id) in case["ids"].as_object().unwrap() {
        assert_eq!(config.get(key).unwrap_or(&Value::Null), id, "{name}: {key}");
    }
    assert_eq!(config["hidden_size"], config_of(Path::new(&model))["hidden_size"], "{name}");
    let tokenizer = Tokenizer::from_file(target.join("tokenizer.json")).unwrap();
    for (id, token) in tokens.iter().enumerate() {
        assert_eq!(tokenizer.token_to_id(token.as_str().unwrap()), Some(id as u32), "{name}");
    }
}

#[test]
fn the_bytes_depend_on_neither_threads_nor_tiles() {
    let target = tempfile::tempdir().unwrap();
    let (model, donor) = (folder_of("a"), folder_of("wide"));
    for approximation in [
        Approximation::Matching { k: 4 },
        Approximation::Normal,
        Approximation::Nearest { k: 3, metric: Metric::Cosine, weighting: Weighting::Barycentric },
    ] {
        let transplant = Transplant { noise: 0.1, ..plain(&model, &donor, approximation) };
        let mut first = None;
        for threads in [1, 3] {
            let folder = target.path().join(threads.to_string());
            let options = PlanOptions { threads, seed: 5, ..PlanOptions::default() };
            execute_plan(&planned(&transplant, &options).unwrap(), &folder);
            let bytes = fs::read(folder.join("model.safetensors")).unwrap();
            assert!(*first.get_or_insert_with(|| bytes.clone()) == bytes, "{approximation:?}, {threads}");
        }
    }
}

#[test]
fn random_rows_follow_the_seed_and_leave_known_ones_alone() {
    let target = tempfile::tempdir().unwrap();
    let (model, donor) = (folder_of("a"), folder_of("b"));
    let tables = |approximation, noise, seed| {
        let transplant = Transplant { noise, ..plain(&model, &donor, approximation) };
        let options = PlanOptions { seed, ..PlanOptions::default() };
        execute_plan(&planned(&transplant, &options).unwrap(), target.path());
        tensor(target.path(), "model.embed_tokens.weight").2
    };
    let (normal, again, other) = (
        tables(Approximation::Normal, 0.0, 1),
        tables(Approximation::Normal, 0.0, 1),
        tables(Approximation::Normal, 0.0, 2),
    );
    assert_eq!(normal, again);
    let case = json_of(&golden().join("transplant/cases/omp.json"));
    let same: Vec<(usize, usize)> = serde_json::from_value(case["same"].clone()).unwrap();
    let is_known = |id: usize| same.iter().any(|(known, _)| *known == id);
    let (mean, noisy) = (tables(Approximation::Mean, 0.0, 1), tables(Approximation::Mean, 0.5, 1));
    let mut apart = Vec::new();
    for id in 0..normal.len() / 8 {
        let is_same = |a: &[f32], b: &[f32]| row(a, &[0, 8], id) == row(b, &[0, 8], id);
        assert_eq!(is_same(&normal, &other), is_known(id), "{id}");
        assert_eq!(is_same(&mean, &noisy), is_known(id), "{id}");
        if !is_known(id) {
            let pairs = row(&noisy, &[0, 8], id).iter().zip(row(&mean, &[0, 8], id));
            apart.extend(pairs.map(|(a, b)| f64::from(a - b)));
        }
    }
    let deviation = (apart.iter().map(|x| x * x).sum::<f64>() / apart.len() as f64).sqrt();
    assert!((deviation - 0.5).abs() < 0.1, "{deviation} of {} elements", apart.len());
}

#[test]
fn what_keeps_a_tokenizer_from_being_transplanted_is_told() {
    let target = tempfile::tempdir().unwrap();
    let (model, donor) = (folder_of("a"), folder_of("b"));
    let refusal = |model: &str, donor: &str| {
        planned(&plain(model, donor, Approximation::Matching { k: 4 }), &PlanOptions::default()).unwrap_err()
    };
    let missing = target.path().join("missing").display().to_string();
    assert!(refusal(&missing, &missing).matches("missing").count() >= 2, "both are told");
    // A donor without a tokenizer.
    let bare = target.path().join("bare");
    fs::create_dir_all(&bare).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(Path::new(&donor).join(file), bare.join(file)).unwrap();
    }
    let said = refusal(&model, &bare.display().to_string());
    assert!(said.contains("has no tokenizer.json"), "{said}");
    // A donor that knows nothing of what the model knows.
    let strange = target.path().join("strange");
    fs::create_dir_all(&strange).unwrap();
    let tokenizer = json!({"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"Q": 0, "X": 1}, "unk_token": "Q"}});
    fs::write(strange.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let table = ("model.embed_tokens.weight", Dtype::F32, &[2, 4][..], vec![0.5; 8]);
    let config = json!({"model_type": "llama", "vocab_size": 2});
    crate::made::write(&target.path().join("weights"), &config, &[table]);
    for file in ["config.json", "model.safetensors"] {
        fs::copy(target.path().join("weights").join(file), strange.join(file)).unwrap();
    }
    let strange = strange.display().to_string();
    let said = refusal(&model, &strange);
    assert!(
        said.contains("have no token in common") && said.contains("`--approximation-method mean`"),
        "{said}"
    );
    assert!(planned(&plain(&model, &strange, Approximation::Mean), &PlanOptions::default()).is_ok());
    // A tokenizer that cannot cut.
    let cannot = |_: &str| Err("it is broken".to_owned());
    let pieces = plain(&model, &strange, Approximation::Pieces(PieceWeights::Mean));
    let said = Plan::of_transplant(&pieces, &cannot, &PlanOptions::default()).unwrap_err().to_string();
    assert!(said.contains("it is broken"), "{said}");
    // A model without tables.
    let headless = target.path().join("headless");
    let norm = ("model.norm.weight", Dtype::F32, &[4][..], vec![0.5; 4]);
    crate::made::write(&headless, &config, &[norm]);
    fs::copy(Path::new(&strange).join("tokenizer.json"), headless.join("tokenizer.json")).unwrap();
    let said = refusal(&headless.display().to_string(), &donor);
    assert!(said.contains("has no embedding, as far as names tell"), "{said}");
}

#[test]
fn likeness_counts_for_the_tables_that_are_named() {
    let target = tempfile::tempdir().unwrap();
    let (model, donor) = (folder_of("a"), folder_of("c"));
    let tables = |prefix_match| {
        let transplant = Transplant { prefix_match, ..plain(&model, &donor, Approximation::Zero) };
        carried_out(&transplant, target.path()).unwrap();
        let of = |name: &str| tensor(target.path(), name).2;
        (of("model.embed_tokens.weight"), of("lm_head.weight"))
    };
    let (none, embeddings, heads) =
        (tables(Likeness::No), tables(Likeness::Embeddings), tables(Likeness::Heads));
    assert_eq!(tables(Likeness::Both), (embeddings.0.clone(), heads.1.clone()));
    assert_eq!((&none.0, &none.1), (&heads.0, &embeddings.1));
    assert_ne!(none.0, embeddings.0);
    assert_ne!(none.1, heads.1);
}
