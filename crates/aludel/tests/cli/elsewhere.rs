//! Merges of models that lie in object storage, and into it.

use std::process::Command;

use crate::bucket::{Bucket, KEY};
use crate::sandbox::Sandbox;

const RECIPE: &str = "\
merge_method: linear
models:
  - {model: 's3://shelf/models/a', parameters: {weight: 0.5}}
  - {model: models/b, parameters: {weight: 0.5}}
dtype: bfloat16
";

/// A sandbox with the models `a` and `b`, of which `a` is in the bucket as well, and a recipe.
fn start() -> (Sandbox, Bucket) {
    let (sandbox, bucket) = (Sandbox::new(&["a", "b"]), Bucket::start());
    for (name, bytes) in sandbox.contents("models/a") {
        bucket.change(|objects| drop(objects.insert(format!("models/a/{name}"), bytes)));
    }
    sandbox.write("r.yml", RECIPE);
    sandbox.write("local.yml", RECIPE.replace("'s3://shelf/models/a'", "models/a"));
    (sandbox, bucket)
}

fn process(sandbox: &Sandbox, bucket: &Bucket, arguments: &[&str]) -> Command {
    let mut command = sandbox.process(arguments);
    command.env("AWS_ACCESS_KEY_ID", KEY).env("AWS_SECRET_ACCESS_KEY", "secret-never-shown");
    command.env("AWS_ENDPOINT_URL", &bucket.endpoint);
    command
}

/// Exit code and what was said.
fn run(sandbox: &Sandbox, bucket: &Bucket, arguments: &[&str]) -> (Option<i32>, String) {
    let output = process(sandbox, bucket, arguments).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// The objects under a prefix, without it.
fn objects(bucket: &Bucket, prefix: &str) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    bucket.change(|objects| {
        let named =
            |(key, bytes): (&String, &Vec<u8>)| Some((key.strip_prefix(prefix)?.to_owned(), bytes.clone()));
        found = objects.iter().filter_map(named).collect();
    });
    found
}

#[test]
fn a_merge_from_storage_into_storage_is_the_one_between_folders() {
    let (sandbox, bucket) = start();
    sandbox.aludel(&["merge", "local.yml", "out", "-q", "--shard-size", "2000"]).assert().code(0);
    let merge = ["merge", "r.yml", "s3://shelf/results/out", "--shard-size", "2000"];
    let (code, said) = run(&sandbox, &bucket, &merge);
    assert!(code == Some(0), "{said}");
    assert!(said.contains("fetched 11.0 kB of s3://shelf/models/a"), "{said}");
    assert!(said.contains("into s3://shelf/results/out"), "{said}");
    let is_told = |(name, _): &(String, Vec<u8>)| !["README.md", "recipe.yml"].contains(&name.as_str());
    let expected: Vec<_> = sandbox.contents("out").into_iter().filter(is_told).collect();
    let put = objects(&bucket, "results/out/");
    assert!(put.iter().filter(|file| is_told(file)).cloned().collect::<Vec<_>>() == expected);
    assert_eq!(put.len(), sandbox.names("out").len());
    // Weights come first, what says that all is there last.
    let asked = bucket.asked("PUT /shelf/results/out/");
    assert!(asked[0].ends_with(".safetensors"), "{asked:?}");
    let last: Vec<&str> =
        asked[asked.len() - 2..].iter().map(|line| line.rsplit('/').next().unwrap()).collect();
    assert_eq!(last, ["model.safetensors.index.json", "config.json"]);

    // What was fetched is not fetched again, unless it is another.
    let fetched = || bucket.requests("GET /shelf/models/a/");
    let before = fetched();
    let (code, said) = run(&sandbox, &bucket, &["merge", "r.yml", "again", "-q"]);
    assert!(code == Some(0) && fetched() == before, "{said}");
    bucket.change(|objects| *objects.get_mut("models/a/config.json").unwrap() = br#"{"a": 1}"#.to_vec());
    let (code, said) = run(&sandbox, &bucket, &["convert", "s3://shelf/models/a", "anew", "-q"]);
    assert!(code == Some(0) && fetched() > before, "{said}");
    assert!(std::fs::read_to_string(sandbox.path("anew/config.json")).unwrap().contains("\"a\": 1"));
}

#[test]
fn what_is_there_is_replaced_when_asked_for_and_gone_on_with_after_a_failure() {
    let (sandbox, bucket) = start();
    let target = "s3://shelf/results/out";
    let merge = |more: &[&str]| {
        run(&sandbox, &bucket, &[&["merge", "r.yml", target, "--shard-size", "2000"], more].concat())
    };
    bucket.be_read_only(true);
    let (code, said) = merge(&[]);
    assert!(code == Some(1) && said.contains("`--resume` goes on with it"), "{said}");
    bucket.be_read_only(false);
    assert_eq!(objects(&bucket, "results/"), []);
    let (code, said) = merge(&["--resume"]);
    assert!(
        code == Some(0) && !said.contains("merging") && said.contains("into s3://shelf/results/out"),
        "{said}"
    );
    let whole = objects(&bucket, "results/out/");
    assert!(whole.len() > 5);

    let (code, said) = merge(&[]);
    assert!(code == Some(3) && said.contains("is there already") && said.contains("--force"), "{said}");
    let (code, said) = run(&sandbox, &bucket, &["merge", "r.yml", target, "--force"]);
    assert!(code == Some(0), "{said}");
    let names: Vec<String> = objects(&bucket, "results/out/").into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["README.md", "config.json", "model.safetensors", "recipe.yml"]);

    // Without its config a model is one that is being put there.
    bucket.change(|objects| drop(objects.remove("models/a/config.json")));
    let (code, said) = run(&sandbox, &bucket, &["merge", "r.yml", "local"]);
    assert!(code == Some(3) && said.contains("has no config.json, which is put there last"), "{said}");
    let (code, said) = run(&sandbox, &bucket, &["merge", "r.yml", target, "--part", "1/2"]);
    assert!(code == Some(3) && said.contains("in one piece"), "{said}");
}
