//! Merges on GPUs, on machines with and without one.

use snapbox::str;

use crate::sandbox::Sandbox;
use crate::weights::{noise, write_model};

/// The larger one is sampled where its task vectors are trimmed.
const TENSORS: &[(&str, &str, &[u64])] = &[
    ("model.embed_tokens.weight", "BF16", &[41, 4_001]),
    ("model.layers.0.mlp.weight", "F16", &[401, 271]),
    ("model.layers.0.norm.weight", "BF16", &[1]),
];

const RECIPES: [(&str, &str); 3] =
    [("ties", "density: 0.4"), ("dare_linear", "density: 0.4"), ("della", "density: 0.5, epsilon: 0.1")];

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new(&[]);
    let elements = TENSORS.iter().map(|(_, _, shape)| shape.iter().product::<u64>()).sum();
    for (seed, model) in ["models/base", "models/a", "models/b"].into_iter().enumerate() {
        write_model(&sandbox, model, TENSORS, &noise(elements, seed as u64 + 1));
    }
    sandbox
}

fn recipe(method: &str, of_member: &str) -> String {
    let member =
        |name: &str| format!("  - {{model: models/{name}, parameters: {{weight: 0.7, {of_member}}}}}\n");
    format!("merge_method: {method}\nbase_model: models/base\nmodels:\n{}{}", member("a"), member("b"))
}

/// Why there is no GPU, where there is none.
fn missing(sandbox: &Sandbox) -> Option<String> {
    Some(sandbox.json(&["devices", "--json"])["missing"].as_str()?.to_owned())
}

#[test]
fn a_gpu_writes_the_bytes_of_the_cpu() {
    let sandbox = sandbox();
    for (method, of_member) in RECIPES {
        sandbox.write("r.yml", recipe(method, of_member));
        // Without a GPU, `auto` is the CPU, and says nothing.
        for device in ["cpu", "auto"] {
            let arguments = ["merge", "r.yml", device, "--force", "--device", device];
            sandbox.aludel(&arguments).assert().code(0).stdout_eq("");
        }
        let weights = |folder: &str| std::fs::read(sandbox.path(folder).join("model.safetensors")).unwrap();
        assert_eq!(weights("cpu"), weights("auto"), "{method}");
    }
}

#[test]
fn a_gpu_that_is_not_there_is_said_to_be_missing() {
    let sandbox = sandbox();
    if missing(&sandbox).is_none_or(|why| !why.contains("libcuda")) {
        return; // There is one, or a driver without one.
    }
    sandbox.aludel(&["devices"]).assert().code(0).stderr_eq("").stdout_eq(str![[r#"
no GPU: the CUDA driver (libcuda) is not installed

"#]]);
    sandbox.write("r.yml", recipe("ties", "density: 0.4"));
    let merge = sandbox.aludel(&["merge", "r.yml", "out", "--device", "cuda:1"]);
    merge.assert().code(3).stdout_eq("").stderr_eq(str![[r#"
error: --device cuda:1: the CUDA driver (libcuda) is not installed
  hint: `aludel devices` lists the GPUs; `--device cpu` writes the same output
aludel: 1 problem, nothing was written

"#]]);
    assert_eq!(sandbox.names("."), ["models", "r.yml"]);
}

#[test]
fn a_device_has_a_name() {
    let sandbox = sandbox();
    for name in ["gpu", "cuda:", "cuda:x", ""] {
        let output = sandbox.process(&["merge", "r.yml", "out", "--device", name]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("write cpu, cuda, cuda:N or auto"), "{said}");
    }
}

#[test]
fn a_plan_says_what_a_gpu_leaves_to_the_cpu() {
    let sandbox = sandbox();
    let reasons = |method: &str, of_member: &str| {
        sandbox.write("r.yml", recipe(method, of_member));
        let plan = sandbox.json(&["plan", "r.yml", "--json"]);
        plan["formulas"].as_array().unwrap().iter().map(|f| f["only_on_cpu"].clone()).collect::<Vec<_>>()
    };
    assert!(reasons("ties", "density: 0.4").iter().all(serde_json::Value::is_null));
    let of_della = reasons("della", "density: 0.5, epsilon: 0.1");
    assert!(of_della.iter().any(|reason| reason == "it ranks the elements of rows"), "{of_della:?}");
}
