//! Combination of adapters.

use std::path::Path;

use snapbox::str;

use crate::sandbox::Sandbox;

fn golden(case: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/adapters/adapters");
    folder.join(case).display().to_string()
}

#[test]
fn adapters_are_combined_and_the_error_is_stated() {
    let sandbox = Sandbox::new(&[]);
    let (plain, third) = (golden("plain"), golden("third"));
    let arguments = ["merge-lora", "out", "-a", &plain, "-a", &third, "-w", "0.7", "-w=-1"];
    sandbox
        .aludel(&arguments)
        .assert()
        .code(0)
        .stderr_eq(str![[r#"
combined 2 adapters into out ([..]) in [..]

"#]])
        .stdout_eq(str![[r#"
module                           count  adapters  rank  worst error
model.layers.*.mlp.down_proj         2         2     6            -
model.layers.*.self_attn.q_proj      2         2     6            -
model.layers.*.self_attn.v_proj      2         1     4            -
model.embed_tokens                   1         1     2            -
2 adapters, 7 modules of rank 2 to 6

"#]]);
    let json =
        sandbox.json(&[&arguments[..], &["--method", "ties_svd", "--rank", "2", "--json", "-f"]].concat());
    assert!(json["modules"].as_array().unwrap().iter().all(|module| module["rank"] == 2), "{json}");
    assert!(json["error"].as_f64().unwrap() > 0.01, "{json}");
    let card = std::fs::read_to_string(sandbox.path("out/README.md")).unwrap();
    assert!(card.contains("library_name: peft\nbase_model: \"models/llama\""), "{card}");
    assert!(card.contains("2 adapters, ") && card.contains(" | -1 |"), "{card}");
}

#[test]
fn what_cannot_be_combined_is_refused() {
    let sandbox = Sandbox::new(&[]);
    let (plain, third) = (golden("plain"), golden("third"));
    sandbox.aludel(&["merge-lora", "out", "-a", &plain, "-a", &third, "-w", "1"]).assert().code(3).stderr_eq(
        str![[r#"
error: 2 adapters and 1 weights
  hint: give a --weight for each --adapter, or none
aludel: 1 problem, nothing was written

"#]],
    );
    sandbox
        .aludel(&["merge-lora", "out", "-a", &plain, "-a", &third, "--method", "linear"])
        .assert()
        .code(3)
        .stderr_eq(str![[r#"
error: `model.layers.0.mlp.down_proj` has rank 4 in `[..]plain` and 2 in `[..]third`, and their factors cannot be mixed (nor those of 3 more)
  hint: take `cat`, `svd`, or the method's name with `_svd`, which combine products
aludel: 1 problem, nothing was written

"#]]);
    sandbox.aludel(&["merge-lora", "out", "-a", &plain, "--density", "0"]).assert().code(2);
    sandbox.aludel(&["merge-lora", "out"]).assert().code(2);
    assert!(!sandbox.path("out").exists());
}
