//! Conversions of model folders and files.

use std::fs;

use aludel_checkpoint::DigestCache;
use snapbox::str;

use crate::sandbox::Sandbox;
use crate::weights::{read_header, write_model};

#[test]
fn a_folder_is_written_anew_with_another_type() {
    let sandbox = Sandbox::new(&[]);
    let values: Vec<u8> = [1.0f32, -2.5, 3.000_000_2].iter().flat_map(|value| value.to_le_bytes()).collect();
    write_model(&sandbox, "models/a", &[("w", "F32", &[3])], &values);
    let convert = sandbox.aludel(&["convert", "models/a", "out", "--dtype", "bf16"]);
    convert.assert().code(0).stdout_eq("").stderr_eq(str![[r#"
converted models/a into out (134 B) in [..]: [..]/s read, [..]/s written, peak memory [..]

"#]]);
    let output = sandbox.path("out/model.safetensors");
    assert_eq!(read_header(&output), [("w".to_owned(), "BF16".to_owned(), vec![3])]);
    let bytes = fs::read(output).unwrap();
    assert_eq!(bytes[bytes.len() - 6..], [0x80, 0x3f, 0x20, 0xc0, 0x40, 0x40]);
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(sandbox.path("out/config.json")).unwrap()).unwrap();
    assert_eq!(config["torch_dtype"], "bfloat16");
}

#[test]
fn without_a_type_the_weights_stay_bit_by_bit() {
    let sandbox = Sandbox::new(&["c-f16"]);
    sandbox.aludel(&["convert", "models/c-f16", "out", "-q"]).assert().code(0).stdout_eq("").stderr_eq("");
    let tensors = |path: &str| {
        let path = sandbox.path(path);
        let mut header = read_header(&path);
        header.sort();
        let bytes = fs::read(path).unwrap();
        let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut data = bytes[start..].to_vec();
        data.sort_unstable();
        (header, data)
    };
    assert_eq!(tensors("out/model.safetensors"), tensors("models/c-f16/model.safetensors"));
}

/// The path of a GGUF file with a vocabulary of a few tokens and weights in F32.
const GGUF: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../aludel-checkpoint/tests/fixtures/gguf/byte_level.gguf");

#[test]
fn a_gguf_file_becomes_a_model_folder() {
    let sandbox = Sandbox::new(&[]);
    fs::copy(GGUF, sandbox.path("m.gguf")).unwrap();
    let convert = sandbox.aludel(&["convert", "m.gguf", "out", "--dtype", "float16"]);
    convert.assert().code(0).stdout_eq("").stderr_eq(str![[r#"
converting m.gguf into out as F16: [..] to write
converted m.gguf into out ([..]) in [..]: [..]/s written

"#]]);
    let files = sandbox.names("out");
    for file in ["README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        assert!(files.contains(&file.to_owned()), "{file} is not among {files:?}");
    }
    let card = fs::read_to_string(sandbox.path("out/README.md")).unwrap();
    let digest =
        DigestCache::disabled().sha256(GGUF.as_ref(), &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
    let row = format!("| m.gguf | {} | `{digest}` |", fs::metadata(GGUF).unwrap().len());
    assert!(card.contains(&row), "{row} is not in {card}");
    let types: Vec<String> =
        read_header(&sandbox.path("out/model.safetensors")).into_iter().map(|(_, dtype, _)| dtype).collect();
    assert!(!types.is_empty() && types.iter().all(|dtype| dtype == "F16"), "{types:?}");
    assert_eq!(sandbox.names("."), ["m.gguf", "out"]);
}

#[test]
fn a_conversion_as_json_says_what_was_written() {
    let sandbox = Sandbox::new(&[]);
    let report = sandbox.json(&["convert", GGUF, "out", "--json", "-q"]);
    let tensors = read_header(&sandbox.path("out/model.safetensors")).len();
    assert_eq!(report["output"], "out");
    assert_eq!(report["tensors"], tensors);
}

/// The magic number decides where the name does not.
#[test]
fn a_damaged_gguf_file_is_refused_by_whatever_name() {
    let sandbox = Sandbox::new(&[]);
    sandbox.write("m.bin", &fs::read(GGUF).unwrap()[..100]);
    sandbox.aludel(&["convert", "m.bin", "out"]).assert().code(3).stdout_eq("").stderr_eq(str![[r#"
error: m.bin is damaged: the file ends inside a metadata value
aludel: 1 problem, nothing was written

"#]]);
    assert_eq!(sandbox.names("."), ["m.bin"]);
}

#[test]
fn what_is_no_model_is_refused_without_a_place_in_a_recipe_that_nobody_wrote() {
    let sandbox = Sandbox::new(&[]);
    sandbox.aludel(&["convert", "absent", "out"]).assert().code(3).stdout_eq("").stderr_eq(str![[r#"
error: absent does not exist: give a model folder, a file of weights, or the `owner/name` of a model on a hub
aludel: 1 problem, nothing was written

"#]]);
    assert!(!sandbox.path("out").exists());
}

#[test]
fn weights_are_split_into_shards_of_the_size_asked_for() {
    let sandbox = Sandbox::new(&["a"]);
    sandbox
        .aludel(&["convert", "models/a", "out", "--shard-size", "3kB", "-q"])
        .assert()
        .code(0)
        .stderr_eq("");
    let names = sandbox.names("out");
    let shards =
        names.iter().filter(|name| name.starts_with("model-") && name.ends_with("-of-00003.safetensors"));
    assert_eq!(shards.count(), 3, "{names:?}");
    assert!(names.contains(&"model.safetensors.index.json".to_owned()), "{names:?}");
    sandbox.aludel(&["diff", "models/a", "out"]).assert().code(0);
}

#[test]
fn a_single_file_is_a_model_without_a_config() {
    let sandbox = Sandbox::new(&["a"]);
    sandbox.aludel(&["convert", "models/a/model.safetensors", "out", "-q"]).assert().code(0).stderr_eq("");
    assert_eq!(sandbox.names("out"), ["README.md", "model.safetensors", "recipe.yml"]);
    sandbox.aludel(&["diff", "models/a/model.safetensors", "out"]).assert().code(0);
}

#[test]
fn a_head_that_is_tied_stays_tied() {
    let sandbox = Sandbox::new(&["tied-a"]);
    sandbox.aludel(&["convert", "models/tied-a", "out", "--dtype", "float16", "-q"]).assert().code(0);
    let names = |path: &str| {
        let mut names: Vec<String> =
            read_header(&sandbox.path(path)).into_iter().map(|(name, ..)| name).collect();
        names.sort();
        names
    };
    assert_eq!(names("out/model.safetensors"), names("models/tied-a/model.safetensors"));
    assert!(!names("out/model.safetensors").contains(&"lm_head.weight".to_owned()));
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(sandbox.path("out/config.json")).unwrap()).unwrap();
    assert_eq!((&config["tie_word_embeddings"], &config["torch_dtype"]), (&true.into(), &"float16".into()));
}

#[test]
fn a_folder_that_exists_gives_way_with_force_only() {
    let sandbox = Sandbox::new(&["a", "b"]);
    sandbox.aludel(&["convert", "models/a", "out", "-q"]).assert().code(0);
    sandbox.aludel(&["convert", "models/b", "out", "-q"]).assert().code(3);
    sandbox.aludel(&["diff", "models/a", "out"]).assert().code(0);
    sandbox.aludel(&["convert", "models/b", "out", "-q", "--force"]).assert().code(0);
    sandbox.aludel(&["diff", "models/b", "out"]).assert().code(0);
}
