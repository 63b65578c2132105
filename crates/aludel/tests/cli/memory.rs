//! What a merge takes in memory, as the system counts it, beside what was planned: for tensors several times larger than that.

use crate::sandbox::Sandbox;
use crate::weights::{noise, write_model};

/// A matrix of the sides of a large model's, scaled down: 16 MiB in each model.
const TENSORS: &[(&str, &str, &[u64])] = &[("model.layers.0.mlp.down_proj.weight", "BF16", &[2048, 4096])];

/// Methods that reduce over tensors, over rows, or rank within rows; with the parameters of a member, those of the merge, and the members.
const METHODS: &[(&str, &str, &str, &[&str])] = &[
    ("ties", "{weight: 0.7, density: 0.4}", "{}", &["a", "b", "c"]),
    ("della", "{weight: 0.7, density: 0.4}", "{}", &["a", "b"]),
    ("sce", "{}", "{select_topk: 0.3}", &["a", "b"]),
    ("model_stock", "{}", "{}", &["a", "b", "c"]),
    ("karcher", "{}", "{max_iter: 10}", &["a", "b", "c"]),
    ("geometric_median", "{}", "{}", &["a", "b", "c"]),
    ("nuslerp", "{weight: 0.7}", "{nuslerp_flatten: false, nuslerp_row_wise: true}", &["a", "b"]),
    ("arcee_fusion", "{}", "{}", &["a"]),
];

#[test]
#[cfg(target_os = "linux")]
fn memory_is_bounded_by_the_plan_for_every_kind_of_method() {
    let sandbox = Sandbox::new(&[]);
    let elements = TENSORS.iter().map(|(_, _, shape)| shape.iter().product::<u64>()).sum();
    for (seed, model) in ["models/base", "models/a", "models/b", "models/c"].into_iter().enumerate() {
        write_model(&sandbox, model, TENSORS, &noise(elements, seed as u64 + 1));
    }
    for (method, of_member, of_merge, members) in METHODS {
        let has_base = !matches!(*method, "karcher" | "geometric_median");
        let base = if has_base { "base_model: models/base\n" } else { "" };
        let member = |name: &&str| format!("  - {{model: models/{name}, parameters: {of_member}}}\n");
        let models: String = members.iter().map(member).collect();
        let recipe = format!(
            "merge_method: {method}\n{base}models:\n{models}parameters: {of_merge}\ndtype: bfloat16\n"
        );
        sandbox.write("r.yml", recipe);
        let arguments = ["merge", "r.yml", "out", "--force", "--no-sync", "--json", "--threads", "2"];
        let report = sandbox.json(&[&arguments[..], &["--memory", "24MiB"]].concat());
        let bytes = |key: &str| report[key].as_u64().unwrap_or_else(|| panic!("{method}: {report}"));
        let (peak, planned) = (bytes("peak_memory"), bytes("planned_peak_memory"));
        // Pages of the program itself come in while it runs; a tensor of each model would be four times as much as that.
        assert!(peak <= planned + (16 << 20), "{method}: {peak} bytes resident, {planned} planned");
    }
}
