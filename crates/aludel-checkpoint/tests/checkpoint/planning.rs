//! Plans output layouts and checks shards, headers and index against values worked out by hand.

use aludel_checkpoint::{Dtype, Error, Layout, OutputTensor, Placement};
use safetensors::SafeTensors;

fn tensor(name: &str, dtype: Dtype, shape: &[usize]) -> OutputTensor {
    OutputTensor { name: name.into(), dtype, shape: shape.to_vec() }
}

/// U8 vectors of these lengths, named by position.
fn vectors(lengths: &[usize]) -> Vec<OutputTensor> {
    lengths
        .iter()
        .enumerate()
        .map(|(number, &length)| tensor(&number.to_string(), Dtype::U8, &[length]))
        .collect()
}

/// The lengths of the tensors in each shard.
fn lengths_by_shard(layout: &Layout) -> Vec<Vec<usize>> {
    let mut shards = vec![Vec::new(); layout.shards().len()];
    for (position, tensor) in layout.tensors().iter().enumerate() {
        shards[layout.placement(position).shard].push(tensor.shape[0]);
    }
    shards
}

#[test]
fn one_shard_needs_no_number_and_no_index() {
    let layout = Layout::plan(vectors(&[3, 4]), 7).unwrap();
    let names: Vec<&str> = layout.shards().iter().map(|shard| shard.file_name.as_str()).collect();
    assert_eq!(names, ["model.safetensors"]);
    assert_eq!(layout.index_json(), None);
}

#[test]
fn shards_are_filled_in_order_and_a_tensor_that_is_too_large_stands_alone() {
    let split = |lengths: &[usize], shard_bytes| {
        lengths_by_shard(&Layout::plan(vectors(lengths), shard_bytes).unwrap())
    };
    assert_eq!(split(&[3, 4, 1], 7), [vec![3, 4], vec![1]]);
    assert_eq!(split(&[3, 50, 4], 7), [vec![3], vec![50], vec![4]]);
    assert_eq!(split(&[7, 7], 7), [[7], [7]]);
    assert_eq!(split(&[1, 1], 0), [[1], [1]]);
    assert_eq!(split(&[0, 0, 5, 0], 0), [vec![0, 0, 5, 0]]);
    assert_eq!(split(&[], 7), [Vec::<usize>::new()]);
}

#[test]
fn several_shards_are_numbered_and_indexed() {
    let layout = Layout::plan(vec![tensor("z", Dtype::F32, &[2]), tensor("a", Dtype::F32, &[1])], 8).unwrap();
    let names: Vec<&str> = layout.shards().iter().map(|shard| shard.file_name.as_str()).collect();
    assert_eq!(names, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]);
    let expected = r#"{
  "metadata": {
    "total_size": 12
  },
  "weight_map": {
    "a": "model-00002-of-00002.safetensors",
    "z": "model-00001-of-00002.safetensors"
  }
}
"#;
    assert_eq!(layout.index_json().unwrap(), expected);
}

#[test]
fn wide_elements_come_first_within_a_shard_so_that_all_are_aligned() {
    let given = vec![
        tensor("byte", Dtype::U8, &[3]),
        tensor("half", Dtype::BF16, &[5]),
        tensor("long", Dtype::I64, &[1]),
        tensor("half again", Dtype::F16, &[1]),
        tensor("float", Dtype::F32, &[1, 1]),
    ];
    let layout = Layout::plan(given, 1000).unwrap();
    let names: Vec<&str> = layout.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["long", "float", "half", "half again", "byte"]);
    let start = layout.shards()[0].header.len() as u64;
    let places: Vec<Placement> = (0..5).map(|position| layout.placement(position)).collect();
    let expected = [(0, 8), (8, 4), (12, 10), (22, 2), (24, 3)];
    assert_eq!(places, expected.map(|(offset, bytes)| Placement { shard: 0, offset: start + offset, bytes }));
    assert_eq!(layout.total_bytes(), start + 27);
}

#[test]
fn the_header_is_what_the_format_says() {
    let layout = Layout::plan(vec![tensor("w", Dtype::BF16, &[1, 2])], 1000).unwrap();
    let header = &layout.shards()[0].header;
    assert_eq!(header.len() % 64, 0, "the data begins at a multiple of 64 bytes");
    assert_eq!(header[..8], (header.len() as u64 - 8).to_le_bytes());
    let json = std::str::from_utf8(&header[8..]).unwrap();
    let expected =
        r#"{"__metadata__":{"format":"pt"},"w":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]}}"#;
    assert_eq!(json.trim_end_matches(' '), expected);

    let file = [header.as_slice(), &[1, 2, 3, 4]].concat();
    let read = SafeTensors::deserialize(&file).unwrap();
    assert_eq!(read.tensor("w").unwrap().data(), [1, 2, 3, 4]);
}

#[test]
fn a_plan_without_tensors_is_a_file_without_tensors() {
    let layout = Layout::plan(Vec::new(), 5).unwrap();
    assert_eq!(layout.total_bytes(), layout.shards()[0].header.len() as u64);
    assert!(SafeTensors::deserialize(&layout.shards()[0].header).unwrap().is_empty());
}

#[test]
fn what_no_file_can_hold_is_unplannable() {
    let cases = [
        (vec![tensor("a", Dtype::F32, &[1]), tensor("a", Dtype::U8, &[2])], "a", "two tensors"),
        (vec![tensor("__metadata__", Dtype::F32, &[1])], "__metadata__", "reserves"),
        (vec![tensor("odd", Dtype::F4, &[3])], "odd", "whole number of bytes"),
        (vec![tensor("vast", Dtype::F32, &[usize::MAX])], "vast", "overflows"),
        (vectors(&[usize::MAX / 8; 5]), "4", "output's size overflows"),
    ];
    for (tensors, at, part) in cases {
        match Layout::plan(tensors, 100).unwrap_err() {
            Error::Unplannable { tensor, detail } => {
                assert_eq!(tensor, at);
                assert!(detail.contains(part), "{detail}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_layout_prints_itself_without_the_headers_bytes() {
    let layout = Layout::plan(vec![tensor("w", Dtype::F32, &[2])], 1000).unwrap();
    let bytes = layout.shards()[0].bytes;
    let expected = serde_json::json!({
        "tensors": [{ "name": "w", "dtype": "F32", "shape": [2] }],
        "placements": [{ "shard": 0, "offset": bytes - 8, "bytes": 8 }],
        "shards": [{ "file_name": "model.safetensors", "bytes": bytes }],
    });
    assert_eq!(serde_json::to_value(&layout).unwrap(), expected);
}
