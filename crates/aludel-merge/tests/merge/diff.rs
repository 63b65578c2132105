//! Finds planted differences between models, and no others.

use std::path::PathBuf;

use crate::made::{Given, noise, quietly, write};
use aludel_checkpoint::Dtype;
use aludel_merge::diff::{Difference, Place, Settings, Shapes, Types, diff};
use aludel_merge::plan::PlanOptions;
use serde_json::{Value, json};

/// A folder of models.
struct Models {
    folder: tempfile::TempDir,
}

const SHAPE: [usize; 2] = [300, 500];

fn tensors() -> Vec<Given<'static>> {
    vec![
        ("layers.10.weight", Dtype::F32, &SHAPE, noise(150_000, 1)),
        (
            "layers.9.weight",
            Dtype::BF16,
            &[4, 4],
            noise(16, 2).iter().map(|x| (x * 64.0).round() / 64.0).collect(),
        ),
        ("packed", Dtype::U8, &[3, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
    ]
}

fn config() -> Value {
    json!({"hidden_size": 4, "rope_scaling": {"factor": 2.0}, "torch_dtype": "bfloat16", "_name_or_path": "x"})
}

impl Models {
    /// Two that are alike.
    fn new() -> Self {
        let models = Self { folder: tempfile::tempdir().unwrap() };
        for name in ["a", "b"] {
            write(&models.path(name), &config(), &tensors());
        }
        models
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn diff(&self, change: impl FnOnce(&mut Settings<'_>)) -> Difference {
        let (first, second) = (self.path("a"), self.path("b"));
        let mut settings = Settings {
            first: first.to_str().unwrap(),
            second: second.to_str().unwrap(),
            tolerance: 0.0,
            relative_tolerance: 0.0,
            ignore_types: false,
        };
        change(&mut settings);
        let options = PlanOptions { threads: 2, ..PlanOptions::default() };
        quietly(|execute| diff(&settings, &options, execute)).unwrap()
    }

    /// Writes the second model anew, with its tensors changed.
    fn change(&self, change: impl FnOnce(&mut Vec<Given<'static>>)) {
        let mut tensors = tensors();
        change(&mut tensors);
        write(&self.path("b"), &config(), &tensors);
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.path(file), text).unwrap();
    }
}

#[test]
fn models_that_are_alike_are_equal() {
    let models = Models::new();
    // Written by another tool, the same config has other marks and another order.
    let text = r#"{"torch_dtype": "bfloat16", "rope_scaling": {"factor": 2.0}, "hidden_size": 4, "transformers_version": "5"}"#;
    models.write("b/config.json", text);
    models.write("a/generation_config.json", r#"{"a": 1, "b": 2}"#);
    models.write("b/generation_config.json", r#"{"b": 2,   "a": 1}"#);
    let difference = models.diff(|_| {});
    assert!(difference.equal, "{difference}");
    assert_eq!((difference.compared, difference.to_string()), (3, "equal: 3 tensors".to_owned()));
}

#[test]
fn values_that_differ_are_counted_and_the_first_is_found() {
    let models = Models::new();
    models.change(|tensors| {
        tensors[0].3[70_123] += 0.25;
        tensors[0].3[140_000] -= 0.5;
        tensors[1].3[9] = f32::NAN;
        tensors[2].3[3] = 0x1f as f32;
    });
    let difference = models.diff(|_| {});
    let names: Vec<&str> = difference.values.iter().map(|found| found.tensor.as_str()).collect();
    assert_eq!(names, ["layers.9.weight", "layers.10.weight", "packed"]);
    let [nan, large, packed] = &difference.values[..] else { panic!("{difference}") };
    assert_eq!(
        (large.differing, large.beyond_tolerance, large.elements, large.not_finite),
        (2, 2, 150_000, 0)
    );
    assert!((large.largest.unwrap() - 0.5).abs() < 1e-6, "{:?}", large.largest);
    let place = large.first_place.as_ref().unwrap();
    assert_eq!(place.index, [140, 123]);
    let (a, b): (f32, f32) = (place.first.parse().unwrap(), place.second.parse().unwrap());
    assert_eq!((a, b), (noise(150_000, 1)[70_123], noise(150_000, 1)[70_123] + 0.25));
    assert_eq!((nan.differing, nan.not_finite, nan.largest), (1, 1, Some(0.0)));
    assert_eq!(nan.first_place.as_ref().unwrap().index, [2, 1]);
    let expected = Place { index: vec![1, 1], first: "0x04".into(), second: "0x1f".into() };
    assert_eq!((packed.differing, packed.first_place.as_ref()), (1, Some(&expected)));
    assert!(!difference.equal);
}

#[test]
fn a_tolerance_lets_near_values_pass() {
    let models = Models::new();
    models.change(|tensors| {
        tensors[0].3.iter_mut().for_each(|x| *x += 1e-3);
        tensors[0].3[77] += 0.5;
    });
    let strict = models.diff(|_| {});
    assert_eq!(strict.values[0].beyond_tolerance, 150_000);
    let some = models.diff(|settings| settings.tolerance = 0.01);
    assert_eq!((some.values[0].differing, some.values[0].beyond_tolerance), (150_000, 1));
    assert_eq!(some.values[0].first_place.as_ref().unwrap().index, [0, 77]);
    let all = models.diff(|settings| settings.tolerance = 1.0);
    assert!(all.equal && all.within_tolerance == 1, "{all}");
    assert_eq!(all.to_string(), "equal: 3 tensors, 1 of them within the tolerance only");
}

#[test]
fn names_shapes_and_types_are_told() {
    let models = Models::new();
    models.change(|tensors| {
        tensors[0].2 = &[500, 300];
        tensors[1].1 = Dtype::F32;
        tensors[2].0 = "other";
    });
    let difference = models.diff(|_| {});
    assert_eq!(
        (difference.only_in_first, difference.only_in_second),
        (vec!["packed".into()], vec!["other".into()])
    );
    let shapes = Shapes { tensor: "layers.10.weight".into(), first: vec![300, 500], second: vec![500, 300] };
    assert_eq!(difference.shapes, [shapes]);
    let types = Types { tensor: "layers.9.weight".into(), first: "BF16".into(), second: "F32".into() };
    assert_eq!((difference.types, difference.values), (vec![types], Vec::new()));
    models.change(|tensors| tensors[1].1 = Dtype::F32);
    assert!(!models.diff(|_| {}).equal);
    assert!(models.diff(|settings| settings.ignore_types = true).equal);
}

#[test]
fn configs_tokenizers_and_other_files_are_compared_by_what_they_say() {
    let models = Models::new();
    models.write(
        "b/config.json",
        r#"{"hidden_size": 4, "rope_scaling": {"factor": 4.0}, "torch_dtype": "float32"}"#,
    );
    models.write("a/tokenizer.json", r#"{"model": {"vocab": {"a": 0, "b": 1}}}"#);
    models.write("b/tokenizer.json", r#"{"model": {"vocab": {"a": 1, "c": 0}}}"#);
    models.write("a/tokenizer_config.json", r#"{"eos": "</s>"}"#);
    models.write("b/tokenizer_config.json", r#"{"eos": "<end>"}"#);
    models.write("a/LICENSE", "one");
    models.write("b/LICENSE", "two");
    models.write("b/chat_template.jinja", "x");
    let expected = [
        "config rope_scaling.factor: 2.0 and 4.0",
        "config torch_dtype: \"bfloat16\" and \"float32\"",
        "tokenizer tokens only in A: \"b\"",
        "tokenizer tokens only in B: \"c\"",
        "tokenizer tokens with other ids: \"a\"",
        "file LICENSE: differs",
        "file chat_template.jinja: only in B",
        "file tokenizer_config.json: eos: \"</s>\" and \"<end>\"",
        "different: 0 of 3 tensors that both have differ in their values",
    ];
    let text = models.diff(|_| {}).to_string();
    let text = text
        .replace(models.path("a").to_str().unwrap(), "A")
        .replace(models.path("b").to_str().unwrap(), "B");
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn a_model_that_cannot_be_opened_is_named() {
    let models = Models::new();
    let absent = models.path("absent");
    let settings = Settings {
        first: absent.to_str().unwrap(),
        second: absent.to_str().unwrap(),
        tolerance: 0.0,
        relative_tolerance: 0.0,
        ignore_types: false,
    };
    let error = quietly(|execute| diff(&settings, &PlanOptions::default(), execute)).unwrap_err();
    assert!(error.to_string().contains("absent does not exist"), "{error}");
}
