//! Merges of mixtures whose experts are put in one order: what is said of them, and how such runs survive.

use std::process::Stdio;

use serde_json::json;
use snapbox::str;

use crate::sandbox::Sandbox;
use crate::weights::{Tensor, noise, write_model};

const EXPERTS: usize = 4;
const ORDERS: [[usize; EXPERTS]; 2] = [[2, 0, 1, 3], [0, 1, 3, 2]];

/// Two mixtures whose experts have so many tensors, the second the first with the experts of each layer in another order.
fn models(parts: usize) -> Sandbox {
    let (rows, columns) = (6, 10);
    let sandbox = Sandbox::new(&[]);
    for (model, is_moved) in [("models/a", false), ("models/b", true)] {
        let mut tensors: Vec<(String, [u64; 2])> = Vec::new();
        let mut data = Vec::new();
        for (layer, order) in ORDERS.into_iter().enumerate() {
            let order = if is_moved { order } else { [0, 1, 2, 3] };
            for part in 0..parts {
                for (place, expert) in order.into_iter().enumerate() {
                    tensors.push((format!("layers.{layer}.moe.experts.{place}.w{part}"), [rows, columns]));
                    data.extend(noise(rows * columns, (1000 * layer + 10 * part + expert) as u64));
                }
            }
            tensors.push((format!("layers.{layer}.moe.gate.weight"), [EXPERTS as u64, columns]));
            let router =
                order.into_iter().flat_map(|expert| noise(columns, 5000 + (10 * layer + expert) as u64));
            data.extend(router);
        }
        let tensors: Vec<Tensor<'_>> =
            tensors.iter().map(|(name, shape)| (name.as_str(), "BF16", shape.as_slice())).collect();
        write_model(&sandbox, model, &tensors, &data);
    }
    sandbox.write(
        "r.yml",
        "merge_method: linear\nalign_experts: true\nmodels:\n  - {model: models/a}\n  - {model: models/b}\nparameters: {weight: 0.5}\ndtype: bfloat16\n",
    );
    sandbox
}

#[test]
fn plan_report_and_card_say_what_became_of_the_experts() {
    let sandbox = models(2);
    sandbox.aludel(&["plan", "r.yml", "--threads", "2"]).assert().code(0).stdout_eq(str![[r#"
method   linear
model    models/a (18 tensors, 3.6 kB)
model    models/b (18 tensors, 3.6 kB)
output   18 tensors in 1 file(s), 0 side file(s)
passes   1 over 18 tensors
aligned  the experts of models/b in 2 layer(s), in the order of those of models/a
read     8.3 kB in all passes
write    3.7 kB
memory   [..] at the most, 2 threads, tiles of 262144 elements

"#]]);
    sandbox.aludel(&["merge", "r.yml", "out"]).assert().code(0).stdout_eq("").stderr_eq(str![[r#"
merging 2 models by linear into out: 8.3 kB to read, 3.7 kB to write
put the experts of models/b in the order of those of models/a: 5 of 8 moved
merged 2 models into out (3.7 kB) in [..]

"#]]);
    let card = String::from_utf8(std::fs::read(sandbox.path("out/README.md")).unwrap()).unwrap();
    let row = "| models/b | models/a | layers.0.moe | 0.";
    assert!(card.contains(row) && card.contains(", 1.0000 | 1 2 0 3 |"), "{card}");
    let report = sandbox.json(&["merge", "r.yml", "out", "--json", "--force"]);
    assert_eq!(report["aligned"][0]["order"], json!([1, 2, 0, 3]));
    assert_eq!(report["aligned"][1]["order"], json!([0, 1, 3, 2]));
    assert_eq!(report["aligned"][1]["experts"], "layers.1.moe");
    // What is averaged with itself is itself.
    let difference = sandbox.json(&["diff", "models/a", "out", "--json"]);
    assert_eq!((&difference["compared"], &difference["values"]), (&json!(18), &json!([])), "{difference}");
}

#[test]
fn parts_join_to_the_whole_and_each_reads_the_experts_of_its_layers() {
    let sandbox = models(2);
    sandbox.aludel(&["merge", "r.yml", "whole", "--shard-size", "1100", "-q"]).assert().code(0);
    for part in ["2/2", "1/2"] {
        let report =
            sandbox.json(&["merge", "r.yml", "out", "--shard-size", "1100", "--json", "--part", part]);
        assert_eq!(report["aligned"].as_array().unwrap().len(), 1, "a layer to a file: {report}");
    }
    sandbox.aludel(&["join", "out", "-q"]).assert().code(0);
    assert_eq!(sandbox.contents("out"), sandbox.contents("whole"));
}

#[test]
fn a_merge_that_was_killed_goes_on_with_the_same_order() {
    let sandbox = models(60);
    sandbox.aludel(&["merge", "r.yml", "whole", "-q"]).assert().code(0);
    let merge = || {
        let mut command = sandbox.process(&["merge", "r.yml", "out", "--resume", "-q", "--threads", "1"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let mut is_done = false;
    for _ in 0..200 {
        let mut run = merge().spawn().unwrap();
        // Killed once it has written a tensor, which it then goes on with.
        while run.try_wait().unwrap().is_none() {
            let left = sandbox.names(".").into_iter().find(|name| name.starts_with(".out.partial-"));
            let journal = left.and_then(|left| std::fs::read(sandbox.path(&left).join(".journal")).ok());
            if journal.is_some_and(|lines| lines.iter().filter(|&&byte| byte == b'\n').count() > 4) {
                run.kill().unwrap();
            }
        }
        is_done = !sandbox.path("out").exists();
        if is_done {
            break;
        }
        std::fs::remove_dir_all(sandbox.path("out")).unwrap();
    }
    assert!(is_done, "no run was killed midway");
    let report = sandbox.json(&["merge", "r.yml", "out", "--resume", "--json"]);
    assert!(report["tensors_resumed"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["aligned"].as_array().unwrap().len(), 2);
    assert_eq!(sandbox.contents("out"), sandbox.contents("whole"));
}
