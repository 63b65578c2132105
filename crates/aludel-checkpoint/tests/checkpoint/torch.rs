//! Reads files of torch and FP8 checkpoints, and holds every element against what torch reads from them.
//!
//! `tests/reference/make_torch.py` makes the fixtures.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use aludel_checkpoint::{Checkpoint, Dtype, Error, WeightMap, element_bytes};
use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::SafeTensors;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A type, sides, and the elements' bits as f32, or their bytes where they are no floats.
type Tensor = (Vec<usize>, Vec<u32>);

fn numbers(dtype: Dtype, bytes: &[u8]) -> Vec<u32> {
    let words = bytes.chunks_exact(element_bytes(dtype) as usize);
    match dtype {
        Dtype::F16 => {
            words.map(|word| f16::from_le_bytes(word.try_into().unwrap()).to_f32().to_bits()).collect()
        }
        Dtype::BF16 => {
            words.map(|word| bf16::from_le_bytes(word.try_into().unwrap()).to_f32().to_bits()).collect()
        }
        Dtype::F32 => words.map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect(),
        _ => bytes.iter().map(|&byte| byte.into()).collect(),
    }
}

fn expected(name: &str) -> BTreeMap<String, Tensor> {
    let bytes = fs::read(fixture(name)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        (name, (view.shape().to_vec(), numbers(view.dtype(), view.data())))
    };
    tensors.tensors().into_iter().map(tensor).collect()
}

/// Every tensor of a checkpoint, the encoded ones made in ranges of so many elements.
fn found(checkpoint: &Checkpoint, piece: u64) -> BTreeMap<String, Tensor> {
    let map = WeightMap::open(checkpoint).unwrap();
    let mut tensors = BTreeMap::new();
    for (name, entry) in checkpoint.tensors() {
        let values = numbers(entry.dtype, map.bytes(entry, 0..entry.bytes));
        tensors.insert(name.clone(), (entry.shape.clone(), values));
    }
    for (name, encoded) in checkpoint.encoded() {
        let mut values = vec![0.0; encoded.elements() as usize];
        for (piece_of, start) in values.chunks_mut(piece as usize).zip((0..).step_by(piece as usize)) {
            let end = start + piece_of.len() as u64;
            encoded.fill(&map, start..end, piece_of);
            encoded.release(&map, start..end, end == encoded.elements());
        }
        tensors.insert(name.clone(), (encoded.shape.clone(), values.into_iter().map(f32::to_bits).collect()));
    }
    tensors
}

#[test]
fn every_format_of_torch_gives_the_same_tensors() {
    let expected = expected("torch/expected.safetensors");
    for name in
        ["torch/zip.bin", "torch/legacy.bin", "torch/protocol4.pt", "torch/trainer.pt", "torch/sharded"]
    {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        for piece in [1, 7, 1024] {
            assert_eq!(found(&checkpoint, piece), expected, "{name} in pieces of {piece}");
        }
    }
}

#[test]
fn what_lies_in_order_is_mapped_and_views_are_made() {
    let checkpoint = Checkpoint::open(&fixture("torch/zip.bin")).unwrap();
    let views: Vec<&str> = checkpoint.encoded().keys().map(String::as_str).collect();
    let layer = |name| format!("model.layers.0.{name}.weight");
    assert_eq!(views, [layer("transposed"), layer("cut"), layer("permuted")]);
    let entry = |name| checkpoint.tensor(name).unwrap();
    assert_eq!(entry("lm_head.weight"), entry("model.embed_tokens.weight"), "one storage for both");
    assert_eq!(entry("model.layers.0.bfloat.weight").dtype, Dtype::BF16);
}

#[test]
fn a_folder_with_a_file_of_torch_is_a_model_folder() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(fixture("torch/legacy.bin"), folder.path().join("pytorch_model.bin")).unwrap();
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    // What a trainer leaves is no weight.
    for name in ["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"] {
        fs::write(folder.path().join(name), "x").unwrap();
    }
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.files().len(), 1);
    assert!(checkpoint.config().is_some());
    fs::remove_file(folder.path().join("pytorch_model.bin")).unwrap();
    assert!(matches!(Checkpoint::open(folder.path()), Err(Error::NotACheckpoint { .. })));
    for name in ["a.pt", "b.pt"] {
        fs::copy(fixture("torch/zip.bin"), folder.path().join(name)).unwrap();
    }
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("a.pt and b.pt"), "{error}");
}

#[test]
fn safetensors_go_before_files_of_torch() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(fixture("torch/evil.bin"), folder.path().join("pytorch_model.bin")).unwrap();
    fs::copy(fixture("torch/expected.safetensors"), folder.path().join("model.safetensors")).unwrap();
    assert_eq!(Checkpoint::open(folder.path()).unwrap().encoded().len(), 0);
}

#[test]
fn code_in_a_pickle_is_refused_by_name_and_not_run() {
    let error = Checkpoint::open(&fixture("torch/evil.bin")).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    let message = error.to_string();
    assert!(message.contains("asks for `posix.system`") && message.contains("state_dict()"), "{message}");
    assert!(!Path::new("was_run").exists());
}

#[test]
fn what_cannot_be_mapped_is_refused_with_the_way_out() {
    let error = Checkpoint::open(&fixture("torch/compressed.bin")).unwrap_err();
    assert!(
        matches!(&error, Error::Unsupported { .. }) && error.to_string().contains("compressed"),
        "{error}"
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.pt");
    fs::write(&path, "no pickle at all").unwrap();
    let error = Checkpoint::open(&path).unwrap_err().to_string();
    assert!(error.contains("no file of torch.save"), "{error}");
}

#[test]
fn fp8_weights_are_their_values_times_their_scales() {
    for kind in ["block", "channel", "fbgemm", "tensor"] {
        let checkpoint = Checkpoint::open_source(&fixture(&format!("fp8/{kind}"))).unwrap();
        let expected = expected(&format!("fp8/{kind}.safetensors"));
        for piece in [1, 33, 1024] {
            assert_eq!(found(&checkpoint, piece), expected, "{kind} in pieces of {piece}");
        }
        assert!(checkpoint.config().unwrap().value("quantization_config").is_none());
        assert!(checkpoint.note().is_some());
        let left_out =
            checkpoint.left_out().iter().filter(|left_out| left_out.name.ends_with(".input_scale"));
        assert_eq!(left_out.count(), if kind == "tensor" { 2 } else { 0 });
        assert!(checkpoint.encoded().values().all(|encoded| encoded.dtype == Dtype::BF16));
    }
}

#[test]
fn fp8_without_its_scales_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let from = fixture("fp8/block");
    let bytes = fs::read(from.join("model.safetensors")).unwrap();
    // Names of the same length: the weights of one are left without scales, and scales without weights.
    let text = bytes.windows(16).position(|window| window == b"weight_scale_inv").unwrap();
    let mut bytes = bytes;
    bytes[text..text + 16].copy_from_slice(b"weight_other_inv");
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    fs::copy(from.join("config.json"), folder.path().join("config.json")).unwrap();
    let error = Checkpoint::open_source(folder.path()).unwrap_err();
    assert!(
        matches!(&error, Error::Damaged { .. }) && error.to_string().contains("has no scales"),
        "{error}"
    );
    assert!(Checkpoint::open(folder.path()).is_ok(), "as it is stored, it is a checkpoint");
}

#[test]
fn blocks_of_gguf_are_decoded_in_any_ranges() {
    let checkpoint = Checkpoint::open_source(&fixture("gguf/blocks.gguf")).unwrap();
    let expected = expected("gguf/blocks.safetensors");
    for piece in [1, 100, 1024] {
        let found = found(&checkpoint, piece);
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (name, tensor) in &expected {
            assert_eq!(&found[name], tensor, "{name} in pieces of {piece}");
        }
    }
    assert!(checkpoint.config().unwrap().hidden_layers() == Some(3));
    let with_tokenizer = Checkpoint::open_source(&fixture("gguf/byte_level.gguf")).unwrap();
    assert!(with_tokenizer.made_files().iter().any(|file| file.name == Path::new("tokenizer.json")));
}

/// Reads everything that a hostile file claims to have.
fn read_all(path: &Path) {
    if let Ok(checkpoint) = Checkpoint::open(path) {
        found(&checkpoint, 64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_file_with_other_bytes_is_read_or_refused(
        which in 0usize..3,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let name = ["torch/zip.bin", "torch/legacy.bin", "torch/trainer.pt"][which];
        let mut bytes = fs::read(fixture(name)).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.bin");
        fs::write(&path, bytes).unwrap();
        read_all(&path);
    }

    /// Most operations of a pickle, in no order: none may panic, hang or fill the memory.
    #[test]
    fn a_pickle_of_any_operations_is_read_or_refused(operations in prop::collection::vec(prop::sample::select(OPERATIONS), 0..200)) {
        let mut bytes = fs::read(fixture("torch/legacy.bin")).unwrap();
        let state = bytes.windows(2).enumerate().filter(|(_, pair)| *pair == b"\x80\x02").nth(3).unwrap().0;
        bytes.truncate(state);
        bytes.extend(operations.concat());
        bytes.push(b'.');
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.bin");
        fs::write(&path, bytes).unwrap();
        read_all(&path);
    }
}

const OPERATIONS: &[&[u8]] = &[
    b"\x80\x02",
    b"N",
    b"\x88",
    b")",
    b"K\x03",
    b"J\xff\xff\xff\xff",
    b"\x8a\x09\x01\x01\x01\x01\x01\x01\x01\x01\x01",
    b"X\x01\x00\x00\x00a",
    b"X\x07\x00\x00\x00storage",
    b"}",
    b"]",
    b"(",
    b"t",
    b"\x85",
    b"\x86",
    b"\x87",
    b"0",
    b"1",
    b"2",
    b"a",
    b"e",
    b"s",
    b"u",
    b"q\x00",
    b"q\x01",
    b"h\x00",
    b"h\x01",
    b"\x94",
    b"ccollections\nOrderedDict\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._tensor\n_rebuild_from_type_v2\n",
    b"ctorch\nTensor\n",
    b"R",
    b"\x81",
    b"b",
    b"Q",
    b"\x90",
    b"\x8f",
    b"X\xff\xff\xff\xff",
];
