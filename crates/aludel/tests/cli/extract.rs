//! Extraction of adapters.

use snapbox::str;

use crate::sandbox::Sandbox;

#[test]
fn an_adapter_is_extracted_and_its_error_is_stated() {
    let sandbox = Sandbox::new(&["base", "a"]);
    sandbox
        .aludel(&["extract-lora", "models/a", "models/base", "out", "--rank", "2"])
        .assert()
        .code(0)
        .stderr_eq(str![[r#"
extracted models/a from models/base into out in [..]: [..]/s read, 4.2 kB written[..]

"#]])
        .stdout_eq(str![[r#"
tensor                                  count  rank   norm  error  worst   singular values
model.layers.*.mlp.down_proj.weight         3     2  0.357  0.653  0.690   0.133 to 0.0932
model.layers.*.mlp.gate_proj.weight         3     2  0.351  0.670  0.700   0.129 to 0.0925
model.layers.*.mlp.up_proj.weight           3     2  0.336  0.657  0.691   0.132 to 0.0823
model.layers.*.self_attn.k_proj.weight      3     2  0.283  0.602  0.625  0.0999 to 0.0852
model.layers.*.self_attn.o_proj.weight      3     2  0.302  0.596  0.635   0.114 to 0.0707
model.layers.*.self_attn.q_proj.weight      3     2  0.286  0.637  0.658   0.108 to 0.0746
model.layers.*.self_attn.v_proj.weight      3     2  0.276  0.653  0.679  0.0951 to 0.0770
all                                        21     2  0.832  0.642  0.700   0.133 to 0.0707

tensor                                          count    norm             
lm_head.weight                                      1   0.216  saved whole
model.embed_tokens.weight                           1   0.228  saved whole
model.layers.*.input_layernorm.weight               3  0.0988  saved whole
model.layers.*.post_attention_layernorm.weight      3   0.122  saved whole
model.norm.weight                                   1  0.0751  saved whole
21 tensors of rank 2, 9 saved whole: relative error 0.589

"#]]);
    sandbox
        .aludel(&["extract-lora", "models/a", "models/base", "out", "--error", "0.5", "-f", "-q", "-v"])
        .assert()
        .code(2);
    let json =
        sandbox.json(&["extract-lora", "models/a", "models/base", "error", "--error", "0.5", "--json"]);
    for extracted in json["extracted"].as_array().unwrap() {
        let rank = extracted["singular_values"].as_array().unwrap().len();
        assert_eq!(extracted["rank"], rank, "{extracted}");
        assert!(extracted["error"].as_f64().unwrap() <= 0.5, "{extracted}");
    }
    let card = std::fs::read_to_string(sandbox.path("error/README.md")).unwrap();
    assert!(card.contains("library_name: peft\nbase_model: \"models/base\""), "{card}");
    assert!(card.contains(": relative error 0."), "{card}");
    assert_eq!(card.matches("model.safetensors").count(), 2, "{card}");
    // It goes where an adapter may go.
    sandbox.write("r.yml", "merge_method: passthrough\nmodels: [{model: models/base+error}]\n");
    sandbox.aludel(&["merge", "r.yml", "merged"]).assert().code(0);
}

#[test]
fn mergekits_command_can_be_pasted() {
    let sandbox = Sandbox::new(&["base", "a"]);
    let pasted = [
        "extract-lora",
        "--model",
        "models/a",
        "--base-model",
        "models/base",
        "--out-path",
        "out",
        "--max-rank=2",
        "--no-distribute-scale",
        "--embed-lora",
        "-e",
        "norm",
        "--sv-epsilon=0",
        "--cuda",
        "--random-seed=3",
        "-q",
    ];
    sandbox.aludel(&pasted).assert().code(0).stderr_eq("");
    assert!(sandbox.path("out/adapter_model.safetensors").is_file());
    sandbox.aludel(&["extract-lora", "models/a", "models/base"]).assert().code(2);
}

#[test]
fn what_cannot_be_extracted_is_refused_before_anything_is_written() {
    let sandbox = Sandbox::new(&["base", "a", "wide-base"]);
    sandbox
        .aludel(&["extract-lora", "models/base", "models/base", "out"])
        .assert()
        .code(3)
        .stdout_eq("")
        .stderr_eq(str![[r#"
error: `models/base` and `models/base` have the same weights: there is nothing to extract
aludel: 1 problem, nothing was written

"#]]);
    sandbox
        .aludel(&["extract-lora", "models/wide-base", "models/base", "out"])
        .assert()
        .code(3)
        .stderr_eq(str![[r#"
error: `models/wide-base` has no tensor `model.layers.1.input_layernorm.weight` and 17 more, which `models/base` has
  hint: its nearest is `model.layers.0.input_layernorm.weight`; an adapter joins two models of one architecture
aludel: 1 problem, nothing was written

"#]]);
    sandbox.write("out/keep", "");
    sandbox.aludel(&["extract-lora", "models/a", "models/base", "out"]).assert().code(3).stderr_eq(str![[
        r#"
error: out exists: it is not empty; name another folder or replace this one with `--force`

"#
    ]]);
    sandbox.aludel(&["extract-lora", "models/a", "models/base", "out", "--error", "1"]).assert().code(2);
}
