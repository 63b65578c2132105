//! Arbitrary and hostile text: never a panic, never memory without bound, always a place.

use proptest::prelude::*;

use super::SPECS;
use crate::problem::Problems;
use crate::recipe::Recipe;

/// Pieces from which text close to recipes is put together.
const PIECES: &[&str] = &[
    "merge_method",
    "models",
    "slices",
    "modules",
    "name",
    "sources",
    "layer_range",
    "[0, 2]",
    "model",
    "parameters",
    "weight",
    "filter",
    "value",
    "base_model",
    "dtype",
    "<<",
    ": ",
    ":\n  ",
    "\n",
    "\n- ",
    "\n  ",
    "\n    - ",
    "{",
    "}",
    "[",
    "]",
    ", ",
    "&a ",
    "*a",
    "!!str ",
    "!x ",
    "? ",
    "| ",
    "> ",
    "'",
    "\"",
    "#",
    "---\n",
    "...\n",
    "%YAML 1.2\n",
    "null",
    "~",
    "1e999",
    ".nan",
    "-0.5",
    "true",
    "a",
    "\t",
    "\u{feff}",
    "é",
    "\0",
];

/// Every problem has a place inside the text or just after it.
fn check(text: &str) -> Result<(), TestCaseError> {
    let problems = match Recipe::parse(text) {
        Ok(recipe) => recipe.check_parameters(SPECS),
        Err(problems) => {
            prop_assert!(!problems.is_empty());
            problems
        }
    };
    let lines = text.chars().filter(|&character| character == '\n' || character == '\r').count() + 1;
    for problem in &problems {
        let place = problem.place.as_ref().expect("a problem of a recipe has a place");
        prop_assert!((1..=lines + 1).contains(&place.line) && place.column >= 1, "{problem} in {text:?}");
        prop_assert!(!problem.to_string().contains(|character: char| character.is_control()));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_text_is_a_recipe_or_has_problems(text in "\\PC{0,60}") {
        check(&text)?;
    }

    #[test]
    fn any_mixture_of_recipe_parts_is_a_recipe_or_has_problems(pieces in prop::collection::vec(prop::sample::select(PIECES), 0..40)) {
        check(&pieces.concat())?;
    }
}

fn only_problem(text: &str) -> String {
    let problems: Problems = Recipe::parse(text).unwrap_err();
    assert_eq!(problems.count(), 1, "{problems}");
    problems.to_string()
}

#[test]
fn nesting_is_bounded() {
    let problem = only_problem(&"- ".repeat(100_000));
    assert!(problem.ends_with("[0]: nested deeper than 64 levels"), "{problem}");
    assert!(only_problem(&"[".repeat(100_000)).contains("recursion limit exceeded"));
}

#[test]
fn size_is_bounded() {
    assert_eq!(
        only_problem(&" ".repeat((1 << 20) + 1)),
        "1:1: the recipe has 1048577 bytes; at most 1048576 are read"
    );
}

#[test]
fn aliases_of_aliases_are_bounded() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..30 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    assert!(only_problem(&text).ends_with("the recipe takes more than 64 MiB with its aliases expanded"));
}

#[test]
fn aliases_of_long_text_are_bounded() {
    let text = format!("a: &a {}\nb: [{}]\n", "x".repeat(500_000), "*a, ".repeat(1000));
    assert!(only_problem(&text).ends_with("the recipe takes more than 64 MiB with its aliases expanded"));
}

#[test]
fn an_alias_of_what_holds_it_is_refused() {
    assert_eq!(
        only_problem("a: &a [1, *a]"),
        "1:11 a[1]: this alias stands inside the value that it repeats"
    );
}

#[test]
fn complaints_are_bounded() {
    let problems = Recipe::parse(&"a: 1\n".repeat(50_000)).unwrap_err();
    assert_eq!((problems.iter().len(), problems.count()), (Problems::LIMIT, 50_002));
}
