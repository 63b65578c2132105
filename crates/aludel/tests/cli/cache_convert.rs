//! Caches made of what another tool stored, and rows made of caches: the same rows, the same training, and what is refused.

use std::fs;

use aludel_cache::{Cache, Set, SparseRows};
use aludel_model::Tokenizer;
use serde_json::{Value, json};
use snapbox::str;

use crate::cache::{kill_often, losses, sparse};
use crate::distill::short;
use crate::sandbox::Sandbox;

/// Rows of 65 tokens in `tokens/`, a run over them, and what its teacher says of them in `rows/`: 16 tokens of each position, as plain rows.
fn sandbox() -> Sandbox {
    let sandbox = short("");
    let tokenizer = Tokenizer::open(&sandbox.path("examples/models/scripture")).unwrap();
    for set in ["train", "heldout"] {
        let text = fs::read_to_string(sandbox.path(&format!("examples/data/genesis-{set}.jsonl"))).unwrap();
        let mut lines = String::new();
        for line in text.lines() {
            let row: Value = serde_json::from_str(line).unwrap();
            let ids = tokenizer.encode_plain(row["text"].as_str().unwrap()).unwrap().ids;
            for ids in ids.chunks(65).filter(|ids| ids.len() > 1) {
                lines.push_str(&format!("{}\n", json!({ "input_ids": ids })));
            }
        }
        sandbox.write(&format!("tokens/{set}.jsonl"), lines);
    }
    let text = fs::read_to_string(sandbox.path("run.yml")).unwrap();
    let text = text.replace("examples/data/genesis-", "tokens/");
    let student = "{config: examples/models/scripture, seed: 1}";
    let text = text
        .replace("{from_teacher: {layers: [0, 3]}}", student)
        .replace("out\n", "out\nobjective: forward_kl\n");
    sandbox.write("run.yml", &text);
    let trained = text.replace("teacher: examples/models/scripture", "teacher: {cache: converted}");
    sandbox.write("cached.yml", trained.replace("output: out\n", "output: out-cached\n"));
    sandbox.aludel(&["cache", "capture", "run.yml", "cache", "--k", "16"]).assert().code(0);
    let cache = Cache::open(&sandbox.path("cache")).unwrap();
    for (set, name) in [(Set::Train, "train"), (Set::Validation, "heldout")] {
        let tokens = fs::read_to_string(sandbox.path(&format!("tokens/{name}.jsonl"))).unwrap();
        let rows = sparse(&cache).into_iter().filter(|(id, _)| id.set == set);
        let lines: Vec<String> =
            tokens.lines().zip(rows).map(|(line, (_, rows))| plain(line, &rows)).collect();
        assert_eq!(lines.len(), tokens.lines().count());
        sandbox.write(&format!("rows/{name}.jsonl"), lines.join("\n"));
    }
    sandbox
}

/// A line of tokens with the likeliest of each position, the least likely first.
fn plain(line: &str, rows: &SparseRows) -> String {
    let mut row: Value = serde_json::from_str(line).unwrap();
    let list = |at: usize| {
        let mut known: Vec<usize> = rows.range(at).collect();
        known.sort_by(|a, b| rows.log_p[*a].total_cmp(&rows.log_p[*b]));
        known
    };
    let ids: Vec<Vec<u32>> =
        (0..rows.len()).map(|at| list(at).iter().map(|at| rows.ids[*at]).collect()).collect();
    let values: Vec<Vec<f32>> =
        (0..rows.len()).map(|at| list(at).iter().map(|at| rows.log_p[*at]).collect()).collect();
    row["token_ids"] = json!(ids);
    row["log_probs"] = json!(values);
    row.to_string()
}

#[test]
fn plain_rows_become_the_cache_that_a_capture_writes_and_train_as_it_does() {
    let sandbox = sandbox();
    let convert = ["cache", "convert", "rows", "converted", "--run", "cached.yml"];
    sandbox.aludel(&convert).assert().code(0).stdout_eq("").stderr_eq(str![[r#"
converted 24676 tokens in 395 records into converted in [..]

"#]]);
    let (captured, converted) =
        (Cache::open(&sandbox.path("cache")).unwrap(), Cache::open(&sandbox.path("converted")).unwrap());
    assert_eq!(converted.header().data, captured.header().data);
    assert_eq!(converted.header().tokenizer, captured.header().tokenizer);
    assert_eq!(converted.header().teacher.name, "unknown, from rows");
    for ((id, own), (other, captured)) in sparse(&converted).into_iter().zip(sparse(&captured)) {
        assert_eq!((id, &own.ids, &own.ends), (other, &captured.ids, &captured.ends));
        // A level is a step of 1/352 in the root of a probability.
        let root = |log_p: &f32| (log_p / 2.0).exp();
        let near = |(x, y): (&f32, &f32)| (root(x) - root(y)).abs() < 1.1 / 352.0;
        assert!(own.log_p.iter().zip(&captured.log_p).all(near), "{id}");
        assert!(own.tails.iter().zip(&captured.tails).all(|(x, y)| (x - y).abs() < 0.01), "{id}");
    }
    sandbox.aludel(&["distill", "cached.yml"]).assert().code(0);
    let (from_converted, kl) = losses(&sandbox, "out-cached");
    let text = fs::read_to_string(sandbox.path("cached.yml")).unwrap();
    sandbox.write("cached.yml", text.replace("{cache: converted}", "{cache: cache}"));
    sandbox.aludel(&["distill", "cached.yml", "--force"]).assert().code(0);
    let (from_captured, captured_kl) = losses(&sandbox, "out-cached");
    assert_eq!(from_converted.len(), 12);
    let off = from_converted.iter().zip(&from_captured).map(|(x, y)| (x - y).abs() / y).fold(0.0, f64::max);
    assert!(off < 2e-3 && (kl - captured_kl).abs() < 2e-3 * captured_kl, "{off} {kl} {captured_kl}");
}

#[test]
fn rows_are_their_own_data_and_a_teacher_is_named() {
    let sandbox = sandbox();
    let text = fs::read_to_string(sandbox.path("cached.yml")).unwrap();
    let own = text.replace(
        "train: tokens/train.jsonl\n  validation: tokens/heldout.jsonl",
        "train: rows/train.jsonl\n  validation: 0.1",
    );
    assert_ne!(own, text);
    sandbox.write("own.yml", own);
    let convert = ["cache", "convert", "rows/train.jsonl", "converted", "--run", "own.yml", "--k", "4"];
    sandbox.aludel(&[&convert[..], &["--teacher", "examples/models/scripture"]].concat()).assert().code(0);
    let info = sandbox.json(&["cache", "info", "converted", "--json"]);
    assert_eq!(info["header"]["contents"]["top_k"]["k"], 4);
    assert_eq!(info["header"]["teacher"]["weights"][0]["file"], "model.safetensors");
    assert_eq!(info["header"]["data"]["validation"], 0.1);
    let cache = Cache::open(&sandbox.path("converted")).unwrap();
    assert!(
        cache.ids().any(|id| id.set == Set::Validation)
            && sparse(&cache).values().all(|rows| rows.ids.len() == 4 * rows.len())
    );
    sandbox.aludel(&["distill", "own.yml"]).assert().code(0);
    assert_eq!(losses(&sandbox, "out-cached").0.len(), 12);
}

#[test]
fn a_killed_conversion_goes_on_to_the_same_bytes() {
    let sandbox = sandbox();
    let flags = ["--run", "cached.yml", "--shard-size", "20KiB", "--no-sync"];
    sandbox.aludel(&[&["cache", "convert", "rows", "whole"], &flags[..]].concat()).assert().code(0);
    let bytes = Cache::open(&sandbox.path("whole")).unwrap().bytes();
    kill_often(
        &sandbox,
        &[&["cache", "convert", "rows", "converted"], &flags[..]].concat(),
        "converted",
        bytes,
        6,
    );
    assert_eq!(sandbox.contents("converted"), sandbox.contents("whole"));
    for part in ["2/2", "1/2"] {
        let parts = ["cache", "convert", "rows", "parts", "--run", "cached.yml", "--part", part];
        sandbox.aludel(&parts).assert().code(0);
    }
    let (parts, whole) =
        (Cache::open(&sandbox.path("parts")).unwrap(), Cache::open(&sandbox.path("whole")).unwrap());
    assert_eq!(sparse(&parts), sparse(&whole));
}

#[test]
fn rows_that_do_not_fit_the_run_are_refused_with_the_reason() {
    let sandbox = sandbox();
    let text = fs::read_to_string(sandbox.path("cached.yml")).unwrap();
    let rows = fs::read_to_string(sandbox.path("rows/train.jsonl")).unwrap();
    let refused = |run: &str, rows: &str, flags: &[&str]| {
        sandbox.write("other.yml", run);
        sandbox.write("other.jsonl", rows);
        let _ = fs::remove_dir_all(sandbox.path("other"));
        let convert = ["cache", "convert", "other.jsonl", "other", "--run", "other.yml"];
        let output = sandbox.process(&[&convert[..], flags].concat()).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let train = text.replace("  validation: tokens/heldout.jsonl\n", "").replace(", evaluate_every: 5", "");
    let short = train.replace("sequence_length: 64", "sequence_length: 32");
    let warm = train.replace("objective: forward_kl", "objective: {loss: forward_kl, temperature: 2}");
    let second = rows.lines().nth(1).unwrap();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut row: Value = serde_json::from_str(second).unwrap();
        change(&mut row);
        rows.replace(second, &row.to_string())
    };
    let swapped = rows.lines().rev().collect::<Vec<_>>().join("\n");
    let missing = rows.replace("\"log_probs\"", "\"log_q\"");
    let positive = changed(&|row| row["log_probs"][3][0] = json!(1.5));
    let beyond = changed(&|row| row["token_ids"][3][0] = json!(512));
    let fewer = changed(&|row| row["token_ids"][3] = json!([1]));
    let short_row = changed(&|row| {
        row["log_probs"].as_array_mut().unwrap().pop();
        row["token_ids"].as_array_mut().unwrap().pop();
    });
    for (run, rows, flags, code, reason) in [
        (
            &train,
            &missing,
            &[][..],
            3,
            "the rows have no `log_probs`; their columns are `input_ids`, `token_ids`, `log_q`",
        ),
        (&train, &positive, &[], 1, "other.jsonl:2: token 3: the log-probability of token "),
        (
            &train,
            &beyond,
            &[],
            1,
            "other.jsonl:2: token 3: token 512 is not below the vocabulary, 512 (`--vocabulary` sets it)",
        ),
        (&train, &fewer, &[], 1, "other.jsonl:2: token 3: 1 ids beside 16 log-probabilities"),
        (
            &train,
            &short_row,
            &[],
            1,
            "other.jsonl:2: it says nothing of token 63, only of 63, and the one after is learned",
        ),
        (
            &train,
            &swapped,
            &[],
            3,
            "other.jsonl has no row with the tokens of training row 1 from token 0 of the run's data",
        ),
        (&short, &rows, &[], 1, "raise `sequence_length`"),
        (&warm, &rows, &[], 3, "a term has temperature 2"),
        (&train, &rows, &["--k", "0"], 3, "k is 0, and the vocabulary has 512 tokens"),
        (&train, &rows, &["--vocabulary", "8"], 3, "k is 16, and the vocabulary has 8 tokens"),
        (&text, &rows, &[], 3, "has no row with the tokens of validation row 0"),
    ] {
        let (got, said) = refused(run, rows, flags);
        assert!(said.contains(reason), "{reason}: {said}");
        assert_eq!(got, code, "{said}");
    }
}

#[test]
fn every_kind_of_cache_becomes_rows_and_a_cache_again() {
    let sandbox = sandbox();
    for (mode, flags) in [("top_k", &["--k", "8"][..]), ("sampled", &[]), ("int8", &[]), ("int4", &[])] {
        let (cache, rows, again) =
            (format!("{mode}-cache"), format!("{mode}.parquet"), format!("{mode}-again"));
        let capture = ["cache", "capture", "run.yml", &cache, "--mode", mode];
        sandbox.aludel(&[&capture[..], flags].concat()).assert().code(0);
        let exported = sandbox.json(&["cache", "convert", &cache, &rows, "--json"]);
        assert_eq!((&exported["records"], &exported["targets"]), (&json!(395), &json!(24676)), "{exported}");
        let restored = sandbox.json(&["cache", "convert", &rows, &again, "--json"]);
        assert_eq!((&restored["records"], &restored["targets"]), (&json!(395), &json!(24676)), "{restored}");
        let open = |name: &str| Cache::open(&sandbox.path(name)).unwrap();
        let (cache, again) = (open(&cache), open(&again));
        assert_eq!(cache.header(), again.header());
        for id in cache.ids().filter(|_| mode != "top_k") {
            assert_eq!(cache.record(id).unwrap().rows().unwrap(), again.record(id).unwrap().rows().unwrap());
        }
    }
    // What came back fits the run that it was captured by.
    let text = fs::read_to_string(sandbox.path("cached.yml")).unwrap();
    sandbox.write("cached.yml", text.replace("{cache: converted}", "{cache: top_k-again}"));
    sandbox.aludel(&["distill", "cached.yml"]).assert().code(0);
}

#[test]
fn rows_for_distillkit_have_the_tokens_of_the_run_and_are_read_as_they_were() {
    let sandbox = sandbox();
    let export = ["cache", "convert", "cache", "rows.parquet", "--to", "distillkit"];
    sandbox.aludel(&export).assert().code(3).stderr_eq(str![[r#"
error: a cache has no tokens, and DistillKit reads them beside their rows
  hint: give the run that the cache is of by `--run`
aludel: 1 problem, nothing was written

"#]]);
    let export = [&export[..], &["--run", "run.yml"]].concat();
    sandbox.aludel(&export).assert().code(0).stdout_eq("").stderr_eq(str![[r#"
wrote 24676 tokens in 395 rows to rows.parquet, [..], in [..]

"#]]);
    sandbox.aludel(&export).assert().code(3).stderr_eq(str![[r#"
error: rows.parquet exists
  hint: give another name, or `--force` to replace a file
aludel: 1 problem, nothing was written

"#]]);
    sandbox
        .aludel(&["cache", "convert", "rows.parquet", "converted", "--run", "cached.yml"])
        .assert()
        .code(0);
    let (cache, converted) =
        (Cache::open(&sandbox.path("cache")).unwrap(), Cache::open(&sandbox.path("converted")).unwrap());
    for ((id, one), (other, again)) in sparse(&cache).into_iter().zip(sparse(&converted)) {
        assert_eq!((id, &one.ids, &one.ends), (other, &again.ids, &again.ends));
    }
    // Whoever may read any new file may read these.
    let permissions = |name: &str| fs::metadata(sandbox.path(name)).unwrap().permissions();
    assert_eq!(permissions("rows.parquet"), permissions("run.yml"));
    assert_eq!(permissions("cache/cache.json"), permissions("run.yml"));
    // Rows with their tokens are data by themselves.
    sandbox.aludel(&["cache", "convert", "cache", "whole.parquet", "--run", "run.yml"]).assert().code(0);
    let text = fs::read_to_string(sandbox.path("run.yml")).unwrap();
    sandbox.write(
        "own.yml",
        text.replace(
            "train: tokens/train.jsonl\n  validation: tokens/heldout.jsonl",
            "train: whole.parquet\n  validation: 0.1",
        ),
    );
    sandbox.aludel(&["distill", "own.yml"]).assert().code(0);
}

#[test]
fn what_cannot_be_converted_is_refused_with_the_way_there() {
    let sandbox = Sandbox::new(&[]);
    sandbox.write("rows.jsonl", "{}\n");
    for (arguments, reason) in [
        (&["rows.jsonl", "out"][..], "give the run that is to be trained from the cache by `--run`"),
        (
            &["rows.jsonl", "out.parquet", "--to", "parquet"],
            "rows.jsonl is no teacher cache, and `--to` asks for the rows of one",
        ),
    ] {
        let output = sandbox.process(&[&["cache", "convert"], arguments].concat()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(3) && said.contains(reason), "{said}");
    }
}
