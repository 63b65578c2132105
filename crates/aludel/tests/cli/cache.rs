//! Teacher caches from the command line: captures that are stopped, killed and gone on with, trainings from every kind of cache beside the
//! live one, and what is refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use aludel_cache::{Cache, RecordId, Rows, SparseRows};
use snapbox::str;

use crate::distill::short;
use crate::sandbox::Sandbox;

/// A run of twelve steps and the same run from `cache`.
fn sandbox(objective: &str) -> Sandbox {
    let sandbox = short("");
    let text = fs::read_to_string(sandbox.path("run.yml")).unwrap();
    let text = text.replace("output: out\n", &format!("output: out\nobjective: {objective}\n"));
    // A student that is the same wherever its teacher is.
    let text =
        text.replace("{from_teacher: {layers: [0, 3]}}", "{config: examples/models/scripture, seed: 1}");
    sandbox.write("run.yml", &text);
    let cached = text.replace("teacher: examples/models/scripture", "teacher: {cache: cache}");
    sandbox.write("cached.yml", cached.replace("output: out\n", "output: out-cached\n"));
    sandbox
}

/// Leaves so many rows of the data, each of which is a chapter.
pub(crate) fn keep_rows(sandbox: &Sandbox, train: usize, heldout: usize) {
    for (name, rows) in [("train", train), ("heldout", heldout)] {
        let name = format!("examples/data/genesis-{name}.jsonl");
        let text = fs::read_to_string(sandbox.path(&name)).unwrap();
        assert!(text.lines().count() > rows);
        let rows: Vec<&str> = text.lines().take(rows).collect();
        sandbox.write(&name, rows.join("\n"));
    }
}

/// The training losses of a run, and the last validation's KL.
pub(crate) fn losses(sandbox: &Sandbox, output: &str) -> (Vec<f64>, f64) {
    let text = fs::read_to_string(sandbox.path(&format!("{output}.run/metrics.jsonl"))).unwrap();
    let entries: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of =
        |phase: &str| entries.iter().filter(|entry| entry["phase"] == phase).cloned().collect::<Vec<_>>();
    let train = of("train").iter().map(|entry| entry["loss"].as_f64().unwrap()).collect();
    (train, of("validation").last().unwrap()["kl"].as_f64().unwrap())
}

pub(crate) fn sparse(cache: &Cache) -> BTreeMap<RecordId, SparseRows> {
    let rows = |id| match cache.record(id).unwrap().rows().unwrap() {
        Rows::Sparse(rows) => (id, rows),
        other => panic!("{other:?}"),
    };
    cache.ids().map(rows).collect()
}

#[test]
fn a_training_from_a_cache_is_the_live_one() {
    let sandbox = sandbox("[{loss: forward_kl, temperature: 2}, {loss: cross_entropy, weight: 0.1}]");
    sandbox.aludel(&["distill", "run.yml"]).assert().code(0);
    let (live, live_kl) = losses(&sandbox, "out");
    assert_eq!(live.len(), 12);
    for (mode, flags, tolerance) in [
        ("hidden", &[][..], 1e-3),
        ("int8", &[], 5e-3),
        ("int4", &[], 0.1),
        ("top_k", &["--k", "2000"], 0.02),
        ("sampled", &["--draws", "400"], 0.1),
    ] {
        let mut arguments = vec!["cache", "capture", "run.yml", "cache", "--mode", mode];
        arguments.extend(flags);
        if mode == "top_k" {
            // As many as the teacher has.
            let header = Cache::header_of(&sandbox.path("cache-int4")).unwrap();
            let k = header.vocabulary.to_string();
            arguments.truncate(6);
            sandbox.aludel(&[&arguments[..], &["--k", &k]].concat()).assert().code(0);
        } else {
            sandbox.aludel(&arguments).assert().code(0);
        }
        sandbox.aludel(&["distill", "cached.yml", "--force"]).assert().code(0);
        let (cached, kl) = losses(&sandbox, "out-cached");
        let off = live.iter().zip(&cached).map(|(x, y)| (x - y).abs() / x).fold(0.0, f64::max);
        assert!(cached.len() == 12 && off < tolerance, "{mode}: {off}, {live:?} {cached:?}");
        if mode != "sampled" {
            assert!((kl - live_kl).abs() < tolerance * live_kl, "{mode}: {kl} {live_kl}");
        }
        fs::rename(sandbox.path("cache"), sandbox.path(&format!("cache-{mode}"))).unwrap();
    }
}

#[test]
fn a_capture_says_what_it_stored_and_of_what() {
    let sandbox = sandbox("forward_kl");
    let capture = ["cache", "capture", "run.yml", "cache", "--k", "16"];
    sandbox.aludel(&capture).assert().code(0).stdout_eq("").stderr_eq(str![[r#"
...
captured 25071 tokens in 400 records into cache in [..]

"#]]);
    let info = sandbox.json(&["cache", "info", "cache", "--json"]);
    assert_eq!(info["header"]["contents"]["top_k"]["k"], 16);
    assert_eq!(info["header"]["data"]["sequence_length"], 64);
    let bytes = info["bytes_per_token"].as_f64().unwrap();
    assert!((8.0..40.0).contains(&bytes), "{bytes}");
    sandbox.aludel(&["cache", "verify", "cache"]).assert().code(0).stdout_eq(str![[r#"
every byte of 1 files is sound: [..] tokens in [..] records

"#]]);
    let verified =
        sandbox.json(&["cache", "verify", "cache", "--run", "run.yml", "--records", "20", "--json"]);
    let of = |side: &str, what: &str| verified[side][what].as_f64().unwrap();
    assert!(of("control", "kl").abs() < 1e-6 && of("control", "top1") > 0.99, "{verified}");
    assert!((0.5..1.0).contains(&of("stored", "kept_mass")), "{verified}");
    assert!((1e-6..1.0).contains(&of("stored", "kl")) && of("stored", "top1") > 0.95, "{verified}");
    let shard = sandbox.path("cache/part-0001-of-0001-000000.shard");
    let mut bytes = fs::read(&shard).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&shard, bytes).unwrap();
    sandbox.aludel(&["cache", "verify", "cache"]).assert().code(1).stderr_eq(str![[r#"
error: cache/part-0001-of-0001-000000.shard is damaged: its checksum is wrong

"#]]);
}

#[test]
fn flags_of_another_mode_are_refused() {
    let sandbox = sandbox("forward_kl");
    for (flags, reason) in [
        (&["--k", "64", "--mode", "int8"][..], "`--k` is of the mode `top_k`, and the mode is `int8`"),
        (&["--draws", "25"], "`--draws` is of the mode `sampled`, and the mode is `top_k`"),
        (&["--mode", "hidden", "--seed", "1"], "leave it out, or give `--mode sampled`"),
    ] {
        let arguments = [&["cache", "capture", "run.yml", "cache"], flags].concat();
        let output = sandbox.process(&arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(3) && said.contains(reason), "{reason}: {said}");
        assert!(!sandbox.path("cache").exists());
    }
}

#[test]
fn a_cache_that_does_not_fit_is_refused_with_the_reason() {
    let sandbox = sandbox("forward_kl");
    sandbox.aludel(&["cache", "capture", "run.yml", "cache", "--k", "4"]).assert().code(0);
    let text = fs::read_to_string(sandbox.path("cached.yml")).unwrap();
    let refused = |from: &str, to: &str| {
        assert!(text.contains(from));
        sandbox.write("other.yml", text.replace(from, to));
        let output = sandbox.process(&["distill", "other.yml"]).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{from} {to}");
        String::from_utf8(output.stderr).unwrap()
    };
    sandbox.write("template.jinja", "{{ messages[0].content }}");
    // The same model, whose tokenizer puts a space before a text.
    let other = sandbox.path("other");
    fs::create_dir(&other).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let text = fs::read_to_string(sandbox.path(&format!("examples/models/scripture/{name}"))).unwrap();
        let changed = text.replacen("\"add_prefix_space\": false", "\"add_prefix_space\": true", 1);
        assert_eq!(name == "tokenizer.json", changed != text);
        fs::write(other.join(name), changed).unwrap();
    }
    for (from, to, reason) in [
        (
            "sequence_length: 64",
            "sequence_length: 32",
            "`sequence_length` is 64 in the cache and 32 in the run",
        ),
        ("sequence_length: 64", "sequence_length: 64\n  chat_template: template.jinja", "`chat_template` is"),
        (
            "config: examples/models/scripture",
            "config: other",
            "the tokenizer is another: it cuts text differently",
        ),
        ("genesis-train.jsonl", "genesis-heldout.jsonl", "is trained on and evaluated on"),
        (
            "objective: forward_kl",
            "objective: {loss: forward_kl, temperature: 2}",
            "a term has temperature 2",
        ),
        ("objective: forward_kl", "objective: forward_kl\ntaid: published", "needs every column"),
        ("objective: forward_kl", "objective: hidden_mse", "no hidden states of layers"),
        ("{cache: cache}", "{cache: nowhere}", "nowhere is not a teacher cache"),
        ("{cache: cache}", "{cache: cache, model: examples/data/genesis-train.jsonl}", "of another teacher"),
    ] {
        let said = refused(from, to);
        assert!(said.contains(reason), "{reason}: {said}");
    }
    let mut data = fs::read_to_string(sandbox.path("examples/data/genesis-train.jsonl")).unwrap();
    data.push_str("{\"text\": \"one more\"}\n");
    fs::write(sandbox.path("examples/data/genesis-train.jsonl"), data).unwrap();
    let said = refused("seed: 1", "seed: 1");
    assert!(said.contains("`files` is"), "{said}");
    let output = sandbox.process(&["cache", "capture", "run.yml", "cache", "--k", "4"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "a capture of other data into the same cache");
}

#[test]
fn parts_that_are_captured_at_once_make_the_whole() {
    let sandbox = sandbox("forward_kl");
    let capture = |cache: &str, part: &str| {
        sandbox.process(&["cache", "capture", "run.yml", cache, "--k", "8", "--threads", "1", "--part", part])
    };
    let at_once = |parts: &[&str]| {
        let start = |part: &&str| capture("cache", part).stderr(std::process::Stdio::null()).spawn().unwrap();
        let children: Vec<_> = parts.iter().map(start).collect();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
    };
    let refusal = || {
        let output = sandbox.process(&["distill", "cached.yml"]).output().unwrap();
        assert_eq!(output.status.code(), Some(3));
        String::from_utf8(output.stderr).unwrap()
    };
    sandbox.aludel(&["cache", "capture", "run.yml", "whole", "--k", "8"]).assert().code(0);
    // They begin the cache together: one writes its header, the others find it.
    at_once(&["4/5", "1/5", "3/5"]);
    let said = refusal();
    assert!(
        said.contains("parts 2, 5 of 5 did not end") && said.contains("`--part 2/5` and so on"),
        "{said}"
    );
    let output = sandbox.process(&["cache", "info", "cache"]).output().unwrap();
    assert!(output.status.code() == Some(3) && output.stdout.is_empty());
    at_once(&["5/5"]);
    let said = refusal();
    assert!(said.contains("part 2 of 5 did not end") && said.contains("`--part 2/5`"), "{said}");
    at_once(&["2/5"]);
    let output = capture("cache", "2/4").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(3) && said.contains("divided into 5 parts, not 4"), "{said}");
    let (whole, parts) =
        (Cache::open(&sandbox.path("whole")).unwrap(), Cache::open(&sandbox.path("cache")).unwrap());
    parts.verify(&mut |_| {}).unwrap();
    assert_eq!((whole.len(), whole.targets()), (parts.len(), parts.targets()));
    assert!(whole.ids().eq(parts.ids()));
    sandbox.aludel(&["distill", "cached.yml"]).assert().code(0);
}

/// Kills what writes a cache of about so many bytes when its files have grown by some number of them, and goes on, until it ends.
pub(crate) fn kill_often(sandbox: &Sandbox, arguments: &[&str], folder: &str, bytes: u64, times: u64) {
    let size = |folder: &Path| -> u64 {
        let entries = folder.read_dir().into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
    };
    let folder = sandbox.path(folder);
    let mut kills = 0;
    for time in 0..times {
        // Spread over the work, with steps of no pattern.
        let until = bytes * (time + 1) / (times + 1) + time * 7919 % 997;
        let mut child = sandbox.process(arguments).stderr(std::process::Stdio::null()).spawn().unwrap();
        while size(&folder) < until && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            kills += 1;
        }
        child.wait().unwrap();
    }
    assert!(kills >= times / 2, "{kills} of {times} were killed");
    sandbox.aludel(arguments).assert().code(0);
}

#[test]
fn a_capture_killed_thirty_times_goes_on_without_losing_or_doubling_a_row() {
    let sandbox = sandbox("forward_kl");
    keep_rows(&sandbox, 5, 2);
    let arguments =
        ["cache", "capture", "run.yml", "cache", "--k", "16", "--shard-size", "8KiB", "--no-sync"];
    sandbox.aludel(&["cache", "capture", "run.yml", "whole", "--k", "16"]).assert().code(0);
    let whole = Cache::open(&sandbox.path("whole")).unwrap();
    kill_often(&sandbox, &arguments, "cache", whole.bytes(), 30);
    let cache = Cache::open(&sandbox.path("cache")).unwrap();
    cache.verify(&mut |_| {}).unwrap();
    assert!(cache.ids().eq(whole.ids()), "a row was lost or doubled");
    for ((id, killed), (_, whole)) in sparse(&cache).into_iter().zip(sparse(&whole)) {
        // Batches are cut elsewhere, which may round differently: ties and levels move, nothing else.
        assert_eq!(killed.len(), whole.len(), "{id}");
        assert!(killed.tails.iter().zip(&whole.tails).all(|(x, y)| (x - y).abs() < 0.02), "{id}");
    }
}
