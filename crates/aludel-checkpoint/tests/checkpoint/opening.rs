//! Opens model folders and single files of every accepted form and checks what is found, value by value.

use std::fs;
use std::path::{Path, PathBuf};

use crate::files::{bytes_entry, file_bytes, write_file, write_index, write_vectors};
use aludel_checkpoint::{Checkpoint, Dtype, Error, TensorEntry, WeightFile, WeightMap};

fn names(checkpoint: &Checkpoint) -> Vec<&str> {
    checkpoint.tensors().keys().map(String::as_str).collect()
}

fn file_names(checkpoint: &Checkpoint) -> Vec<String> {
    checkpoint
        .files()
        .iter()
        .map(|file| file.path.file_name().unwrap().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn a_single_file_says_what_it_holds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    let json = r#"{"__metadata__":{"format":"pt"},
        "norm":{"dtype":"F32","shape":[2],"data_offsets":[6,14]},
        "embed":{"dtype":"BF16","shape":[3,1],"data_offsets":[0,6]},
        "scale":{"dtype":"F16","shape":[],"data_offsets":[14,16]}}   "#;
    write_file(&path, json, &[0; 16]);

    let checkpoint = Checkpoint::open(&path).unwrap();
    let start = 8 + json.len() as u64;
    let entry = |dtype, shape: &[usize], offset, bytes| TensorEntry {
        dtype,
        shape: shape.to_vec(),
        file: 0,
        offset: start + offset,
        bytes,
    };
    assert_eq!(names(&checkpoint), ["embed", "norm", "scale"], "in offset order, not in header order");
    assert_eq!(checkpoint.tensor("embed"), Some(&entry(Dtype::BF16, &[3, 1], 0, 6)));
    assert_eq!(checkpoint.tensor("norm"), Some(&entry(Dtype::F32, &[2], 6, 8)));
    assert_eq!(checkpoint.tensor("scale"), Some(&entry(Dtype::F16, &[], 14, 2)));
    assert_eq!(checkpoint.tensor("absent"), None);
    let elements: Vec<u64> = checkpoint.tensors().values().map(TensorEntry::elements).collect();
    assert_eq!(elements, [3, 2, 1]);
    assert_eq!(checkpoint.path(), path);
    assert_eq!(checkpoint.files(), [WeightFile { path, bytes: start + 16 }]);
    assert!(checkpoint.config().is_none() && checkpoint.side_files().is_empty());
}

#[test]
fn tensors_without_bytes_have_a_fixed_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let names_of_empties: Vec<String> = (0..20).map(|number| format!("empty{number:02}")).collect();
    let mut vectors: Vec<(&str, &[u8])> =
        names_of_empties.iter().rev().map(|name| (name.as_str(), &b""[..])).collect();
    vectors.push(("full", b"abc"));
    write_vectors(&path, &vectors);

    let checkpoint = Checkpoint::open(&path).unwrap();
    let mut expected: Vec<&str> = names_of_empties.iter().map(String::as_str).collect();
    expected.push("full");
    assert_eq!(names(&checkpoint), expected);
}

#[test]
fn a_sharded_folder_is_read_in_file_then_offset_order() {
    let folder = tempfile::tempdir().unwrap();
    write_vectors(&folder.path().join("model-00001-of-00002.safetensors"), &[("b", b"12"), ("a", b"345")]);
    write_vectors(&folder.path().join("model-00002-of-00002.safetensors"), &[("c", b"6")]);
    // Not in the index, so not a part of the model.
    write_vectors(&folder.path().join("consolidated.safetensors"), &[("a", b"999")]);
    let (first, second) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    write_index(folder.path(), &[("c", second), ("a", first), ("b", first)]);

    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(file_names(&checkpoint), [first, second]);
    assert_eq!(names(&checkpoint), ["b", "a", "c"]);
    assert_eq!(checkpoint.tensor("c").unwrap().file, 1);
    let map = WeightMap::open(&checkpoint).unwrap();
    assert_eq!(map.bytes(checkpoint.tensor("a").unwrap(), 0..3), b"345");
    assert_eq!(map.bytes(checkpoint.tensor("c").unwrap(), 0..1), b"6");
    let mut copied = [0; 2];
    map.copy(checkpoint.tensor("a").unwrap(), 1..3, &mut copied);
    assert_eq!(&copied, b"45");
    map.copy(checkpoint.tensor("c").unwrap(), 0..0, &mut []);
}

#[test]
fn without_an_index_model_safetensors_is_the_model() {
    let folder = tempfile::tempdir().unwrap();
    write_vectors(&folder.path().join("model.safetensors"), &[("a", b"1")]);
    write_vectors(&folder.path().join("adapter.safetensors"), &[("a", b"2")]);
    assert_eq!(file_names(&Checkpoint::open(folder.path()).unwrap()), ["model.safetensors"]);
}

#[test]
fn without_either_every_safetensors_file_is_read_except_consolidated_and_hidden_ones() {
    let folder = tempfile::tempdir().unwrap();
    write_vectors(&folder.path().join("consolidated.00.safetensors"), &[("x", b"1")]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(file_names(&checkpoint), ["consolidated.00.safetensors"], "alone, they are the model");

    write_vectors(&folder.path().join("b.safetensors"), &[("b", b"1")]);
    write_vectors(&folder.path().join("a.safetensors"), &[("a", b"1")]);
    fs::write(folder.path().join("._a.safetensors"), "what some systems leave beside a file").unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(file_names(&checkpoint), ["a.safetensors", "b.safetensors"]);
    assert_eq!(names(&checkpoint), ["a", "b"]);
}

#[test]
fn shards_without_an_index_are_read_when_all_are_there() {
    let folder = tempfile::tempdir().unwrap();
    write_vectors(&folder.path().join("model-00002-of-00002.safetensors"), &[("b", b"1")]);
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(
        matches!(&error, Error::Damaged { detail, .. } if detail.contains("shard 1 of 00002")),
        "{error}"
    );

    write_vectors(&folder.path().join("model-00001-of-00002.safetensors"), &[("a", b"1")]);
    assert_eq!(names(&Checkpoint::open(folder.path()).unwrap()), ["a", "b"]);
}

#[test]
fn shards_may_be_counted_from_zero() {
    let folder = tempfile::tempdir().unwrap();
    write_vectors(&folder.path().join("model-00000-of-00002.safetensors"), &[("a", b"1")]);
    write_vectors(&folder.path().join("model-00001-of-00002.safetensors"), &[("b", b"1")]);
    assert_eq!(names(&Checkpoint::open(folder.path()).unwrap()), ["a", "b"]);
}

#[test]
fn config_and_side_files_come_with_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    write_vectors(&folder.path().join("model.safetensors"), &[("a", b"1")]);
    fs::write(folder.path().join("config.json"), r#"{"num_hidden_layers": 3}"#).unwrap();
    for name in
        ["tokenizer.json", "merges.txt", "LICENSE", "chat_template.jinja", "README.md", "optimizer.pt"]
    {
        fs::write(folder.path().join(name), name).unwrap();
    }
    fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
    fs::write(folder.path().join("additional_chat_templates/tool.jinja"), "t").unwrap();
    fs::create_dir(folder.path().join("code.py")).unwrap();

    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.config().unwrap().hidden_layers(), Some(3));
    let expected = [
        "LICENSE",
        "additional_chat_templates/tool.jinja",
        "chat_template.jinja",
        "merges.txt",
        "tokenizer.json",
    ];
    assert_eq!(checkpoint.side_files(), expected.map(PathBuf::from));
}

/// Opening must not depend on the size of the weights: here they are 64 GiB of hole, more than this machine may hold.
#[test]
#[cfg(target_os = "linux")]
fn opening_and_mapping_read_no_weights() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let bytes = 64u64 << 30;
    let json = format!(r#"{{"w":{{"dtype":"F32","shape":[{},4],"data_offsets":[0,{bytes}]}}}}"#, bytes / 16);
    write_file(&path, &json, b"");
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(8 + json.len() as u64 + bytes).unwrap();

    let checkpoint = Checkpoint::open(&path).unwrap();
    let map = WeightMap::open(&checkpoint).unwrap();
    let tensor = checkpoint.tensor("w").unwrap();
    assert_eq!((tensor.bytes, tensor.elements()), (bytes, bytes / 4));
    assert_eq!(map.bytes(tensor, bytes - 4..bytes), [0; 4]);
    use std::os::unix::fs::MetadataExt;
    let held = file.metadata().unwrap().blocks() * 512;
    assert!(held < 1 << 20, "the file holds {held} bytes on disk, so the tensor is a hole");
}

/// Windows beyond the header belong to the file system, not to this process: nothing is resident until it is touched.
#[test]
#[cfg(target_os = "linux")]
fn released_pages_leave_the_resident_set_and_come_back_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let data: Vec<u8> = (0..8usize << 20).map(|position| (position % 251) as u8).collect();
    write_vectors(&path, &[("small", b"abc"), ("large", &data)]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let map = WeightMap::open(&checkpoint).unwrap();
    let large = checkpoint.tensor("large").unwrap();
    assert_eq!(resident_kilobytes(&path), 0, "mapping touches nothing");

    let end = large.bytes;
    let whole = large.offset..large.offset + end;
    map.request(large.file, &whole);
    assert_eq!(resident_kilobytes(&path), 0, "what is asked for is not mapped");
    map.load(large.file, &whole);
    assert!(resident_kilobytes(&path) >= 8 << 10, "what is loaded is");
    map.release_range(large.file, &whole);
    assert_eq!(resident_kilobytes(&path), 0);
    assert!(map.bytes(large, 0..end) == data, "the window shows the file's bytes");
    assert!(resident_kilobytes(&path) >= 8 << 10);
    // Advice may reach beyond the file.
    map.leave_cache(large.file, &(0..u64::MAX));
    map.request(large.file, &(whole.end..u64::MAX));
    map.release(large, 0..end);
    assert_eq!(resident_kilobytes(&path), 0);
    assert!(map.bytes(large, 4096..8192) == &data[4096..8192], "released bytes fault in again");
    assert_eq!(map.bytes(checkpoint.tensor("small").unwrap(), 1..3), b"bc");
}

/// Regression: released pages came back. A fault maps the cached pages around it too, among them the last ones of the window
/// before, so a model read window by window kept up to a tenth of itself resident and memory grew with its size.
#[test]
#[cfg(target_os = "linux")]
fn a_model_read_window_by_window_leaves_nothing_resident() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_in_pieces(&path, 16 << 20);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let map = WeightMap::open(&checkpoint).unwrap();
    let large = checkpoint.tensor("large").unwrap();
    for step in [100_000, 1 << 20, (1 << 20) + 4097] {
        let starts: Vec<u64> = (0..large.bytes).step_by(step as usize).collect();
        for start in starts.iter().copied().chain(starts.iter().rev().copied()) {
            let window = start..(start + step).min(large.bytes);
            assert!(map.bytes(large, window.clone()).iter().step_by(1000).all(|&byte| byte == 3));
            map.release(large, window);
            let resident = resident_kilobytes(&path);
            assert_eq!(resident, 0, "after the window of {step} bytes at {start}");
        }
    }
}

/// A file of one tensor "large" of threes. The size of the writes decides how the page cache holds a file, and so how much
/// of it one fault maps: a part is written page by page, a part in pieces as large as a copying tool's.
#[cfg(target_os = "linux")]
fn write_in_pieces(path: &Path, bytes: usize) {
    use std::io::Write;
    let mut file = fs::File::create(path).unwrap();
    file.write_all(&file_bytes(&format!("{{{}}}", bytes_entry("large", 0, bytes)), b"")).unwrap();
    for piece in [4 << 10, 256 << 10] {
        for _ in 0..bytes / 2 / piece {
            file.write_all(&vec![3; piece]).unwrap();
        }
    }
}

/// What `/proc/self/smaps` says is resident of the map of this file.
#[cfg(target_os = "linux")]
fn resident_kilobytes(path: &Path) -> u64 {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let of_file = maps.lines().skip_while(|line| !line.ends_with(path.to_str().unwrap()));
    let line = of_file.clone().find(|line| line.starts_with("Rss:")).expect("the file is mapped");
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn empty_windows_are_empty() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_vectors(&path, &[("none", b"")]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let map = WeightMap::open(&checkpoint).unwrap();
    let none = checkpoint.tensor("none").unwrap();
    assert_eq!(none.elements(), 0);
    map.request(none.file, &(none.offset..none.offset));
    map.load(none.file, &(none.offset..none.offset));
    map.release(none, 0..0);
    assert_eq!(map.bytes(none, 0..0), b"");
}

#[test]
#[should_panic(expected = "lie outside of a tensor of 3 bytes")]
fn a_window_cannot_reach_into_the_neighbouring_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_vectors(&path, &[("a", b"123"), ("b", b"456")]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let map = WeightMap::open(&checkpoint).unwrap();
    map.bytes(checkpoint.tensor("a").unwrap(), 0..4);
}

#[test]
fn a_file_that_shrinks_after_opening_is_not_mapped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_vectors(&path, &[("a", b"123")]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(10).unwrap();
    let error = WeightMap::open(&checkpoint).unwrap_err();
    assert!(
        matches!(&error, Error::Damaged { file, detail } if *file == path && detail.contains("10 now")),
        "{error}"
    );
}

#[test]
fn the_crate_that_defines_the_format_reads_the_same() {
    let bytes = file_bytes(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, &[1, 2, 3, 4]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, &bytes).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let map = WeightMap::open(&checkpoint).unwrap();
    let ours = checkpoint.tensor("a").unwrap();
    assert_eq!(map.bytes(ours, 0..ours.bytes), theirs.tensor("a").unwrap().data());
}
