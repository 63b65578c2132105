//! Merges on GPUs, on machines with and without one.

use std::process::Command;

use snapbox::str;

use crate::sandbox::{Sandbox, printed};
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

/// Tells Vulkan where drivers are.
const DRIVERS: &str = "VK_DRIVER_FILES";

/// Why there is no GPU, where there is none.
fn missing(sandbox: &Sandbox) -> Option<String> {
    Some(sandbox.json(&["devices", "--json"])["missing"].as_str()?.to_owned())
}

#[test]
fn a_gpu_writes_the_bytes_of_the_cpu() {
    let sandbox = sandbox();
    for (method, of_member) in RECIPES {
        sandbox.write("r.yml", recipe(method, of_member));
        // Without a GPU, `auto` is the CPU, whatever programs there are that do as if, and says nothing.
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
    sandbox.aludel(&["devices"]).env(DRIVERS, "none").assert().code(0).stdout_eq(str![[r#"
no GPU by CUDA: the CUDA driver (libcuda) is not installed
no GPU by wgpu: no driver for [..] shows an adapter

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
fn an_adapter_that_is_not_there_is_said_to_be_missing() {
    let sandbox = sandbox();
    sandbox.write("r.yml", recipe("ties", "density: 0.4"));
    if cfg!(target_os = "linux") {
        let merge = sandbox.aludel(&["merge", "r.yml", "out", "--device", "wgpu"]).env(DRIVERS, "none");
        merge.assert().code(3).stdout_eq("").stderr_eq(str![[r#"
error: --device wgpu:0: no driver for Vulkan shows an adapter
  hint: install the GPU's driver; `--device cpu` writes the same output
aludel: 1 problem, nothing was written

"#]]);
    }
    if !has_adapter(&sandbox) {
        return;
    }
    let output = sandbox.process(&["merge", "r.yml", "out", "--device", "wgpu:99"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("error: --device wgpu:99: there is no adapter 99: there are "), "{said}");
    assert!(said.contains("hint: `aludel devices` lists the GPUs"), "{said}");
    assert_eq!(sandbox.names("."), ["models", "r.yml"]);
}

#[test]
fn parts_and_deltas_by_wgpu_are_those_of_the_cpu() {
    let sandbox = sandbox();
    if !has_adapter(&sandbox) {
        return;
    }
    sandbox.write("r.yml", recipe("ties", "density: 0.4"));
    let merge = |target: &str, more: &[&str]| {
        let all = [&["merge", "r.yml", target, "-q", "--shard-size", "200000"], more].concat();
        sandbox.aludel(&all).assert().code(0);
    };
    merge("whole", &[]);
    for part in ["1/2", "2/2"] {
        merge("out", &["--device", "wgpu", "--part", part]);
    }
    sandbox.aludel(&["join", "out", "-q"]).assert().code(0);
    assert_eq!(sandbox.contents("out"), sandbox.contents("whole"));
    merge("delta", &["--output", "sparse-delta"]);
    merge("delta-by-wgpu", &["--output", "sparse-delta", "--device", "wgpu"]);
    assert_eq!(sandbox.contents("delta-by-wgpu"), sandbox.contents("delta"));
}

/// Whether there is an adapter, be it a program on the CPU; there must be where `ALUDEL_REQUIRE_VULKAN` says so.
pub(crate) fn has_adapter(sandbox: &Sandbox) -> bool {
    let adapters = sandbox.json(&["devices", "--json"])["wgpu"].as_array().unwrap().len();
    let is_required = std::env::var_os("ALUDEL_REQUIRE_VULKAN").is_some_and(|value| value == "1");
    assert!(adapters > 0 || !is_required, "ALUDEL_REQUIRE_VULKAN is set, and no driver shows an adapter");
    if adapters == 0 {
        eprintln!("NOT TESTED: no driver shows an adapter");
    }
    adapters > 0
}

/// Methods that are computed by devices, with the parameters of a model and those of all.
const BY_DEVICES: [(&str, &str, &str); 11] = [
    ("linear", "weight: 0.7", ""),
    ("slerp", "", "t: 0.3"),
    ("task_arithmetic", "weight: 0.7", "lambda: 0.9"),
    ("ties", "weight: 0.7, density: 0.4", ""),
    ("dare_linear", "weight: 0.7, density: 0.4", ""),
    ("dare_ties", "weight: 0.7, density: 0.4", ""),
    ("breadcrumbs", "weight: 0.7, density: 0.4, gamma: 0.1", ""),
    ("breadcrumbs_ties", "weight: 0.7, density: 0.4, gamma: 0.1", ""),
    ("sce", "", "select_topk: 0.3"),
    ("model_stock", "", ""),
    ("formula", "weight: 0.7", "formula: base + total(weight * (model - base))"),
];

fn recipe_of((method, of_member, of_all): (&str, &str, &str), dtype: &str) -> String {
    let member = |name: &str| format!("  - {{model: models/{name}, parameters: {{{of_member}}}}}\n");
    let (base, members) = match method {
        "linear" => ("", [member("a"), member("b")].concat()),
        "slerp" => ("base_model: models/a\n", [member("a"), member("b")].concat()),
        _ => ("base_model: models/base\n", [member("a"), member("b")].concat()),
    };
    format!("merge_method: {method}\n{base}models:\n{members}parameters: {{{of_all}}}\ndtype: {dtype}\n")
}

/// Holds what a device writes to what the CPU does, of every method and every type.
fn assert_writes_the_bytes_of_the_cpu(device: &str, program: impl Fn(&Sandbox, &[&str]) -> Command) {
    let sandbox = sandbox();
    for case in BY_DEVICES {
        for dtype in ["float32", "float16", "bfloat16"] {
            sandbox.write("r.yml", recipe_of(case, dtype));
            sandbox.aludel(&["merge", "r.yml", "cpu", "--force", "--seed", "3"]).assert().code(0);
            let merge = ["merge", "r.yml", "device", "--force", "--seed", "3", "--device", device, "--json"];
            let report = printed(&mut program(&sandbox, &merge));
            // All three tensors, none of them left to the CPU.
            assert_eq!(report["device"]["tensors"], 3, "{case:?} {dtype}: {report}");
            let weights =
                |folder: &str| std::fs::read(sandbox.path(folder).join("model.safetensors")).unwrap();
            assert!(weights("cpu") == weights("device"), "{case:?} {dtype}");
        }
    }
}

#[test]
fn wgpu_writes_the_bytes_of_the_cpu() {
    if has_adapter(&sandbox()) {
        assert_writes_the_bytes_of_the_cpu("wgpu", Sandbox::process);
    }
}

#[test]
fn cuda_writes_the_bytes_of_the_cpu() {
    if sandbox().with_cuda(&[]).is_some() {
        assert_writes_the_bytes_of_the_cpu("cuda", |sandbox, arguments| {
            sandbox.with_cuda(arguments).unwrap()
        });
    }
}

/// It is opened while the output's files are made: they go with it, and what an earlier run has left stays.
#[test]
fn a_device_that_cannot_be_opened_leaves_nothing() {
    let sandbox = sandbox();
    sandbox.write("r.yml", recipe("ties", "density: 0.4"));
    for resume in [&[][..], &["--resume"]] {
        let arguments = [&["merge", "r.yml", "out", "--device", "cuda:9"], resume].concat();
        let Some(mut merge) = sandbox.with_cuda(&arguments) else { return };
        let output = merge.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains("error: --device cuda:9: ") && said.contains("hint: "), "{said}");
        assert!(said.ends_with("aludel: 1 problem, nothing was written\n"), "{said}");
        assert_eq!(sandbox.names("."), ["models", "r.yml"]);
    }
}

#[test]
fn what_wgpu_leaves_to_the_cpu_is_said() {
    let sandbox = sandbox();
    if !has_adapter(&sandbox) {
        return;
    }
    for (formula, reason) in [
        ("base + exp(model[0] - base) * 0.01", "it has exponentials or logarithms, which take f64"),
        ("base + (model[0] - base) * 1e-37 * 1e-3", "it has NaN, infinities or numbers below 2^-126"),
    ] {
        let of_all = format!("formula: \"{formula}\"");
        sandbox.write("r.yml", recipe_of(("formula", "", &of_all), "float32"));
        sandbox.aludel(&["merge", "r.yml", "cpu", "--force"]).assert().code(0);
        let report = sandbox.json(&["merge", "r.yml", "wgpu", "--force", "--device", "wgpu", "--json"]);
        assert_eq!(report["device"]["on_cpu"][reason], 3, "{report}");
        let weights = |folder: &str| std::fs::read(sandbox.path(folder).join("model.safetensors")).unwrap();
        assert!(weights("cpu") == weights("wgpu"), "{formula}");
    }
}

#[test]
fn a_device_has_a_name() {
    let sandbox = sandbox();
    for name in ["gpu", "cuda:", "cuda:x", "wgpu:", "wgpu:-1", ""] {
        let output = sandbox.process(&["merge", "r.yml", "out", "--device", name]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("write cpu, cuda, cuda:N, wgpu, wgpu:N or auto"), "{said}");
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
