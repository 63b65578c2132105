//! Differences of models, as text, as JSON and as an exit code.

use snapbox::str;

use crate::sandbox::Sandbox;

#[test]
fn models_that_are_equal_are_answered_by_zero() {
    let sandbox = Sandbox::new(&["a"]);
    sandbox.aludel(&["diff", "models/a", "models/a"]).assert().code(0).stderr_eq("").stdout_eq(str![[r#"
equal: 30 tensors

"#]]);
}

#[test]
fn models_that_differ_are_answered_by_one() {
    let sandbox = Sandbox::new(&["a", "b"]);
    let output = sandbox.process(&["diff", "models/a", "models/b"]).output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(1), Vec::new()));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.ends_with("different: 30 of 30 tensors that both have differ in their values\n"), "{text}");
    let json = sandbox.json(&["diff", "models/a", "models/b", "--json"]);
    assert_eq!((&json["equal"], json["values"].as_array().unwrap().len()), (&false.into(), 30));
    let near = ["diff", "models/a", "models/b", "--tolerance", "100"];
    sandbox.aludel(&near).assert().code(0).stdout_eq(str![[r#"
equal: 30 tensors, 30 of them within the tolerance only

"#]]);
}

#[test]
fn a_conversion_to_the_same_type_is_no_difference_and_one_to_another_is() {
    let sandbox = Sandbox::new(&["a"]);
    sandbox.aludel(&["convert", "models/a", "same", "-q"]).assert().code(0);
    sandbox.aludel(&["diff", "models/a", "same"]).assert().code(0);
    sandbox.aludel(&["convert", "models/a", "other", "--dtype", "bf16", "-q"]).assert().code(0);
    sandbox.aludel(&["diff", "models/a", "other"]).assert().code(1);
    let near = ["diff", "models/a", "other", "--ignore-dtype", "--relative-tolerance", "0.004"];
    sandbox.aludel(&near).assert().code(0);
}

#[test]
fn what_cannot_be_compared_is_no_answer() {
    let sandbox = Sandbox::new(&["a"]);
    sandbox.aludel(&["diff", "models/a", "absent"]).assert().code(3).stdout_eq("").stderr_eq(str![[r#"
error: absent does not exist: give a model folder, a file of weights, or the `owner/name` of a model on a hub
aludel: 1 problem, nothing was written

"#]]);
}
