//! Evaluation and generation from the command line.

use std::path::Path;

use snapbox::str;

use crate::sandbox::Sandbox;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/scripture");
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/genesis-heldout.jsonl");

fn generate(arguments: &[&str]) -> String {
    let all = [&["generate", MODEL, "-p", "And God said"], arguments].concat();
    let output = Sandbox::new(&[]).process(&all).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn generated_text_is_the_same_for_a_seed_and_any_threads() {
    let sampled = |seed, threads| {
        generate(&[
            "--max-tokens",
            "30",
            "--temperature",
            "0.9",
            "--top-k",
            "50",
            "--seed",
            seed,
            "--threads",
            threads,
        ])
    };
    assert_eq!(sampled("1", "1"), sampled("1", "3"));
    assert_ne!(sampled("1", "1"), sampled("2", "1"));
    let greedy = generate(&["--max-tokens", "12"]);
    assert!(greedy.ends_with('\n') && greedy.len() > 12, "{greedy:?}");
    let json =
        Sandbox::new(&[]).json(&["generate", MODEL, "-p", "And God said", "--max-tokens", "12", "--json"]);
    assert_eq!(json["text"].as_str().unwrap(), greedy.trim_end_matches('\n'));
    assert_eq!(json["tokens"], 12);
}

#[test]
fn a_model_without_a_chat_template_is_no_chat_partner() {
    let sandbox = Sandbox::new(&[]);
    let chat = sandbox.aludel(&["generate", MODEL, "-p", "Hello", "--chat"]);
    chat.assert().code(3).stdout_eq("").stderr_eq(str![[r#"
error: [..]/examples/models/scripture has no chat template
  hint: leave out --chat
aludel: 1 problem, nothing was written

"#]]);
}

#[test]
fn an_evaluation_is_a_table_and_does_not_depend_on_how_it_is_cut() {
    let sandbox = Sandbox::new(&[]);
    let eval = |window: &str, stride: &str| {
        sandbox.json(&["eval", MODEL, "--data", DATA, "--window", window, "--stride", stride, "--json"])
    };
    let (short, long) = (eval("16", "8"), eval("256", "128"));
    assert_eq!(short["tokens"], long["tokens"]);
    assert!(short["perplexity"].as_f64().unwrap() > long["perplexity"].as_f64().unwrap(), "{short} {long}");
    let table = sandbox.aludel(&["eval", MODEL, "--data", DATA, "--against", MODEL]);
    table.assert().code(0).stderr_eq("").stdout_eq(str![[r#"
model               [..]/examples/models/scripture
tokens              [..] of 4 documents
window              512 tokens, every 256
cross-entropy       3.2551 nats a token
perplexity          25.923
token accuracy      29.47 %
against             [..]/examples/models/scripture
KL(against, model)  0.0000 nats a token
KL(model, against)  0.0000 nats a token
top-1 agreement     100.00 %

"#]]);
}

#[test]
fn what_cannot_be_read_is_refused() {
    let sandbox = Sandbox::new(&[]);
    sandbox.aludel(&["eval", "nowhere", "--data", DATA]).assert().code(3).stdout_eq("").stderr_eq(str![[
        r#"
error: nowhere does not exist[..]
aludel: 1 problem, nothing was written

"#
    ]]);
    sandbox.aludel(&["eval", MODEL, "--data", "data.csv"]).assert().code(3).stdout_eq("").stderr_eq(str![[
        r#"
error: the name of the text `data.csv` does not say what it holds
  hint: data files end in `.jsonl`, `.ndjson`, `.parquet` or `.txt`
aludel: 1 problem, nothing was written

"#
    ]]);
    assert!(Path::new(DATA).is_file());
}
