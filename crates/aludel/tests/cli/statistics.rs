//! Statistics from the command line: collected, described, and merged by.

use snapbox::str;

use crate::sandbox::Sandbox;

const MODELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models");
const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/collected/text.jsonl");

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new(&[]);
    let link = |name: &str| {
        let target = sandbox.path(name);
        std::fs::create_dir_all(&target).unwrap();
        for entry in std::path::Path::new(MODELS).join(name).read_dir().unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, target.join(path.file_name().unwrap())).unwrap();
        }
    };
    ["scripture", "technical"].into_iter().for_each(link);
    sandbox.write("text.jsonl", std::fs::read(TEXT).unwrap());
    sandbox
}

#[test]
fn what_it_takes_is_told_before_it_begins() {
    let sandbox = sandbox();
    let told = ["statistics", "scripture", "--kind", "gram", "--data", "text.jsonl", "--dry-run"];
    sandbox.aludel(&told).assert().code(0).stderr_eq("").stdout_eq(str![[r#"
model   scripture
kind    gram
tokens  310 in 3 pieces of at most 512
passes  1 pass
memory  692.2 kB of sums, beyond the model
output  28 tensors, 888.8 kB

"#]]);
    let small = [&told[..], &["--memory", "200kB", "--window", "40"]].concat();
    sandbox.aludel(&small).assert().code(0).stderr_eq("").stdout_eq(str![[r#"
model   scripture
kind    gram
tokens  310 in 9 pieces of at most 40
passes  4 passes
memory  189.4 kB of sums, beyond the model
output  28 tensors, 888.8 kB

"#]]);
    let json = sandbox.json(&[&told[..], &["--json"]].concat());
    assert_eq!((json["tokens"].as_u64(), json["passes"].as_u64()), (Some(310), Some(1)), "{json}");
    assert_eq!(sandbox.names("."), ["scripture", "technical", "text.jsonl"]);
}

#[test]
fn models_are_merged_by_what_was_collected_of_them() {
    let sandbox = sandbox();
    for (kind, method) in [("gram", "regmean"), ("fisher", "fisher")] {
        for model in ["scripture", "technical"] {
            let output = format!("{kind}-{model}");
            let collect =
                ["statistics", model, &output, "--kind", kind, "--data", "text.jsonl", "--tokens", "200"];
            let assert = sandbox.aludel(&collect).assert().code(0).stdout_eq("");
            if (kind, model) == ("gram", "scripture") {
                assert.stderr_eq(str![[r#"
collecting gram of 28 tensors (888.8 kB) over 200 tokens in 1 pass, 692.2 kB of sums
collected gram of 28 tensors into gram-scripture (888.8 kB) over 200 tokens in [..] tokens/s

"#]]);
            }
        }
        let entry = |model: &str| format!("- {{model: {model}, parameters: {{{kind}: {kind}-{model}}}}}\n");
        let recipe = format!("merge_method: {method}\nmodels:\n{}{}", entry("scripture"), entry("technical"));
        sandbox.write("recipe.yml", recipe);
        sandbox.aludel(&["merge", "recipe.yml", method]).assert().code(0);
        let score = |model: &str| {
            let json = sandbox.json(&["eval", model, "--data", "text.jsonl", "--json"]);
            json["perplexity"].as_f64().unwrap()
        };
        // Between the model that knows such a text and the one that does not.
        let (merged, known, unknown) = (score(method), score("scripture"), score("technical"));
        assert!(known < merged && merged < unknown, "{method}: {known} {merged} {unknown}");
    }
}

#[test]
fn statistics_of_something_else_are_refused() {
    let sandbox = sandbox();
    let collect =
        ["statistics", "scripture", "gram", "--kind", "gram", "--data", "text.jsonl", "--tokens", "50"];
    sandbox.aludel(&collect).assert().code(0);
    let recipe = |method: &str, parameter: &str, model: &str| {
        let recipe = format!(
            "merge_method: {method}\nmodels:\n- {{model: {model}, parameters: {{{parameter}: gram}}}}\n"
        );
        sandbox.write("recipe.yml", recipe);
        sandbox.aludel(&["merge", "recipe.yml", "out", "-q"])
    };
    recipe("fisher", "fisher", "scripture").assert().code(3).stderr_eq(str![[r#"
error: recipe.yml:3:43: models[0].parameters.fisher: `gram` has statistics of the kind `gram`
  hint: collect those of the kind `fisher`
aludel: 1 problem, nothing was written

"#]]);
    // By what the first command has remembered of its model, and by what a merge itself finds.
    recipe("regmean", "gram", "technical").assert().code(1).stderr_eq(str![[r#"
error: `gram` was collected from other weights than those of `technical`: collect it anew with `aludel statistics technical`

"#]]);
    recipe("regmean", "gram", "technical").assert().code(1);
    assert_eq!(sandbox.names("."), ["gram", "recipe.yml", "scripture", "technical", "text.jsonl"]);
    recipe("regmean", "gram", "scripture").assert().code(0);
}

#[test]
fn what_cannot_be_collected_is_refused() {
    let sandbox = sandbox();
    let refused = |more: &[&str]| sandbox.aludel(&[&["statistics", "scripture"], more].concat());
    refused(&["--kind", "gram", "--data", "text.jsonl"]).assert().code(2).stderr_eq(str![[r#"
error: the following required arguments were not provided:
  <OUTPUT>

Usage: aludel statistics --kind <KIND> --data <FILE> <MODEL> <OUTPUT>

For more information, try '--help'.

"#]]);
    let small = ["out", "--kind", "fisher", "--data", "text.jsonl", "--memory", "100kB"];
    refused(&small).assert().code(3).stdout_eq("").stderr_eq(str![[r#"
error: the sums for model.layers.3.input_layernorm.weight and 8 more alone take 1 MiB of memory, and may take 0 MiB
  hint: give it `--memory 1MiB` or more
aludel: 1 problem, nothing was written

"#]]);
    let taken = ["technical", "--kind", "gram", "--data", "text.jsonl"];
    refused(&taken).assert().code(3).stdout_eq("").stderr_eq(str![[r#"
error: technical exists: it is not empty; name another folder or replace this one with `--force`
aludel: 1 problem, nothing was written

"#]]);
    assert_eq!(sandbox.names("."), ["scripture", "technical", "text.jsonl"]);
}
