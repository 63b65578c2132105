//! Merges that are killed and go on.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::gpu::has_adapter;
use crate::sandbox::Sandbox;
use crate::weights::{Tensor, noise, write_model};

const DARE: &str = "\
merge_method: dare_ties
base_model: models/base
models:
  - {model: models/a, parameters: {weight: 0.6, density: 0.5}}
  - {model: models/b, parameters: {weight: 0.4, density: 0.5}}
dtype: bfloat16
";

fn models() -> Sandbox {
    let sandbox = Sandbox::new(&[]);
    for (seed, model) in ["models/base", "models/a", "models/b"].into_iter().enumerate() {
        let names: Vec<String> = (10..50).map(|number| format!("layer.{number}.weight")).collect();
        let tensors: Vec<Tensor<'_>> =
            names.iter().map(|name| (name.as_str(), "BF16", &[300, 1000][..])).collect();
        write_model(&sandbox, model, &tensors, &noise(40 * 300_000, seed as u64));
    }
    sandbox.write("r.yml", DARE);
    sandbox
}

fn merge(sandbox: &Sandbox, target: &str) -> Command {
    let mut command = sandbox.process(&[
        "merge",
        "r.yml",
        target,
        "--resume",
        "--shard-size",
        "5MB",
        "-q",
        "--threads",
        "1",
    ]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Kills runs after times that grow from nothing to that of a whole one, until one comes through.
#[test]
fn a_merge_killed_fifty_times_has_the_bytes_of_one_that_was_not() {
    let sandbox = models();
    let start = std::time::Instant::now();
    assert!(merge(&sandbox, "whole").status().unwrap().success());
    let whole = start.elapsed();
    let expected = sandbox.contents("whole");
    let (mut kills, mut round) = (0u32, 0u32);
    while kills < 50 {
        let mut run = merge(&sandbox, "out").spawn().unwrap();
        // A run that goes on has the less to do the more often it was killed: by and by one is done.
        std::thread::sleep(whole.mul_f64(f64::from(round * 7919 % 100) / 100.0) + Duration::from_millis(1));
        round += 1;
        if run.try_wait().unwrap().is_none() {
            run.kill().unwrap();
            kills += 1;
        }
        run.wait().unwrap();
        if sandbox.path("out").exists() {
            assert_eq!(sandbox.contents("out"), expected, "after {kills} kills");
            std::fs::remove_dir_all(sandbox.path("out")).unwrap();
        }
    }
    assert!(merge(&sandbox, "out").status().unwrap().success());
    assert_eq!(sandbox.contents("out"), expected);
    assert_eq!(sandbox.names("."), ["models", "out", "r.yml", "whole"]);
}

/// What is left by a run is not trusted: neither bytes that are not those that were written, nor another recipe's.
#[test]
fn what_is_left_is_checked_and_only_gone_on_with_by_the_same_merge() {
    let sandbox = models();
    assert!(merge(&sandbox, "whole").status().unwrap().success());
    let left = killed_midway(&sandbox);
    let shard = sandbox.path(&left).join("model-00001-of-00005.safetensors");
    let mut damaged = std::fs::read(&shard).unwrap();
    let end = damaged.len();
    damaged[end / 2..].fill(7);
    std::fs::write(&shard, damaged).unwrap();
    let report = sandbox.json(&["merge", "r.yml", "out", "--resume", "--shard-size", "5MB", "--json"]);
    let resumed = report["tensors_resumed"].as_u64().unwrap();
    assert!((1..40).contains(&resumed), "{report}");
    assert_eq!(sandbox.contents("out"), sandbox.contents("whole"));
    std::fs::remove_dir_all(sandbox.path("out")).unwrap();

    killed_midway(&sandbox);
    sandbox.write("r.yml", DARE.replace("0.6", "0.7"));
    let output =
        sandbox.process(&["merge", "r.yml", "out", "--resume", "--shard-size", "5MB"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let talk = String::from_utf8(output.stderr).unwrap();
    assert!(talk.contains("was left by a run with another recipe, other models or settings"), "{talk}");
    assert!(sandbox.names(".").iter().any(|name| name.starts_with(".out.partial-")));
    sandbox.aludel(&["merge", "r.yml", "out", "-q"]).assert().code(0);
    assert_eq!(sandbox.names("."), ["models", "out", "r.yml", "whole"]);
}

/// The same of deltas, of a part, and of a chain of merges with its result in between on disk.
#[test]
fn deltas_parts_and_chains_killed_at_any_time_have_the_same_bytes() {
    let sandbox = models();
    let chain = format!("name: mixed\n{DARE}---\n{}", DARE.replace("models/a,", "mixed,"));
    sandbox.write("chain.yml", chain);
    for (recipe, more, folders) in [
        ("r.yml", &["--output", "sparse-delta"][..], &["out"][..]),
        ("r.yml", &["--output", "sparse-delta-fp8"], &["out"]),
        ("r.yml", &["--part", "2/2"], &["out.parts/2-of-2"]),
        ("chain.yml", &["-I", "between"], &["out", "between/mixed"]),
    ] {
        let run = |resumes: bool| {
            let mut command = sandbox.process(&["merge", recipe, "out", "--shard-size", "5MB", "-q"]);
            command.args(more).args(resumes.then_some("--resume"));
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let contents = || {
            // Cards of chains name digests and times of nothing else.
            folders.iter().map(|folder| sandbox.contents(folder)).collect::<Vec<_>>()
        };
        let remove = || {
            for folder in ["out", "out.parts", "between"] {
                let _ = std::fs::remove_dir_all(sandbox.path(folder));
            }
        };
        let start = std::time::Instant::now();
        assert!(run(false).status().unwrap().success());
        let (whole, expected) = (start.elapsed(), contents());
        remove();
        let (mut kills, mut round) = (0u32, 0u32);
        while kills < 12 {
            let mut child = run(true).spawn().unwrap();
            std::thread::sleep(whole.mul_f64(f64::from(round * 37 % 100) / 100.0));
            round += 1;
            if child.try_wait().unwrap().is_none() {
                child.kill().unwrap();
                kills += 1;
            }
            child.wait().unwrap();
            if sandbox.path(folders[0]).exists() {
                assert!(contents() == expected, "{recipe} {more:?} after {kills} kills");
                remove();
            }
        }
        assert!(run(true).status().unwrap().success());
        assert!(contents() == expected, "{recipe} {more:?}");
        assert!(!sandbox.names(".").iter().any(|name| name.starts_with(".out")));
        remove();
    }
}

/// Weights and their scales are written together, and gone on with together or not at all.
#[test]
fn an_output_in_fp8_goes_on_with_whole_pairs() {
    let sandbox = models();
    let with = |target: &str| {
        let mut command = merge(&sandbox, target);
        command.args(["--output", "fp8"]);
        command
    };
    assert!(with("whole").status().unwrap().success());
    let left = killed_midway_of(&sandbox, || with("out"));
    let journal = sandbox.path(&left).join(".journal");
    let text = std::fs::read_to_string(&journal).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    std::fs::write(&journal, lines[..lines.len() - 1].join("\n") + "\n").unwrap();
    let report = sandbox.json(&[
        "merge",
        "r.yml",
        "out",
        "--resume",
        "--shard-size",
        "5MB",
        "--json",
        "--output",
        "fp8",
    ]);
    let resumed = report["tensors_resumed"].as_u64().unwrap();
    assert!(resumed > 2 && resumed.is_multiple_of(2), "{report}");
    assert_eq!(sandbox.contents("out"), sandbox.contents("whole"));
}

/// What a run on the CPU has left, one on a GPU goes on with.
#[test]
fn a_run_goes_on_on_another_device() {
    let sandbox = models();
    if !has_adapter(&sandbox) {
        return;
    }
    assert!(merge(&sandbox, "whole").status().unwrap().success());
    killed_midway(&sandbox);
    let resume = ["merge", "r.yml", "out", "--resume", "--shard-size", "5MB", "--json", "--device", "wgpu"];
    let report = sandbox.json(&resume);
    let (resumed, computed) =
        (report["tensors_resumed"].as_u64().unwrap(), report["device"]["tensors"].as_u64().unwrap());
    assert!(resumed > 0 && computed > 0 && resumed + computed == 40, "{report}");
    assert_eq!(sandbox.contents("out"), sandbox.contents("whole"));
}

/// A run that was killed when it had written several tensors and not all; the name of what it left.
fn killed_midway(sandbox: &Sandbox) -> String {
    killed_midway_of(sandbox, || merge(sandbox, "out"))
}

fn killed_midway_of(sandbox: &Sandbox, command: impl Fn() -> Command) -> String {
    loop {
        let mut run = command().spawn().unwrap();
        let left = loop {
            let left = sandbox.names(".").into_iter().find(|name| name.starts_with(".out.partial-"));
            let lines =
                left.as_ref().and_then(|left| std::fs::read(sandbox.path(left).join(".journal")).ok());
            if lines.is_some_and(|lines| lines.iter().filter(|&&byte| byte == b'\n').count() > 15) {
                break left;
            }
            if run.try_wait().unwrap().is_some() {
                break None;
            }
        };
        run.kill().unwrap();
        run.wait().unwrap();
        if let (Some(left), false) = (left, sandbox.path("out").exists()) {
            return left;
        }
        std::fs::remove_dir_all(sandbox.path("out")).unwrap();
    }
}

/// A file that is cut short under the run can no more be read than one on a disk that fails: the system sends the same signal for
/// both. The run says so, and once the file is there again it goes on.
#[test]
#[cfg(unix)]
fn a_file_that_cannot_be_read_any_more_ends_the_run_and_the_next_one_goes_on() {
    let sandbox = models();
    assert!(merge(&sandbox, "whole").status().unwrap().success());
    let file = sandbox.path("models/b/model.safetensors");
    let (content, modified) = (std::fs::read(&file).unwrap(), file.metadata().unwrap().modified().unwrap());
    let talk = loop {
        let mut run = merge(&sandbox, "out").stderr(Stdio::piped()).spawn().unwrap();
        let is_begun = || {
            let left = sandbox.names(".").into_iter().find(|name| name.starts_with(".out.partial-"));
            let lines = left.and_then(|left| std::fs::read(sandbox.path(&left).join(".journal")).ok());
            lines.is_some_and(|lines| lines.iter().filter(|&&byte| byte == b'\n').count() > 5)
        };
        while run.try_wait().unwrap().is_none() && !is_begun() {}
        let opened = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
        opened.set_len(4096).unwrap();
        let ended = run.wait_with_output().unwrap();
        std::fs::write(&file, &content).unwrap();
        opened.set_modified(modified).unwrap();
        let talk = String::from_utf8(ended.stderr).unwrap();
        if talk.contains("could not be read") {
            assert_eq!(ended.status.code(), Some(1), "{talk}");
            break talk;
        }
        // It was over before, or about to look at its files for the last time.
        let _ = std::fs::remove_dir_all(sandbox.path("out"));
    };
    assert!(talk.contains("--resume"), "{talk}");
    let report = sandbox.json(&["merge", "r.yml", "out", "--resume", "--shard-size", "5MB", "--json"]);
    assert!(report["tensors_resumed"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(sandbox.contents("out"), sandbox.contents("whole"));
}

/// Fills the disk under a run; when there is room again the next one goes on. Needs a disk of its own, which a user who may make
/// name spaces can have without being root.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_ends_the_run_and_the_next_one_goes_on() {
    const SCRIPT: &str = r#"
        mkdir disk && mount -t tmpfs -o size=40m tmpfs disk || exit 9
        merge() { "$1" merge r.yml disk/out --resume --shard-size 5MB --threads 1 "$2"; }
        while :; do
            merge "$1" -q 2>full.log & run=$!
            while kill -0 $run 2>/dev/null && ! [ "$(cat disk/.out.partial-*/.journal 2>/dev/null | wc -l)" -gt 5 ]; do :; done
            head -c 64000000 /dev/zero >disk/fill 2>/dev/null
            wait $run; code=$?
            rm disk/fill
            [ $code -eq 0 ] || break
            rm -rf disk/out
        done
        echo $code >full.code
        merge "$1" --json >resumed.json && cp -r disk/out out
    "#;
    let sandbox = models();
    let is_possible = Command::new("unshare").args(["-rm", "true"]).status();
    if !is_possible.is_ok_and(|status| status.success()) {
        eprintln!("not tried: there are no name spaces to be had here");
        return;
    }
    assert!(merge(&sandbox, "whole").status().unwrap().success());
    let program = sandbox.process(&[]).get_program().to_owned();
    let mut script = Command::new("unshare");
    script.args(["-rm", "sh", "-c", SCRIPT, "sh"]).arg(program).current_dir(sandbox.path("."));
    assert!(script.status().unwrap().success());
    let read = |name: &str| std::fs::read_to_string(sandbox.path(name)).unwrap();
    assert_eq!(read("full.code").trim(), "1");
    let talk = read("full.log");
    assert!(talk.contains("No space left on device") && talk.contains("--resume"), "{talk}");
    let report: serde_json::Value = serde_json::from_str(&read("resumed.json")).unwrap();
    assert!(report["tensors_resumed"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(sandbox.contents("out"), sandbox.contents("whole"));
}
