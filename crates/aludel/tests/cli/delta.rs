//! Outputs that are stored as what differs from the base, and the models that are made of them.

use snapbox::str;

use crate::sandbox::Sandbox;

const TIES: &str = "\
merge_method: ties
base_model: models/base
models:
  - {model: models/a, parameters: {weight: 0.5, density: 0.3}}
  - {model: models/b, parameters: {weight: 0.5, density: 0.3}}
dtype: DTYPE
";

fn models(dtype: &str) -> Sandbox {
    let sandbox = Sandbox::new(&["base", "a", "b"]);
    sandbox.write("r.yml", TIES.replace("DTYPE", dtype));
    sandbox
}

#[test]
fn a_delta_and_its_base_are_the_merge_bit_for_bit() {
    for dtype in ["bfloat16", "float16", "float32"] {
        let sandbox = models(dtype);
        sandbox.aludel(&["merge", "r.yml", "whole", "-q", "--shard-size", "4000"]).assert().code(0);
        let report = sandbox.json(&["merge", "r.yml", "delta", "--output", "sparse-delta", "--json"]);
        let (stored, dense) =
            (report["bytes_written"].as_u64().unwrap(), report["bytes_dense"].as_u64().unwrap());
        assert!(stored < dense, "{report}");
        assert!(!sandbox.names("delta").iter().any(|name| name.ends_with(".safetensors")));
        sandbox.aludel(&["apply", "delta", "out", "-q", "--shard-size", "4000"]).assert().code(0);
        assert_eq!(sandbox.contents("out"), sandbox.contents("whole"), "{dtype}");
        // The base may lie elsewhere, and in another form.
        sandbox.aludel(&["convert", "models/base", "moved", "-q", "--shard-size", "3000"]).assert().code(0);
        sandbox
            .aludel(&["apply", "delta", "other", "--base", "moved", "-q", "--shard-size", "4000"])
            .assert()
            .code(0);
        assert_eq!(sandbox.contents("other"), sandbox.contents("whole"));
    }
}

/// It is smaller where values have many digits, and what comes back is near the merge: a sixteenth of the largest difference may be lost.
#[test]
fn a_delta_of_fp8_is_smaller_and_near_the_merge() {
    let sandbox = models("float32");
    let stored = |name: &str, form: &str| {
        let report = sandbox.json(&["merge", "r.yml", name, "--output", form, "--json"]);
        report["bytes_written"].as_u64().unwrap()
    };
    let (exact, rounded) = (stored("exact", "sparse-delta"), stored("rounded", "sparse-delta-fp8"));
    assert!(rounded * 3 < exact * 2, "{rounded} of {exact}");
    for name in ["exact", "rounded"] {
        sandbox.aludel(&["apply", name, &format!("{name}-model"), "-q"]).assert().code(0);
    }
    let largest = |first: &str, second: &str| {
        let report = sandbox.json(&["diff", first, second, "--json"]);
        let values = report["values"].as_array().unwrap().iter();
        values.map(|tensor| tensor["largest"].as_f64().unwrap()).fold(0.0, f64::max)
    };
    let (all, lost) = (largest("models/base", "exact-model"), largest("rounded-model", "exact-model"));
    assert!(lost > 0.0 && lost < all / 15.0, "{lost} of {all}");
}

#[test]
fn another_base_is_refused_and_leaves_nothing() {
    let sandbox = models("bfloat16");
    sandbox.aludel(&["merge", "r.yml", "delta", "--output", "sparse-delta", "-q"]).assert().code(0);
    sandbox.aludel(&["apply", "delta", "out", "--base", "models/a", "-j", "1"]).assert().code(3).stderr_eq(
        str![[r#"
error: `models/a` is not the base that the delta was taken from: `lm_head.weight` is another
  hint: it was taken from `models/base`; give that model with --base
aludel: 1 problem, nothing was written

"#]],
    );
    sandbox.aludel(&["apply", "models/a", "out"]).assert().code(1).stderr_eq(str![[r#"
error: models/a is no delta: it has no delta.json; `aludel merge --output sparse-delta` makes one

"#]]);
    assert_eq!(sandbox.names("."), ["delta", "models", "r.yml"]);
}

#[test]
fn a_recipe_without_a_base_has_no_delta() {
    let sandbox = Sandbox::new(&["a", "b"]);
    sandbox.write(
        "r.yml",
        "merge_method: linear\nmodels: [{model: models/a}, {model: models/b}]\nparameters: {weight: 1}\n",
    );
    sandbox.aludel(&["merge", "r.yml", "delta", "--output", "sparse-delta"]).assert().code(3).stderr_eq(
        str![[r#"
error: r.yml:1:15: merge_method: a sparse delta is a difference from `base_model`, and there is none
  hint: name the base model, or leave `--output sparse-delta` out
aludel: 1 problem, nothing was written

"#]],
    );
}
