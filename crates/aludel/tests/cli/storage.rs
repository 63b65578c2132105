//! Caches in object storage from the command line: captured there in parts, killed and gone on with, trained from, and what is said when the
//! storage is not there.

use std::fs;
use std::process::{Command, Stdio};

use aludel_cache::{Cache, RecordId};

use crate::bucket::{Bucket, KEY};
use crate::distill::short;
use crate::sandbox::Sandbox;

const SECRET: &str = "secret-never-shown";

fn sandbox() -> Sandbox {
    let sandbox = short("");
    let text = fs::read_to_string(sandbox.path("run.yml")).unwrap();
    let text =
        text.replace("{from_teacher: {layers: [0, 3]}}", "{config: examples/models/scripture, seed: 1}");
    sandbox.write("run.yml", &text);
    let cached =
        text.replace("teacher: examples/models/scripture", "teacher: {cache: \"s3://shelf/my/cache\"}");
    sandbox.write("cached.yml", cached.replace("output: out\n", "output: out-cached\n"));
    sandbox
}

/// The program where the storage is the bucket. Each has a cache of its own: another machine.
fn process(sandbox: &Sandbox, bucket: &Bucket, machine: &str, arguments: &[&str]) -> Command {
    let mut command = sandbox.process(arguments);
    command.env("XDG_CACHE_HOME", sandbox.path(machine));
    command.env("AWS_ACCESS_KEY_ID", KEY).env("AWS_SECRET_ACCESS_KEY", SECRET);
    command.env("AWS_ENDPOINT_URL", &bucket.endpoint);
    command
}

/// Exit code and both streams.
fn run(mut command: Command) -> (Option<i32>, String, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, said) = (text(output.stdout), text(output.stderr));
    assert!(!said.contains(SECRET) && !out.contains(SECRET), "{said}");
    (output.status.code(), out, said)
}

const CAPTURE: [&str; 8] =
    ["cache", "capture", "run.yml", "s3://shelf/my/cache", "--k", "16", "--shard-size", "20KiB"];

#[test]
fn a_cache_in_storage_is_the_one_in_a_folder_and_trains_the_same() {
    let (sandbox, bucket) = (sandbox(), Bucket::start());
    let parts = |part: &str| process(&sandbox, &bucket, "first", &[&CAPTURE[..], &["--part", part]].concat());
    let (code, _, said) = run(parts("2/2"));
    assert!(code == Some(0) && said.contains("into s3://shelf/my/cache in"), "{said}");
    let info = || process(&sandbox, &bucket, "second", &["cache", "info", "s3://shelf/my/cache"]);
    let (code, _, said) = run(info());
    assert!(code == Some(3) && said.contains("part 1 of 2 did not end"), "{said}");
    assert_eq!(run(parts("1/2")).0, Some(0));
    let (code, out, said) = run(info());
    assert!(code == Some(0) && out.contains("the 16 likeliest tokens"), "{out}{said}");
    // What is there is what a capture into a folder leaves.
    for part in ["1/2", "2/2"] {
        let arguments =
            ["cache", "capture", "run.yml", "cache", "--k", "16", "--shard-size", "20KiB", "--part", part];
        sandbox.aludel(&arguments).assert().code(0);
    }
    let folder = sandbox.contents("cache");
    bucket.change(|objects| {
        let there: Vec<(String, Vec<u8>)> = objects
            .iter()
            .map(|(key, bytes)| (key.strip_prefix("my/cache/").unwrap().to_owned(), bytes.clone()))
            .collect();
        assert!(there.len() > 10 && there == folder);
    });
    let fetched = bucket.requests("GET /shelf/my");
    let verify = process(&sandbox, &bucket, "second", &["cache", "verify", "s3://shelf/my/cache"]);
    let (code, out, said) = run(verify);
    assert!(code == Some(0) && out.contains("every byte of"), "{said}");
    assert_eq!(
        bucket.requests("GET /shelf/my"),
        fetched + 1,
        "files are fetched once; the header is looked at"
    );
    assert_eq!(run(process(&sandbox, &bucket, "second", &["distill", "cached.yml"])).0, Some(0));
    let losses =
        |output: &str| fs::read_to_string(sandbox.path(&format!("{output}.run/metrics.jsonl"))).unwrap();
    let steps = |text: String| -> Vec<f64> {
        let entries = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        entries
            .filter(|entry| entry["phase"] == "train")
            .map(|entry| entry["loss"].as_f64().unwrap())
            .collect()
    };
    let there = steps(losses("out-cached"));
    let text = fs::read_to_string(sandbox.path("cached.yml")).unwrap();
    sandbox.write(
        "cached.yml",
        text.replace("\"s3://shelf/my/cache\"", "cache").replace("out-cached", "out-folder"),
    );
    sandbox.aludel(&["distill", "cached.yml"]).assert().code(0);
    assert_eq!(there, steps(losses("out-folder")));
}

#[test]
fn a_killed_capture_goes_on_here_and_on_another_machine() {
    let (sandbox, bucket) = (sandbox(), Bucket::start());
    sandbox.aludel(&["cache", "capture", "run.yml", "whole", "--k", "16"]).assert().code(0);
    for (time, machine) in ["first", "first", "second", "first"].into_iter().enumerate() {
        let mut child = process(&sandbox, &bucket, machine, &CAPTURE).stderr(Stdio::null()).spawn().unwrap();
        while bucket.names().len() < 3 + 4 * time && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let before = bucket.requests("PUT");
    let (code, _, said) = run(process(&sandbox, &bucket, "third", &CAPTURE));
    assert!(code == Some(0) && said.contains("tokens of them earlier"), "{said}");
    assert!(bucket.requests("PUT") > before);
    let folder = sandbox.path("all");
    fs::create_dir(&folder).unwrap();
    bucket.change(|objects| {
        for (key, bytes) in objects {
            fs::write(folder.join(key.strip_prefix("my/cache/").unwrap()), bytes).unwrap();
        }
    });
    let (cache, whole) = (Cache::open(&folder).unwrap(), Cache::open(&sandbox.path("whole")).unwrap());
    cache.verify(&mut |_| {}).unwrap();
    assert!(cache.ids().eq(whole.ids()), "a row was lost or doubled");
    let rows = |cache: &Cache, id: RecordId| cache.record(id).unwrap().targets();
    assert!(cache.ids().all(|id| rows(&cache, id) == rows(&whole, id)));
}

#[test]
fn a_file_that_came_damaged_is_fetched_again_or_refused() {
    let (sandbox, bucket) = (sandbox(), Bucket::start());
    assert_eq!(run(process(&sandbox, &bucket, "first", &CAPTURE)).0, Some(0));
    let shard = "my/cache/part-0001-of-0001-000001.shard";
    bucket.change(|objects| objects.get_mut(shard).unwrap()[200] ^= 1);
    let info = || process(&sandbox, &bucket, "second", &["cache", "info", "s3://shelf/my/cache"]);
    let (code, _, said) = run(info());
    assert!(
        code == Some(3) && said.contains("came damaged") && said.contains("its checksum is wrong"),
        "{said}"
    );
    bucket.change(|objects| objects.get_mut(shard).unwrap()[200] ^= 1);
    assert_eq!(run(info()).0, Some(0));
    // Other files of the bucket are none of the cache's, whatever their names.
    bucket.change(|objects| drop(objects.insert("my/cache/part-x.txt".to_owned(), b"x".to_vec())));
    assert_eq!(run(info()).0, Some(0));
}

#[test]
fn what_keeps_storage_from_being_used_is_named() {
    let (sandbox, bucket) = (sandbox(), Bucket::start());
    let refused = |command: Command, reason: &str| {
        let (code, _, said) = run(command);
        assert!(code == Some(3) && said.contains(reason), "{reason}: {code:?} {said}");
    };
    let info = ["cache", "info", "s3://shelf/my/cache"];
    refused(process(&sandbox, &bucket, "first", &info), "s3://shelf/my/cache is not a teacher cache");
    for arguments in [&info[..], &CAPTURE] {
        let mut command = process(&sandbox, &bucket, "first", arguments);
        command.env_remove("AWS_ACCESS_KEY_ID");
        refused(command, "AWS_ACCESS_KEY_ID is not set");
        let mut command = process(&sandbox, &bucket, "first", arguments);
        command.env("AWS_ACCESS_KEY_ID", "AKOTHER");
        refused(command, "see whether AWS_ACCESS_KEY_ID");
    }
    refused(
        process(&sandbox, &bucket, "first", &["cache", "info", "s3://x"]),
        "is no address of object storage",
    );
    refused(process(&sandbox, &bucket, "first", &["distill", "cached.yml"]), "is not a teacher cache");
    assert_eq!(bucket.names(), [""; 0]);
}
