//! Opens folders whose weights do not fit their config, or fit it in unusual ways.

use std::path::Path;

use aludel_checkpoint::{Checkpoint, Dtype, Layout, OutputFolder, OutputTensor, WeightMap};
use aludel_kernels::element::Element;
use aludel_kernels::nn::Cpu;
use aludel_model::{Decoder, Error, Keep, Use, WeightType};

use crate::support::{batch, cases, copy_of, cpu, step, trained};

struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// A recorded folder with its config's text and its tensors changed.
fn changed(
    case: &str,
    config: impl FnOnce(String) -> String,
    change: impl FnOnce(&mut Vec<Tensor>),
) -> tempfile::TempDir {
    let (original, _guard) = copy_of(case);
    let checkpoint = Checkpoint::open(&original).unwrap();
    let map = WeightMap::open(&checkpoint).unwrap();
    let mut tensors: Vec<Tensor> = checkpoint
        .tensors()
        .iter()
        .map(|(name, entry)| Tensor {
            name: name.clone(),
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            bytes: map.bytes(entry, 0..entry.bytes).to_vec(),
        })
        .collect();
    change(&mut tensors);
    let target = tempfile::tempdir().unwrap();
    let output = OutputFolder::create(target.path(), true).unwrap();
    let text = std::fs::read_to_string(original.join("config.json")).unwrap();
    output.write("config.json", config(text).as_bytes()).unwrap();
    // Small shards, so that there are several.
    let outputs = tensors.iter().map(|tensor| {
        let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
        OutputTensor { name, dtype: tensor.dtype, shape }
    });
    let layout = Layout::plan(outputs.collect(), 5000).unwrap();
    output.write("model.safetensors.index.json", layout.index_json().unwrap().as_bytes()).unwrap();
    let writer = output.shards(&layout).unwrap();
    for (index, planned) in layout.tensors().iter().enumerate() {
        let tensor = tensors.iter().find(|tensor| tensor.name == planned.name).unwrap();
        writer.write_at(&layout.placement(index), 0, &tensor.bytes).unwrap();
    }
    writer.finish().unwrap();
    output.finish().unwrap();
    target
}

fn open(path: &Path) -> Result<Decoder<Cpu>, Error> {
    Decoder::open(path, cpu(1), Use::Trainable(WeightType::Float32))
}

fn problems(path: &Path) -> Vec<String> {
    match open(path).map(|_| ()) {
        Err(Error::Weights { problems, .. }) => problems.lines().to_vec(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn shards_are_one_model() {
    for case in ["phi3", "mixtral"] {
        let sharded = changed(case, |text| text, |_| {});
        assert!(sharded.path().join("model-00002-of-00006.safetensors").exists() || case == "mixtral");
        let [one, many] = [trained(case, 1), open(sharded.path()).unwrap()]
            .map(|model| step(&model, &batch(), Keep::Everything));
        assert!(one == many, "{case}");
    }
}

#[test]
fn every_tensor_that_does_not_fit_is_named() {
    let folder = changed(
        "llama",
        |text| text.replace("\"vocab_size\": 48", "\"vocab_size\": 49"),
        |tensors| {
            tensors.retain(|tensor| !tensor.name.ends_with("1.self_attn.q_proj.weight"));
            let norm = tensors.iter_mut().find(|tensor| tensor.name == "model.norm.weight").unwrap();
            (norm.dtype, norm.shape) = (Dtype::I32, vec![16]);
            let bytes = vec![0; 4];
            tensors.push(Tensor {
                name: "model.vision.bias".into(),
                dtype: Dtype::F32,
                shape: vec![1],
                bytes,
            });
        },
    );
    assert_eq!(
        problems(folder.path()),
        [
            "model.embed_tokens.weight is [48, 16] and should be [49, 16]",
            "model.layers.1.self_attn.q_proj.weight is missing",
            "model.norm.weight is of type I32; F32, F16 and BF16 are supported",
            "lm_head.weight is [48, 16] and should be [49, 16]",
            "\"model.vision.bias\" belongs to nothing in the model",
        ]
    );
}

#[test]
fn what_old_files_have_besides_is_left_out() {
    let folder = changed(
        "gemma",
        |text| text,
        |tensors| {
            let table = tensors.iter().find(|tensor| tensor.name == "model.embed_tokens.weight").unwrap();
            let (dtype, shape, bytes) = (table.dtype, table.shape.clone(), table.bytes.clone());
            tensors.push(Tensor { name: "lm_head.weight".into(), dtype, shape, bytes });
            let name = "model.layers.0.self_attn.rotary_emb.inv_freq".into();
            tensors.push(Tensor { name, dtype, shape: vec![4], bytes: vec![0; 16] });
        },
    );
    let [one, old] = [trained("gemma", 1), open(folder.path()).unwrap()]
        .map(|model| step(&model, &batch(), Keep::Everything));
    assert!(one == old);
}

#[test]
fn a_folder_without_config_is_refused() {
    let (copy, _guard) = copy_of("llama");
    std::fs::remove_file(copy.join("config.json")).unwrap();
    let message = open(&copy).map(|_| ()).unwrap_err().to_string();
    assert!(message.ends_with("has no config.json"), "{message}");
    assert!(matches!(open(&copy.join("nothing")), Err(Error::Checkpoint(_))));
}

#[test]
fn frozen_and_trained_models_compute_the_same() {
    for case in cases() {
        let frozen = Decoder::open(&copy_of(&case).0, cpu(1), Use::Frozen).unwrap();
        let [frozen, trained] =
            [frozen, trained(&case, 1)].map(|model| step(&model, &batch(), Keep::Everything).logits);
        assert!(frozen == trained, "{case}");
    }
}

#[test]
fn sixteen_bit_weights_give_what_their_values_give() {
    // What bf16 rounds is rounded before; the products and sums are of f32 in both.
    let decoder = trained("llama-biases", 1);
    let target = tempfile::tempdir().unwrap();
    decoder.save(target.path(), true, Element::BF16).unwrap();
    let narrow = Decoder::open(target.path(), cpu(1), Use::Trainable(WeightType::BFloat16)).unwrap();
    let wide = Decoder::open(target.path(), cpu(1), Use::Trainable(WeightType::Float32)).unwrap();
    let [narrow, wide] = [narrow, wide].map(|model| step(&model, &batch(), Keep::Everything));
    crate::support::differ(&narrow.logits, &wide.logits, 1e-5).unwrap();
    for ((name, narrow), (_, wide)) in narrow.gradients.iter().zip(&wide.gradients) {
        crate::support::differ(narrow, wide, 1e-4).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}
