//! Generates and scores text as transformers does with the same models (`tests/golden/training`).

use std::path::PathBuf;
use std::sync::Arc;

use aludel_kernels::loss::{HeadReport, LabelTerm, Objective, Target};
use aludel_kernels::nn::Cpu;
use aludel_model::evaluate::score;
use aludel_model::generate::Generation;
use aludel_model::sample::Sampling;
use aludel_model::windows::windows;
use aludel_model::{Batch, Decoder, Error, Use};
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/training")).join(name)
}

fn text() -> Value {
    let text = std::fs::read_to_string(golden("losses.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["text"].clone()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn model(name: &str) -> Decoder<Cpu> {
    Decoder::open(&golden(name), Arc::new(Cpu::new(None).unwrap()), Use::Frozen).unwrap()
}

fn generate(prompt: &[u32], most: usize, ends: &[u32], sampling: Sampling) -> Vec<u32> {
    let model = model("teacher");
    let generation = Generation::new(&model, prompt, most, ends, sampling).unwrap();
    generation.collect::<Result<_, _>>().unwrap()
}

#[test]
fn greedy_text_is_that_of_transformers() {
    let text = text();
    let tokens = generate(&ids(&text["prompt"]), 20, &[], Sampling::GREEDY);
    assert_eq!(tokens, ids(&text["tokens"]));
}

#[test]
fn text_ends_at_a_token_that_ends_it_or_when_it_is_long_enough() {
    let text = text();
    let (prompt, tokens) = (ids(&text["prompt"]), ids(&text["tokens"]));
    assert_eq!(generate(&prompt, 7, &[], Sampling::GREEDY), tokens[..7]);
    let end = tokens[5];
    assert!(!tokens[..5].contains(&end));
    assert_eq!(generate(&prompt, 20, &[63, end], Sampling::GREEDY), tokens[..5]);
    assert!(generate(&prompt, 0, &[], Sampling::GREEDY).is_empty());
}

#[test]
fn sampled_text_depends_on_the_seed_alone() {
    let sampling = |seed| Sampling { temperature: 1.5, top_k: 20, top_p: 0.95, seed };
    let first = generate(&[1, 2, 3], 30, &[], sampling(1));
    assert_eq!(first.len(), 30);
    assert_eq!(first, generate(&[1, 2, 3], 30, &[], sampling(1)));
    assert_ne!(first, generate(&[1, 2, 3], 30, &[], sampling(2)));
}

#[test]
fn a_prompt_that_a_model_cannot_take_is_refused() {
    let model = model("teacher");
    for prompt in [&[][..], &[64]] {
        let mut generation = Generation::new(&model, prompt, 3, &[], Sampling::GREEDY).unwrap();
        assert!(matches!(generation.next(), Some(Err(Error::Batch { .. }))));
        assert!(generation.next().is_none());
    }
}

/// The scores of a document in strided windows.
fn scores(text: &Value, together: usize) -> HeadReport {
    let (student, teacher) = (model("student"), model("teacher"));
    let document = ids(&text["document"]);
    let number = |key: &str| text[key].as_u64().unwrap() as usize;
    let windows: Vec<_> = windows(document.len(), number("window"), number("stride")).collect();
    let objective = Objective::new(vec![], Some(LabelTerm { weight: 1.0 }), Target::Teacher).unwrap();
    let mut sum = HeadReport::default();
    for windows in windows.chunks(together) {
        let batch = Batch::pack(windows.iter().map(|window| &document[window.tokens.clone()]));
        let labels: Vec<u32> = windows.iter().flat_map(|window| window.labels(&document)).collect();
        sum.add(&score(&student, Some(&teacher), &objective, &batch, &labels).unwrap());
    }
    sum
}

#[test]
fn a_long_document_is_scored_as_by_transformers() {
    let text = text();
    for together in [1, 3] {
        let sum = scores(&text, together);
        assert_eq!(sum.rows, 49);
        for (got, key) in [(sum.cross_entropy, "cross_entropy"), (sum.forward_kl, "kl")] {
            let (got, want) = (got / 49.0, text[key].as_f64().unwrap());
            assert!((got - want).abs() < 1e-5 * want, "{key}: {got} is not {want}");
        }
        assert_eq!(sum.correct, text["correct"].as_u64().unwrap());
        assert_eq!(sum.agreement, text["agreement"].as_u64().unwrap());
    }
}

#[test]
fn labels_that_do_not_fit_are_refused() {
    let model = model("student");
    let objective = Objective::new(vec![], Some(LabelTerm { weight: 1.0 }), Target::Teacher).unwrap();
    let batch = Batch::pack([&[1, 2][..]]);
    for labels in [&[2][..], &[2, 64]] {
        assert!(matches!(score(&model, None, &objective, &batch, labels), Err(Error::Batch { .. })));
    }
}
