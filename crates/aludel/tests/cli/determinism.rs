//! The same bytes for any number of threads and any tile.

use crate::sandbox::Sandbox;
use crate::weights::{noise, write_model};

/// Rows and tiles that end in the middle of everything: 41 x 12,710 is 7.95 chunks, 1,271 is less than one.
const TENSORS: &[(&str, &str, &[u64])] = &[
    ("model.embed_tokens.weight", "BF16", &[41, 12_710]),
    ("model.layers.0.mlp.weight", "BF16", &[401, 1_271]),
    ("model.layers.0.norm.weight", "BF16", &[1_271]),
];

/// Each method with the parameters of a member and of the merge.
const METHODS: &[(&str, &str, &str)] = &[
    ("linear", "{weight: 0.7}", "{}"),
    ("slerp", "{}", "{t: 0.3}"),
    ("ties", "{weight: 0.7, density: 0.4}", "{}"),
    ("dare_ties", "{weight: 0.7, density: 0.4}", "{}"),
    ("breadcrumbs", "{weight: 0.7, density: 0.8, gamma: 0.05}", "{}"),
    ("model_stock", "{}", "{}"),
];

fn recipe(method: &str, of_member: &str, of_merge: &str) -> String {
    let members = if method == "slerp" { &["base", "a"][..] } else { &["a", "b"] };
    let base = if method == "linear" { "" } else { "base_model: models/base\n" };
    let member = |name: &&str| format!("  - {{model: models/{name}, parameters: {of_member}}}\n");
    let models: String = members.iter().map(member).collect();
    format!("merge_method: {method}\n{base}models:\n{models}parameters: {of_merge}\ndtype: bfloat16\n")
}

#[test]
fn threads_and_tiles_do_not_change_a_byte() {
    let sandbox = Sandbox::new(&[]);
    let elements = TENSORS.iter().map(|(_, _, shape)| shape.iter().product::<u64>()).sum();
    for (seed, model) in ["models/base", "models/a", "models/b"].into_iter().enumerate() {
        write_model(&sandbox, model, TENSORS, &noise(elements, seed as u64 + 1));
    }
    for (method, of_member, of_merge) in METHODS {
        sandbox.write("r.yml", recipe(method, of_member, of_merge));
        let mut first = None;
        for (threads, tile) in
            [("1", "65536"), ("2", "131072"), ("7", "262144"), ("1", "262144"), ("7", "65536")]
        {
            let report = sandbox.json(&[
                "merge",
                "r.yml",
                "out",
                "--force",
                "--no-sync",
                "--seed",
                "9",
                "--json",
                "--threads",
                threads,
                "--tile",
                tile,
            ]);
            assert_eq!(report["threads"].to_string(), threads, "the memory has to suffice: {report}");
            let contents = sandbox.contents("out");
            let expected = first.get_or_insert_with(|| contents.clone());
            assert!(contents == *expected, "{method} with {threads} threads and tiles of {tile}");
        }
    }
}

#[test]
fn another_seed_gives_another_mask() {
    let sandbox = Sandbox::new(&["base", "a"]);
    let recipe = "\
merge_method: dare_linear
base_model: models/base
models:
  - {model: models/a, parameters: {weight: 1, density: 0.5}}
";
    sandbox.write("r.yml", recipe);
    let weights = |seed: &str| {
        sandbox.aludel(&["merge", "r.yml", "out", "--force", "-q", "--random-seed", seed]).assert().code(0);
        std::fs::read(sandbox.path("out/model.safetensors")).unwrap()
    };
    let (first, second, again) = (weights("1"), weights("2"), weights("1"));
    assert_eq!(first, again);
    assert_ne!(first, second);
}
