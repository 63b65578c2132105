//! Reads arbitrary text: a tree or problems, never a panic, and what messages call the document is the caller's word.

use aludel_document::{Cursor, Problems, Scalar, tree};
use proptest::prelude::*;

/// Everything that a cursor reaches has a place in the text, and scalars read or say why not.
fn walk(cursor: &Cursor<'_>, lines: usize) -> Result<(), TestCaseError> {
    prop_assert!((1..=lines + 1).contains(&cursor.place().line));
    let _ = cursor.scalar();
    for item in cursor.items().unwrap_or_default() {
        walk(&item, lines)?;
    }
    for (_, _, value) in cursor.entries().unwrap_or_default() {
        walk(&value, lines)?;
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_text_is_a_tree_or_has_problems(text in "[a-c0-9:\\-\\n \\[\\]{},&*'\"#~.e_]{0,80}") {
        let mut problems = Problems::new();
        match tree::read(&text, "thing", &mut problems) {
            Some(node) => walk(&Cursor::root(&node), text.lines().count() + 1)?,
            None => prop_assert!(!problems.is_empty()),
        }
    }
}

#[test]
fn messages_use_the_noun_of_the_caller() {
    for (text, message) in [
        ("", "1:1: the run is empty"),
        (
            "--- a\n--- b\n",
            "2:1: several runs in one file are not supported by this version yet (keep one run per file)",
        ),
        ("!x a", "1:1: the tag `!x` has no meaning in a run (remove it)"),
    ] {
        let mut problems = Problems::new();
        tree::read(text, "run", &mut problems);
        assert_eq!(problems.to_string(), message, "{text}");
    }
}

#[test]
fn scalars_keep_their_meaning() {
    let mut problems = Problems::new();
    let text = "[1e-4, 0.03, 1_000, yes, 'yes', \"2\", -.5, .inf, 010, ~]";
    let node = tree::read(text, "run", &mut problems).unwrap();
    assert!(problems.is_empty());
    let values: Vec<Result<Scalar, String>> = Cursor::root(&node)
        .items()
        .unwrap()
        .iter()
        .map(|item| item.scalar().map_err(|problem| problem.message))
        .collect();
    let number = |number| Ok(Scalar::Number(number));
    assert_eq!(
        values[..7],
        [
            number(1e-4),
            number(0.03),
            number(1000.0),
            Ok(Scalar::Bool(true)),
            Ok(Scalar::Text("yes".into())),
            number(2.0),
            number(-0.5),
        ]
    );
    let refused: Vec<&str> = values[7..].iter().map(|value| value.as_ref().unwrap_err().as_str()).collect();
    assert_eq!(
        refused,
        [
            "`.inf` is not a finite number",
            "`010` is octal to some YAML readers and decimal to others",
            "expected a value, found nothing",
        ]
    );
}
