//! Captures of served teachers from the command line: through every trouble that a server makes, killed and gone on with, beside the
//! capture of the same model here, and what is refused.

use std::fs;
use std::process::Stdio;

use aludel_cache::{Cache, Rows, SparseRows};

use crate::cache::keep_rows;
use crate::distill::short;
use crate::sandbox::Sandbox;
use crate::teacher_server::{Fate, SLOTS, TeacherServer, Trouble};

const KEY: &str = "sk-not-to-be-seen-1234567890";

/// A run over some rows of data, of a local teacher in `run.yml` and of a served one in `served.yml`.
fn sandbox(fate: Fate, key: Option<&'static str>) -> (Sandbox, TeacherServer) {
    let sandbox = short("");
    keep_rows(&sandbox, 5, 2);
    let text = fs::read_to_string(sandbox.path("run.yml")).unwrap();
    let text =
        text.replace("{from_teacher: {layers: [0, 3]}}", "{config: examples/models/scripture, seed: 1}");
    sandbox.write("run.yml", &text);
    let server = TeacherServer::start(&sandbox.path("examples/models/scripture"), fate, key);
    let mut served = format!("{{url: {}/v1, model: scripture, concurrency: 6", server.url);
    if key.is_some() {
        served.push_str(", api_key_env: TEACHER_KEY");
    }
    sandbox.write(
        "served.yml",
        text.replace("teacher: examples/models/scripture", &format!("teacher: {served}}}")),
    );
    (sandbox, server)
}

fn rewrite(sandbox: &Sandbox, from: &str, to: &str) {
    let text = fs::read_to_string(sandbox.path("served.yml")).unwrap();
    assert!(text.contains(from), "{from}: {text}");
    sandbox.write("served.yml", text.replace(from, to));
}

fn capture(sandbox: &Sandbox, run: &str, cache: &str, flags: &[&str]) -> (Option<i32>, String) {
    let is_said = flags.iter().any(|flag| ["--k", "--mode"].contains(flag));
    let k: &[&str] = if is_said { &[] } else { &["--k", "16"] };
    let arguments = [&["cache", "capture", run, cache], k, flags].concat();
    let output = sandbox.process(&arguments).env("TEACHER_KEY", KEY).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn all_rows(sandbox: &Sandbox, cache: &str) -> Vec<SparseRows> {
    let cache = Cache::open(&sandbox.path(cache)).unwrap();
    cache.verify(&mut |_| {}).unwrap();
    let rows = |id| match cache.record(id).unwrap().rows().unwrap() {
        Rows::Sparse(rows) => rows,
        other => panic!("{other:?}"),
    };
    cache.ids().map(rows).collect()
}

/// Holds a cache of a served teacher against the one of the same teacher here.
fn assert_same_as_here(sandbox: &Sandbox, cache: &str) {
    assert_eq!(capture(sandbox, "run.yml", "here", &[]).0, Some(0));
    let (here, served) = (all_rows(sandbox, "here"), all_rows(sandbox, cache));
    assert_eq!(here.len(), served.len());
    let (mut same, mut rows) = (0, 0);
    for (here, served) in here.iter().zip(&served) {
        assert_eq!(here.len(), served.len());
        for row in 0..here.len() {
            let of = |rows: &SparseRows| {
                let range = rows.range(row);
                (rows.ids[range.clone()].to_vec(), rows.log_p[range].to_vec(), rows.tails[row])
            };
            let (here, served) = (of(here), of(served));
            rows += 1;
            same += usize::from(here == served);
            // Batches are cut elsewhere, which rounds differently: levels move by one, and equals change places.
            let distance = |(ids, log_p, _): &(Vec<u32>, Vec<f32>, f32)| -> f64 {
                let both = ids.iter().zip(log_p);
                both.filter(|(id, _)| !here.0.contains(id)).map(|(_, x)| f64::from(*x).exp()).sum()
            };
            assert!(distance(&served) < 0.01 && (here.2 - served.2).abs() < 0.01, "{here:?} {served:?}");
            for (id, x) in served.0.iter().zip(&served.1) {
                let Some(at) = here.0.iter().position(|other| other == id) else { continue };
                assert!(
                    (x.exp().sqrt() - here.1[at].exp().sqrt()).abs() < 2.0 / 352.0,
                    "{here:?} {served:?}"
                );
            }
        }
    }
    assert!(rows > 1000 && same * 100 > rows * 98, "{same} of {rows} rows are the same to the last digit");
}

fn troubled(request: usize) -> Trouble {
    match request % 11 {
        1 => Trouble::Status(429, 0),
        3 => Trouble::Status(503, 0),
        4 => Trouble::Late(120),
        5 => Trouble::Dropped,
        7 => Trouble::Cut,
        8 => Trouble::Late(40),
        9 if request < 11 => Trouble::Says("<html>no gateway</html>"),
        _ => Trouble::None,
    }
}

#[test]
fn a_capture_goes_through_all_troubles_and_holds_what_a_local_one_holds() {
    let (sandbox, server) = sandbox(troubled, Some(KEY));
    let (code, said) = capture(&sandbox, "served.yml", "cache", &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains(KEY), "{said}");
    assert_same_as_here(&sandbox, "cache");
    for (name, content) in sandbox.contents("cache") {
        let held = content.windows(KEY.len()).any(|bytes| bytes == KEY.as_bytes());
        assert!(!held, "{name} holds the key");
    }
    let info = sandbox.json(&["cache", "info", "cache", "--json"]);
    let teacher = &info["header"]["teacher"];
    assert_eq!(
        (teacher["name"].as_str(), teacher["weights"].as_array().unwrap().len()),
        (Some("scripture"), 0)
    );
    assert_eq!(teacher["url"], format!("{}/v1", server.url));
    assert_eq!(info["header"]["logits"], false);
    let output = sandbox.process(&["cache", "info", "cache"]).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("served at http://127.0.0.1:"));
}

fn late(request: usize) -> Trouble {
    Trouble::Late(if request.is_multiple_of(3) { 30 } else { 5 })
}

#[test]
fn a_killed_capture_goes_on_to_the_same_bytes() {
    let (sandbox, server) = sandbox(late, None);
    assert_eq!(capture(&sandbox, "served.yml", "whole", &[]).0, Some(0));
    let whole = server.prompts().len();
    let (mut kills, before) = (0, server.prompts().len());
    for time in 1..=5 {
        let mut child = sandbox
            .process(&["cache", "capture", "served.yml", "cache", "--k", "16", "--no-sync"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let until = before + time * whole / 5;
        while server.prompts().len() < until && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        kills += u32::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(kills >= 3, "{kills} captures were killed");
    let (code, said) = capture(&sandbox, "served.yml", "cache", &[]);
    assert_eq!(code, Some(0), "{said}");
    // A server that says the same each time leaves the same bytes, however often its listener was killed.
    let shards = |cache: &str| {
        sandbox.contents(cache).into_iter().filter(|(name, _)| !name.starts_with('.')).collect::<Vec<_>>()
    };
    assert_eq!(shards("cache"), shards("whole"));
}

#[test]
fn other_servers_say_the_same() {
    let (sandbox, server) = sandbox(|_| Trouble::None, None);
    assert_eq!(capture(&sandbox, "served.yml", "vllm", &[]).0, Some(0));
    rewrite(&sandbox, "/v1, model", "/v1, api: sglang, model");
    assert_eq!(capture(&sandbox, "served.yml", "sglang", &[]).0, Some(0));
    assert_eq!(all_rows(&sandbox, "sglang"), all_rows(&sandbox, "vllm"));
    rewrite(&sandbox, "/v1, api: sglang", ", api: llama_cpp");
    let text = fs::read_to_string(sandbox.path("examples/data/genesis-train.jsonl")).unwrap();
    sandbox.write("examples/data/genesis-train.jsonl", text.lines().take(2).collect::<Vec<_>>().join("\n"));
    let before = server.prompts().len();
    server.at_once();
    assert_eq!(capture(&sandbox, "served.yml", "llama", &[]).0, Some(0));
    assert!(server.at_once() <= SLOTS, "each of its prompts is kept until the next token is asked for");
    let rows = Cache::open(&sandbox.path("llama")).unwrap().targets() as usize;
    assert_eq!(server.prompts().len() - before, rows + 4, "one request a row, and four of the probe");
    rewrite(&sandbox, ", api: llama_cpp", "/v1");
    assert_eq!(capture(&sandbox, "served.yml", "again", &[]).0, Some(0));
    // A prompt that is shorter goes through the model in another shape.
    let (llama, again) = (all_rows(&sandbox, "llama"), all_rows(&sandbox, "again"));
    for (llama, again) in llama.iter().zip(&again) {
        let same = llama.ids.iter().zip(&again.ids).filter(|(x, y)| x == y).count();
        assert!(llama.ends == again.ends && same * 100 > 98 * llama.ids.len());
    }
}

#[test]
fn parts_come_from_several_addresses_and_a_student_learns_from_them() {
    let (sandbox, _server) = sandbox(|_| Trouble::None, None);
    let other = TeacherServer::start(&sandbox.path("examples/models/scripture"), |_| Trouble::None, None);
    assert_eq!(capture(&sandbox, "served.yml", "cache", &["--part", "2/2"]).0, Some(0));
    let text = fs::read_to_string(sandbox.path("served.yml")).unwrap();
    let start = text.find("http://").unwrap();
    let end = start + text[start..].find("/v1").unwrap();
    rewrite(&sandbox, &text[start..end], &other.url);
    let (code, said) = capture(&sandbox, "served.yml", "cache", &["--part", "1/2"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(!other.prompts().is_empty());
    let verified =
        sandbox.json(&["cache", "verify", "cache", "--run", "served.yml", "--records", "8", "--json"]);
    let of = |side: &str, what: &str| verified[side][what].as_f64().unwrap();
    assert!(of("control", "kl").abs() < 1e-9 && of("control", "top1") == 1.0, "{verified}");
    assert!((0.0..1e-3).contains(&of("stored", "kl")) && of("stored", "top1") > 0.95, "{verified}");
    let run = fs::read_to_string(sandbox.path("run.yml")).unwrap();
    let cached = run.replace("teacher: examples/models/scripture", "teacher: {cache: cache}");
    sandbox.write("cached.yml", &cached);
    sandbox.aludel(&["distill", "cached.yml"]).assert().code(0);
    let of_weights = "teacher: {cache: cache, model: examples/models/scripture}";
    sandbox.write("cached.yml", cached.replace("teacher: {cache: cache}", of_weights));
    let output = sandbox.process(&["distill", "cached.yml", "--force"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(3) && said.contains("its weights are not known"), "{said}");
    let output = sandbox.process(&["distill", "served.yml", "--force"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(3) && said.contains("a training needs what it says at hand"),
        "{said}"
    );
}

#[test]
fn what_cannot_be_captured_is_refused_before_anything_is_written() {
    let (sandbox, _server) = sandbox(|_| Trouble::None, Some(KEY));
    let good = fs::read_to_string(sandbox.path("served.yml")).unwrap();
    let refused = |from: &str, to: &str, flags: &[&str], reason: &str| {
        sandbox.write("served.yml", &good);
        rewrite(&sandbox, from, to);
        let (code, said) = capture(&sandbox, "served.yml", "cache", flags);
        assert!(code == Some(3) && said.contains(reason), "{reason}: {said}");
        assert!(!said.contains(KEY), "{said}");
        assert!(!sandbox.path("cache").exists(), "{reason}");
    };
    let line = good.lines().next().unwrap();
    let long = good.replace("sequence_length: 64", "sequence_length: 65");
    refused("model: scripture", "model: psalms", &[], "does not serve `psalms`");
    refused("sequence_length: 64", "sequence_length: 65", &[], "--max-model-len 67");
    refused("model: scripture", "model: scripture", &["--k", "65"], "--max-logprobs 65");
    refused("TEACHER_KEY", "NO_SUCH_KEY", &[], "NO_SUCH_KEY, which `api_key_env` names, is not set");
    refused(", api_key_env: TEACHER_KEY", "", &[], "`api_key_env: TEACHER_KEY`");
    refused("TEACHER_KEY", "HOME", &[], "it does not take the key in HOME");
    refused("/v1, ", ", ", &[], "`url` ends in `/v1`");
    refused("/v1, ", "/v1, retries: 0, api: llama_cpp, ", &["--mode", "int8"], "--mode top_k");
    refused(&good, &long.replace("/v1, ", "/v1, api: llama_cpp, "), &[], "--ctx-size 134");
    refused("output: out", "objective: {loss: forward_kl, temperature: 2}\noutput: out", &[], "at 1 alone");
    refused("output: out", "objective: hidden_mse\noutput: out", &[], "no hidden states of layers");
    refused(
        "{config: examples/models/scripture, seed: 1}",
        "{from_teacher: {every: 2}}",
        &[],
        "no layers to take",
    );
    refused(line, "teacher: {url: \"http://127.0.0.1:1/v1\", model: m, retries: 0}", &[], "start the server");
    refused("http://", "http://me:secret@", &[], "holds a name or a password");
    refused("http://", "ftp://", &[], "expected an address");
    refused("TEACHER_KEY", "sk-123-456", &[], "the key itself does not belong here");
    // The same tokenizer with two tokens' ids exchanged, all over.
    sandbox.write("served.yml", &good);
    let path = "examples/models/scripture/tokenizer.json";
    let text = fs::read_to_string(sandbox.path(path)).unwrap();
    let mut tokenizer: serde_json::Value = serde_json::from_str(&text).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let count = vocabulary.len() as u64;
    vocabulary.values_mut().filter(|id| id.as_u64() > Some(300)).for_each(|id| {
        *id = (300 + count - id.as_u64().unwrap()).into();
    });
    sandbox.write(path, tokenizer.to_string());
    let (code, said) = capture(&sandbox, "served.yml", "cache", &[]);
    assert!(code == Some(3) && said.contains("means other tokens by the same ids"), "{said}");
    assert!(!sandbox.path("cache").exists());
}

/// Answers that are none, each after some good ones and at once.
#[test]
fn answers_of_any_kind_are_taken_or_refused() {
    fn after(request: usize, trouble: Trouble) -> Trouble {
        if request < 8 { Trouble::None } else { trouble }
    }
    let fates: [(Fate, &str); 9] = [
        (
            |n| after(n, Trouble::Says("{\"choices\": [{\"index\": 0, \"text\": \"\"}]}")),
            "no `prompt_logprobs`",
        ),
        (|n| after(n, Trouble::Says("{\"choices\": []}")), "0 choices"),
        (
            |n| after(n, Trouble::Says("{\"choices\": [{\"prompt_logprobs\": [null, null]}]}")),
            "speaks of 2 tokens",
        ),
        (|n| after(n, Trouble::Claims("null")), "says nothing of token 1"),
        (|n| after(n, Trouble::Claims("{\"5\": {\"logprob\": 0.0}}")), "1 tokens where 16"),
        (|n| after(n, Trouble::Claims("{\"x\": {\"logprob\": 0.0}}")), "id is no number"),
        (|n| after(n, Trouble::Claims("{\"5\": {\"logprob\": null}}")), "invalid type: null"),
        (|n| after(n, Trouble::Status(503, 0)), "status 503: busy"),
        (
            |n| after(n, Trouble::Says("{\"choices\": [{\"prompt_logprobs\": [[[[[[[[")),
            "expected an object from token ids",
        ),
    ];
    for (fate, reason) in fates {
        let (sandbox, _server) = sandbox(fate, None);
        rewrite(&sandbox, "concurrency: 6", "concurrency: 1, retries: 1");
        let (code, said) = capture(&sandbox, "served.yml", "cache", &[]);
        assert!(
            code == Some(1) && said.contains(reason) && said.contains("run the command again"),
            "{reason}: {said}"
        );
        // What came before is kept.
        assert!(sandbox.names("cache").iter().any(|name| name.ends_with(".partial")), "{reason}");
    }
}
