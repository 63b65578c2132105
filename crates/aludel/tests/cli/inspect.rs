//! Contents of models, and comparisons with a base.

use snapbox::str;

use crate::sandbox::Sandbox;

#[test]
fn a_model_is_listed_by_layer_and_by_tensor() {
    let sandbox = Sandbox::new(&["a"]);
    sandbox.aludel(&["inspect", "models/a"]).assert().code(0).stderr_eq("").stdout_eq(str![[r#"
model         models/a
architecture  LlamaForCausalLM, 3 layers, 16 tokens, a head of its own
parameters    1944 in 30 tensors, 7.8 kB
type          F32: 1944 parameters in 30 tensors, 7.8 kB

layer               tensors  parameters    size
lm_head                   1         128   512 B
model.embed_tokens        1         128   512 B
model.layers.0            9         560  2.2 kB
model.layers.1            9         560  2.2 kB
model.layers.2            9         560  2.2 kB
model.norm                1           8    32 B

"#]]);
    let json = sandbox.json(&["inspect", "models/a", "--json"]);
    assert_eq!(json["tensors"].as_array().unwrap().len(), 30);
    let names = json["tensors"].as_array().unwrap().iter().map(|tensor| tensor["name"].as_str().unwrap());
    let output = sandbox.process(&["inspect", "models/a", "-v"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for name in names {
        assert!(text.contains(&format!("\n{name} ")), "{name} is not in {text}");
    }
}

#[test]
fn models_are_compared_with_their_base() {
    let sandbox = Sandbox::new(&["base", "a", "b"]);
    let arguments = ["inspect", "models/a", "models/b", "--against", "models/base", "--html", "page.html"];
    sandbox
        .aludel(&arguments)
        .assert()
        .code(0)
        .stderr_eq(str![[r#"
compared 2 models with models/base in [..]: [..]/s read; page.html shows it

"#]])
        .stdout_eq(str![[r#"
base  models/base

model models/a less the base
layer               delta norm  relative  largest   cosine  unchanged  <= 1e-5
lm_head                 0.2157    0.3525  0.06552  0.94301     0.00 %   0.00 %
model.embed_tokens       0.228    0.3799  0.06182  0.93040     0.00 %   0.00 %
model.layers.0          0.4845    0.1178  0.08154  0.99322     0.00 %   0.00 %
model.layers.1          0.4907     0.121  0.07877  0.99283     0.00 %   0.00 %
model.layers.2          0.4909    0.1181  0.06009  0.99320     0.00 %   0.18 %
model.norm             0.07512   0.02622  0.04754  0.99969     0.00 %   0.00 %
all                     0.9059    0.1174  0.08154  0.99323     0.00 %   0.05 %

model models/b less the base
layer               delta norm  relative  largest   cosine  unchanged  <= 1e-5
lm_head                 0.2448    0.4001  0.05352  0.93280     0.00 %   0.00 %
model.embed_tokens      0.2085    0.3475  0.04527  0.95042     0.00 %   0.00 %
model.layers.0          0.4782    0.1163  0.05787  0.99335     0.00 %   0.00 %
model.layers.1          0.4596    0.1134  0.07097  0.99375     0.00 %   0.00 %
model.layers.2          0.4619    0.1111  0.05975  0.99394     0.00 %   0.00 %
model.norm              0.0347   0.01211  0.02178  0.99995     0.00 %   0.00 %
all                     0.8706    0.1128  0.07097  0.99378     0.00 %   0.00 %

changes of models/a and models/b
layer                 cosine  both change    agree  conflict
lm_head             -0.04970     100.00 %  44.53 %   55.47 %
model.embed_tokens  -0.09880     100.00 %  45.31 %   54.69 %
model.layers.0       0.05535     100.00 %  53.04 %   46.96 %
model.layers.1      -0.01489     100.00 %  48.04 %   51.96 %
model.layers.2      -0.01497     100.00 %  51.79 %   48.21 %
model.norm          -0.04910     100.00 %  37.50 %   62.50 %
all                 -0.00175     100.00 %  50.10 %   49.90 %

"#]]);
    let page = std::fs::read_to_string(sandbox.path("page.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    assert_eq!(sandbox.names("."), ["models", "page.html"]);
    let json = sandbox.json(&["inspect", "models/a", "--against", "models/base", "--json", "-q"]);
    assert_eq!((&json["base"], &json["models"]), (&"models/base".into(), &serde_json::json!(["models/a"])));
    assert!(json["whole"]["models"][0]["cosine"].as_f64().unwrap() < 1.0);
}

#[test]
fn several_models_need_a_base() {
    let sandbox = Sandbox::new(&["a", "b"]);
    sandbox.aludel(&["inspect", "models/a", "models/b"]).assert().code(3).stdout_eq("").stderr_eq(str![[
        r#"
error: several models, and none to compare them with
  hint: give the model that they come from with --against
aludel: 1 problem, nothing was written

"#
    ]]);
    let absent = sandbox.aludel(&["inspect", "absent"]);
    absent.assert().code(3).stdout_eq("").stderr_eq(str![[r#"
error: absent does not exist: give a model folder, a file of weights, or the `owner/name` of a model on a hub
aludel: 1 problem, nothing was written

"#]]);
}
