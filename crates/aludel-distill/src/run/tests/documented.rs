//! Holds the reference of run.yml to what is read.

use aludel_document::Key;

use crate::run::{Run, data, objective, read, train};

fn reference() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/distil-run.md");
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn the_example_of_the_reference_is_a_run() {
    let reference = reference();
    let example = reference.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let run = Run::parse(example).unwrap();
    assert_eq!((run.objective.terms.len(), run.train.evaluate_every), (2, Some(100)));
}

#[test]
fn the_reference_names_every_key_and_loss() {
    let reference = reference();
    let named = |word: &str| {
        ["`", ".", "` or `"].iter().any(|before| {
            [":", "`", "."].iter().any(|after| reference.contains(&format!("{before}{word}{after}")))
        })
    };
    let sections: [&[&[Key]]; 4] = [&read::ALL_KEYS, &data::ALL_KEYS, &objective::ALL_KEYS, &train::ALL_KEYS];
    let keys = sections.into_iter().flatten().copied().flatten().map(|key| key.name);
    let absent: Vec<&str> = keys.chain(objective::names()).filter(|word| !named(word)).collect();
    assert_eq!(absent, [""; 0]);
}
