//! Replays every recorded model: logits, loss and every gradient, and the config in both of its spellings.

use std::path::Path;

use aludel_checkpoint::Config;
use aludel_model::{Keep, ModelConfig};

use crate::support::{Tensors, batch, cases, differ, folder, step, trained};

const TOLERANCE: f64 = 1e-4;

#[test]
fn logits_loss_and_gradients_agree_with_transformers() {
    let mut failures = Vec::new();
    let cases = cases();
    for case in &cases {
        let decoder = trained(case, 1);
        let outcome = step(&decoder, &batch(), Keep::Everything);
        let expected = Tensors::open(&folder().join(case).join("expected.safetensors"));
        let mut check = |name: &str, got: &[f32], expected: &[f32]| {
            if let Err(failure) = differ(got, expected, TOLERANCE) {
                failures.push(format!("{case}: {name}: {failure}"));
            }
        };
        check("logits", &outcome.logits, &expected.values("logits"));
        check("loss", &[outcome.loss as f32], &expected.values("loss"));
        let mut compared = 0;
        for name in expected.names() {
            let Some(tensor) = name.strip_prefix("gradient.") else { continue };
            let got: Vec<f32> =
                parts(tensor).iter().flat_map(|part| outcome.gradient(part)).copied().collect();
            compared += parts(tensor).len();
            check(tensor, &got, &expected.values(name));
        }
        assert_eq!(compared, outcome.gradients.len(), "{case}: gradients without a counterpart");
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(cases.len() >= 17, "{cases:?}");
}

/// The parameters that a tensor of a file joins.
fn parts(tensor: &str) -> Vec<String> {
    for (fused, parts) in
        [("qkv_proj", &["q_proj", "k_proj", "v_proj"][..]), ("gate_up_proj", &["gate_proj", "up_proj"])]
    {
        if tensor.contains(fused) {
            return parts.iter().map(|part| tensor.replace(fused, part)).collect();
        }
    }
    vec![tensor.to_owned()]
}

#[test]
fn both_spellings_of_a_config_mean_the_same() {
    let parse = |path: &Path| ModelConfig::parse(&Config::read(path).unwrap()).unwrap();
    for case in cases() {
        let folder = folder().join(&case);
        let (new, old) = (parse(&folder.join("config.json")), parse(&folder.join("config-4.json")));
        assert_eq!(new, old, "{case}");
    }
}
