//! Flags that are pasted with mergekit's commands.

use snapbox::str;

use crate::sandbox::Sandbox;

const RECIPE: &str = "merge_method: linear\nmodels:\n  - {model: models/a, parameters: {weight: 1}}\n";

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new(&["a"]);
    sandbox.write("r.yml", RECIPE);
    sandbox
}

#[test]
fn flags_that_change_nothing_are_taken() {
    let sandbox = sandbox();
    let plain = [
        "--no-cuda",
        "--lazy-unpickle",
        "--copy-tokenizer",
        "--clone-tensors",
        "--async-write",
        "--write-threads",
        "4",
        "--write-model-card",
        "--safe-serialization",
        "--random-seed",
        "7",
        "-j",
        "2",
        "--out-shard-size",
        "5GB",
        "--no-quiet",
        "--no-trust-remote-code",
    ];
    let arguments = [&["merge", "r.yml", "out"], &plain[..]].concat();
    let output = sandbox.process(&arguments).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(!said.contains("warning"), "{said}");
    assert!(sandbox.path("out/model.safetensors").exists());
}

#[test]
fn flags_without_effect_are_said_to_have_none() {
    let sandbox = sandbox();
    let flags =
        ["--cuda", "--low-cpu-memory", "--allow-crimes", "--trust-remote-code", "--no-write-model-card"];
    let more = ["--transformers-cache", "/tmp/x", "--lora-merge-cache", "/tmp/y"];
    let arguments = [&["merge", "r.yml", "out"], &flags[..], &more].concat();
    sandbox.aludel(&arguments).assert().code(0).stdout_eq("").stderr_eq(str![[r#"
warning: --cuda has no effect: `aludel merge --device cuda` is what computes on a GPU
warning: --low-cpu-memory has no effect: weights are streamed, in as much memory as --memory says
warning: --no-write-model-card has no effect: the model card is written all the same; delete what is not wanted
warning: --allow-crimes has no effect: models are merged where their tensors have the same names and shapes
warning: --trust-remote-code has no effect: no code of a model is ever run
warning: --transformers-cache has no effect: the hub's cache is where HF_HUB_CACHE or HF_HOME says
warning: --lora-merge-cache has no effect: adapters are applied while their model is read, and nothing is cached
merging 1 model by linear into out: 7.8 kB to read, 10.7 kB to write
merged 1 model into out (10.7 kB) in [..]: [..]/s read, [..]/s written[..]

"#]]);
}

#[test]
fn what_is_not_done_is_refused_with_the_remedy() {
    let sandbox = sandbox();
    let pickled = sandbox.aludel(&["merge", "r.yml", "out", "--no-safe-serialization"]);
    pickled.assert().code(3).stdout_eq("").stderr_eq(str![[r#"
error: --no-safe-serialization: weights are written as safetensors only
  hint: leave it out; torch can save them anew
aludel: 1 problem, nothing was written

"#]]);
    let shards = sandbox.aludel(&["merge", "r.yml", "out", "--out-shard-size", "5B"]);
    shards.assert().code(2).stdout_eq("").stderr_eq(str![[r#"
error: invalid value '5B' for '--shard-size <SIZE>': write `5GB` for billions of bytes, or `5` for bytes

For more information, try '--help'.

"#]]);
    assert!(!sandbox.path("out").exists());
}
