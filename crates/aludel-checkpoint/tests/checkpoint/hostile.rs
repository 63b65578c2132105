//! Opens files that lie and folders that are broken: each is refused with the kind of error and the detail that a user
//! needs, and none panics, allocates what it claims or leaves its folder.

use std::fs;
use std::path::Path;

use crate::files::{bytes_entry, file_bytes, write_index, write_vectors};
use aludel_checkpoint::{Checkpoint, Error};

/// The detail with which a single file of this content is called damaged.
fn damage(content: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, content).unwrap();
    match Checkpoint::open(&path).unwrap_err() {
        Error::Damaged { file, detail } if file == path => detail,
        other => panic!("{other:?}"),
    }
}

/// The detail with which opening this folder calls `name` in it damaged.
fn damage_of(folder: &Path, name: &str) -> String {
    match Checkpoint::open(folder).unwrap_err() {
        Error::Damaged { file, detail } if file == folder.join(name) => detail,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn assert_says(detail: &str, part: &str) {
    assert!(detail.contains(part), "{detail:?} does not say {part:?}");
}

#[test]
fn lengths_are_held_against_the_file() {
    assert_says(&damage(b""), "0 bytes, too few for a header length");
    assert_says(&damage(b"1234567"), "7 bytes, too few");
    assert_says(&damage(&0u64.to_le_bytes()), "does not begin with '{'");
    let claims_more = [&100u64.to_le_bytes()[..], b"{}"].concat();
    assert_says(&damage(&claims_more), "claims 100 bytes where 2 follow");
    let claims_all = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
    assert_says(&damage(&claims_all), &format!("claims {} bytes where 2 follow", u64::MAX));
}

/// A file may well be larger than the cap on headers; its header may not, and is not allocated.
#[test]
fn a_header_over_the_cap_is_refused_before_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, 200_000_000u64.to_le_bytes()).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(300_000_000).unwrap();
    let detail = damage_of(folder.path(), "model.safetensors");
    assert_says(&detail, "claims 200000000 bytes where the format allows 100000000");
}

#[test]
fn a_truncated_file_is_named_with_both_lengths() {
    let whole = file_bytes(&format!("{{{}}}", bytes_entry("a", 0, 1000)), &[7; 1000]);
    let detail = damage(&whole[..whole.len() - 1]);
    assert_says(
        &detail,
        &format!("it has {} bytes where its header describes {}", whole.len() - 1, whole.len()),
    );
    assert_says(&detail, "cut off");
}

#[test]
fn bytes_after_the_last_tensor_are_refused() {
    let detail = damage(&file_bytes(&format!("{{{}}}", bytes_entry("a", 0, 4)), &[0; 5]));
    assert_says(&detail, "bytes follow the last tensor");
}

#[test]
fn malformed_headers_are_damaged() {
    let cases = [
        ("no JSON", "{nonsense"),
        ("trailing text", "{} x"),
        ("not UTF-8 would be next, here a lone surrogate", r#"{"\ud800":{}}"#),
        ("unknown type", r#"{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}"#),
        ("no offsets", r#"{"a":{"dtype":"F32","shape":[1]}}"#),
        ("negative side", r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#),
        ("fractional side", r#"{"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}}"#),
        ("side beyond u64", r#"{"a":{"dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,4]}}"#),
        ("metadata of numbers", r#"{"__metadata__":{"format":3}}"#),
        ("deep nesting", &format!("{{\"a\":{}", "[".repeat(100_000))),
    ];
    for (what, json) in cases {
        assert!(damage(&file_bytes(json, &[0; 4])).contains("header is invalid"), "{what}");
    }
    let not_utf8 = [&5u64.to_le_bytes()[..], b"{\"\xff\"}"].concat();
    assert_says(&damage(&not_utf8), "header is invalid");
}

#[test]
fn offsets_and_shapes_that_contradict_are_damaged() {
    let entry = |name: &str, shape: &str, start: u64, end: u64| {
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    let cases = [
        ("overlap", vec![entry("a", "[2]", 0, 8), entry("b", "[1]", 4, 8)], "invalid offset"),
        ("gap", vec![entry("a", "[1]", 0, 4), entry("b", "[1]", 8, 12)], "invalid offset"),
        ("late start", vec![entry("a", "[1]", 4, 8)], "invalid offset"),
        ("end before start", vec![entry("a", "[1]", 0, 4), entry("b", "[1]", 4, 0)], "invalid offset"),
        ("shape larger than range", vec![entry("a", "[3]", 0, 8)], "invalid shape"),
        ("shape smaller than range", vec![entry("a", "[1]", 0, 8)], "invalid shape"),
        ("elements overflow", vec![entry("a", "[4294967296,4294967296,1]", 0, 8)], "overflow"),
        ("bytes overflow", vec![entry("a", "[4611686018427387904]", 0, 8)], "overflow"),
    ];
    for (what, entries, part) in cases {
        let detail = damage(&file_bytes(&format!("{{{}}}", entries.join(",")), &[0; 8]));
        assert!(detail.contains(part), "{what}: {detail}");
    }
}

/// Each tensor's size fits, and so does their sum; only the header before them takes the end past what a u64 holds.
#[test]
fn a_file_end_that_overflows_is_damaged() {
    let most = (u64::MAX / 8) as usize;
    let entries: Vec<String> =
        (0..8).map(|part| bytes_entry(&part.to_string(), part * most, (part + 1) * most)).collect();
    let detail = damage(&file_bytes(&format!("{{{}}}", entries.join(",")), &[0; 8]));
    assert_says(&detail, &format!("describes {}", u64::MAX));
}

#[test]
fn an_element_that_ends_within_a_byte_is_damaged() {
    let json = r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#;
    assert_says(&damage(&file_bytes(json, &[0; 2])), "byte boundary");
}

#[test]
fn an_index_that_names_a_missing_shard_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    write_vectors(&folder.path().join("a.safetensors"), &[("a", b"1")]);
    write_index(folder.path(), &[("a", "a.safetensors"), ("b", "b.safetensors")]);
    let detail = damage_of(folder.path(), "model.safetensors.index.json");
    assert_says(&detail, "\"b.safetensors\", which is missing");
}

#[test]
fn an_index_that_leaves_its_folder_is_damaged_even_where_the_file_exists() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("model");
    fs::create_dir(&folder).unwrap();
    let outside = parent.path().join("outside.safetensors");
    write_vectors(&outside, &[("a", b"1")]);
    fs::create_dir(folder.join("sub")).unwrap();
    write_vectors(&folder.join("sub/in.safetensors"), &[("a", b"1")]);
    for name in ["../outside.safetensors", outside.to_str().unwrap(), "sub/in.safetensors", "..", ""] {
        write_index(&folder, &[("a", name)]);
        let detail = damage_of(&folder, "model.safetensors.index.json");
        assert_says(&detail, &format!("{name:?}, which cannot be a file of this folder"));
    }
}

#[test]
fn an_index_that_lies_about_its_files_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    write_vectors(&folder.path().join("one.safetensors"), &[("a", b"1"), ("b", b"2")]);
    write_vectors(&folder.path().join("two.safetensors"), &[("c", b"3")]);
    let (one, two) = ("one.safetensors", "two.safetensors");
    let cases = [
        (
            "a tensor nowhere",
            vec![("a", one), ("b", one), ("ghost", one), ("c", two)],
            "places tensor \"ghost\" in \"one",
        ),
        (
            "a tensor elsewhere",
            vec![("a", one), ("b", two), ("c", two)],
            "\"one.safetensors\" holds tensor \"b\"",
        ),
        (
            "a tensor placed late",
            vec![("a", one), ("b", one), ("c", two), ("d", two)],
            "places tensor \"d\" in \"two",
        ),
        (
            "a tensor left out",
            vec![("a", one), ("c", two)],
            "holds tensor \"b\", which weight_map does not place",
        ),
    ];
    for (what, pairs, part) in cases {
        write_index(folder.path(), &pairs);
        let detail = damage_of(folder.path(), "model.safetensors.index.json");
        assert!(detail.contains(part), "{what}: {detail}");
    }
}

#[test]
fn an_index_that_is_none_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let index = folder.path().join("model.safetensors.index.json");
    for (text, part) in [
        ("", "no index"),
        ("[]", "no index"),
        ("{}", "weight_map"),
        (r#"{"weight_map": {"a": 3}}"#, "no index"),
        (r#"{"weight_map": {}}"#, "weight_map is empty"),
    ] {
        fs::write(&index, text).unwrap();
        assert_says(&damage_of(folder.path(), "model.safetensors.index.json"), part);
    }
}

#[test]
fn one_name_in_two_files_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    write_vectors(&folder.path().join("one.safetensors"), &[("a", b"1")]);
    write_vectors(&folder.path().join("two.safetensors"), &[("a", b"2")]);
    assert_says(&damage_of(folder.path(), "two.safetensors"), "tensor \"a\"");
}

#[test]
fn a_config_that_is_no_object_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    write_vectors(&folder.path().join("model.safetensors"), &[("a", b"1")]);
    fs::write(folder.path().join("config.json"), "[1]").unwrap();
    assert_says(&damage_of(folder.path(), "config.json"), "no JSON object");
}

#[test]
fn other_formats_are_unsupported_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model-Q4_K_M.gguf");
    fs::write(&path, "x").unwrap();
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    for opened in [folder.path(), &path] {
        let error = Checkpoint::open(opened).unwrap_err();
        assert!(matches!(&error, Error::Unsupported { path, .. } if path == opened), "{error:?}");
        assert_says(&error.to_string(), "aludel convert");
    }
}

#[test]
fn what_holds_no_weights_is_not_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("training_args.bin"), "x").unwrap();
    fs::write(folder.path().join("notes.txt"), "x").unwrap();
    fs::write(folder.path().join("model.safetensors.index.json.bak"), "x").unwrap();
    for path in [folder.path(), &folder.path().join("notes.txt"), &folder.path().join("training_args.bin")] {
        let error = Checkpoint::open(path).unwrap_err();
        assert!(matches!(&error, Error::NotACheckpoint { path: at, .. } if at == path), "{error:?}");
    }
    fs::write(folder.path().join("model.safetensors.index.json"), "{}").unwrap();
    let error = Checkpoint::open(&folder.path().join("model.safetensors.index.json")).unwrap_err();
    assert_says(&error.to_string(), "give the folder");
}

#[test]
fn a_path_that_does_not_exist_is_not_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("absent");
    let error = Checkpoint::open(&path).unwrap_err();
    assert!(matches!(&error, Error::NotFound { path: at, .. } if *at == path), "{error:?}");
}

/// A download that stopped leaves links whose content never came. None of them may pass for an absent file: the model
/// would silently be another one.
#[test]
#[cfg(unix)]
fn links_to_nothing_are_errors_and_not_absences() {
    use std::os::unix::fs::symlink;
    for name in ["model.safetensors.index.json", "config.json", "tokenizer.json", "b.safetensors"] {
        let folder = tempfile::tempdir().unwrap();
        write_vectors(&folder.path().join("a.safetensors"), &[("a", b"1")]);
        symlink("nowhere", folder.path().join(name)).unwrap();
        let error = Checkpoint::open(folder.path()).unwrap_err();
        assert!(matches!(&error, Error::Io { path, .. } if path.ends_with(name)), "{name}: {error:?}");
    }
}

/// Hubs keep the content elsewhere and link to it.
#[test]
#[cfg(unix)]
fn links_to_weights_are_followed() {
    let folder = tempfile::tempdir().unwrap();
    let snapshot = folder.path().join("snapshot");
    fs::create_dir(&snapshot).unwrap();
    write_vectors(&folder.path().join("blob"), &[("a", b"1")]);
    std::os::unix::fs::symlink("../blob", snapshot.join("model.safetensors")).unwrap();
    assert!(Checkpoint::open(&snapshot).unwrap().tensor("a").is_some());
}

/// Opening a pipe would wait forever for its writer.
#[test]
#[cfg(unix)]
fn a_pipe_in_place_of_weights_is_unsupported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err();
    drop(socket);
    assert!(matches!(&error, Error::Unsupported { path: at, .. } if *at == path), "{error:?}");
}
