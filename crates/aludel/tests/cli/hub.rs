//! Names models on a hub: one on this machine, or none.

use std::fs;
use std::path::Path;

use snapbox::str;

use crate::sandbox::Sandbox;

#[path = "../../../aludel-hub/tests/server/mod.rs"]
mod server;

use server::{Manner, Server};

/// A hub with the model `models/a` under the name `owner/tiny`.
fn serving_a() -> Server {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models/a");
    let files = ["config.json", "model.safetensors"].map(|name| (name, fs::read(folder.join(name)).unwrap()));
    Server::start(files.to_vec(), Manner::Plain)
}

const RECIPE: &str = "merge_method: linear\nmodels:\n  - {model: NAME, parameters: {weight: 0.5}}\n  - {model: models/b, parameters: {weight: 0.5}}\ndtype: float32\n";

#[test]
fn a_model_on_a_hub_is_planned_from_headers_and_merged_like_one_on_disk() {
    let (sandbox, hub) = (Sandbox::new(&["a", "b"]), serving_a());
    sandbox.write("disk.yml", RECIPE.replace("NAME", "models/a"));
    sandbox.write("hub.yml", RECIPE.replace("NAME", "owner/tiny@v1"));
    let online = |arguments: &[&str]| {
        sandbox
            .aludel(arguments)
            .env("HF_HUB_OFFLINE", "0")
            .env("HF_ENDPOINT", &hub.endpoint)
            .assert()
            .code(0)
    };
    let planned = online(&["plan", "hub.yml"]).get_output().stdout.clone();
    let planned = String::from_utf8(planned).unwrap();
    assert!(planned.contains("owner/tiny@v1") && planned.contains("of it to download first"), "{planned}");
    let merged = online(&["merge", "hub.yml", "hub"]).get_output().stderr.clone();
    let merged = String::from_utf8(merged).unwrap();
    assert!(merged.contains("downloaded ") && merged.contains(" of owner/tiny@v1"), "{merged}");
    sandbox.aludel(&["merge", "disk.yml", "disk"]).assert().code(0);
    let weights = |folder: &str| fs::read(sandbox.path(folder).join("model.safetensors")).unwrap();
    assert_eq!(weights("hub"), weights("disk"));
    // All of it is in the cache now, and no network is needed.
    sandbox.aludel(&["merge", "hub.yml", "again"]).env("HF_HUB_OFFLINE", "1").assert().code(0);
    assert_eq!(weights("again"), weights("disk"));
    sandbox.aludel(&["convert", "owner/tiny@v1", "converted"]).env("HF_HUB_OFFLINE", "1").assert().code(0);
    assert!(sandbox.path("converted/model.safetensors").is_file());
}

#[test]
fn an_adapter_on_a_hub_is_planned_from_headers_and_added_and_combined_like_one_on_disk() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/adapters");
    let folder = golden.join("adapters/plain");
    let files = ["README.md", "adapter_config.json", "adapter_model.safetensors"];
    let content = |name| fs::read(folder.join(name)).unwrap_or_default();
    let hub = Server::start(files.map(|name| (name, content(name))).to_vec(), Manner::Plain);
    let sandbox = Sandbox::new(&[]);
    let base = golden.join("models/llama").display().to_string();
    let recipe =
        |adapter: &str| format!("merge_method: passthrough\nmodels: [{{model: '{base}+{adapter}'}}]\n");
    sandbox.write("hub.yml", recipe("owner/tiny@v1"));
    sandbox.write("disk.yml", recipe(&folder.display().to_string()));
    let online = |arguments: &[&str]| {
        let command = sandbox.aludel(arguments).env("HF_HUB_OFFLINE", "0").env("HF_ENDPOINT", &hub.endpoint);
        let output = command.assert().code(0).get_output().clone();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let planned = online(&["plan", "hub.yml"]);
    assert!(planned.contains("of it to download first"), "{planned}");
    assert!(hub.ranges().iter().any(|range| range.starts_with("bytes=0-")), "{:?}", hub.ranges());
    let merged = online(&["merge", "hub.yml", "hub"]);
    assert!(merged.contains(" of owner/tiny@v1"), "{merged}");
    sandbox.aludel(&["merge", "disk.yml", "disk"]).assert().code(0);
    let weights = |path: &str| fs::read(sandbox.path(path)).unwrap();
    assert_eq!(weights("hub/model.safetensors"), weights("disk/model.safetensors"));
    // From the cache, without a network.
    sandbox.aludel(&["merge-lora", "a", "-a", "owner/tiny@v1", "-w", "0.5"]).assert().code(0);
    let on_disk = folder.display().to_string();
    sandbox.aludel(&["merge-lora", "b", "-a", &on_disk, "-w", "0.5"]).assert().code(0);
    assert_eq!(weights("a/adapter_model.safetensors"), weights("b/adapter_model.safetensors"));
    // A folder of weights without a config is no adapter.
    let error = sandbox.aludel(&["merge-lora", "c", "-a", "owner/other"]).assert().code(3);
    let error = String::from_utf8(error.get_output().stderr.clone()).unwrap();
    assert!(error.contains("`owner/other` is no folder on disk, nor in the cache"), "{error}");
}

#[test]
fn offline_a_model_that_is_nowhere_is_refused_with_the_way_out() {
    let sandbox = Sandbox::new(&["b"]);
    sandbox.write("r.yml", RECIPE.replace("NAME", "owner/tiny"));
    sandbox.aludel(&["merge", "r.yml", "out"]).assert().code(3).stdout_eq("").stderr_eq(str![[r#"
error: r.yml:3:13: models[0].model: `owner/tiny` is no folder on disk, nor in the cache [..], and HF_HUB_OFFLINE is set: unset it, download the model elsewhere, or give a folder
aludel: 1 problem, nothing was written

"#]]);
    for arguments in
        [&["generate", "owner/tiny", "--prompt", "x"][..], &["eval", "owner/tiny@v1", "--data", "x.txt"]]
    {
        let error = sandbox.aludel(arguments).assert().code(3).get_output().stderr.clone();
        let error = String::from_utf8(error).unwrap();
        assert!(error.contains("HF_HUB_OFFLINE is set"), "{error}");
    }
}

#[test]
fn a_run_may_name_its_teacher_on_a_hub() {
    let sandbox = Sandbox::new(&[]);
    sandbox.write("run.yml", "teacher: owner/tiny@v1\nstudent: {from_teacher: {every: 2}}\noutput: out\ndata: {train: x.txt}\ntrain: {steps: 1}\n");
    for arguments in [&["distill", "run.yml"][..], &["cache", "capture", "run.yml", "cache"]] {
        let error = sandbox.aludel(arguments).assert().code(3).get_output().stderr.clone();
        let error = String::from_utf8(error).unwrap();
        assert!(
            error.contains("`owner/tiny@v1` is no folder on disk") && error.contains("HF_HUB_OFFLINE is set"),
            "{error}"
        );
    }
    assert!(!sandbox.path("cache").exists());
}

/// The header of a cache has the name that the run has, not the place of the hub's files on this machine.
#[test]
fn a_teacher_on_a_hub_is_captured_like_one_on_disk() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = root.join("examples/models/scripture");
    let files = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    let content = |name| (name, fs::read(folder.join(name)).unwrap());
    let hub = Server::start(files.map(content).to_vec(), Manner::Plain);
    let sandbox = crate::distill::short("");
    let text = fs::read_to_string(sandbox.path("run.yml")).unwrap();
    sandbox.write("hub.yml", text.replace("teacher: examples/models/scripture", "teacher: owner/tiny@v1"));
    sandbox.aludel(&["cache", "capture", "run.yml", "disk", "--k", "4"]).assert().code(0);
    sandbox
        .aludel(&["cache", "capture", "hub.yml", "hub", "--k", "4"])
        .env("HF_HUB_OFFLINE", "0")
        .env("HF_ENDPOINT", &hub.endpoint)
        .assert()
        .code(0);
    let [disk, hub] = ["disk", "hub"].map(|cache| aludel_cache::Cache::open(&sandbox.path(cache)).unwrap());
    assert_eq!(hub.header().teacher.name, "owner/tiny@v1");
    assert_eq!(hub.header().teacher.weights, disk.header().teacher.weights);
    assert!(hub.ids().eq(disk.ids()));
    for id in hub.ids() {
        assert_eq!(hub.record(id).unwrap().rows().unwrap(), disk.record(id).unwrap().rows().unwrap());
    }
    // From the hub's cache, without a network.
    sandbox.aludel(&["cache", "verify", "hub", "--run", "hub.yml", "--records", "2"]).assert().code(0);
}

#[test]
fn a_revision_of_a_folder_is_refused() {
    let sandbox = Sandbox::new(&["a", "b"]);
    sandbox.write("r.yml", RECIPE.replace("NAME", "models/a@main"));
    sandbox.aludel(&["merge", "r.yml", "out"]).assert().code(3).stdout_eq("").stderr_eq(str![[r#"
error: r.yml:3:13: models[0].model: `models/a` is on disk, where models have no revisions: leave out `@main`
aludel: 1 problem, nothing was written

"#]]);
}
