//! Arbitrary and hostile text: never a panic, always a place, and what is accepted can be recorded.

use proptest::prelude::*;

use crate::run::Run;

/// Pieces from which text close to runs is put together.
const PIECES: &[&str] = &[
    "teacher: t\n",
    "student: s\n",
    "student: {from_teacher: {every: 2}}\n",
    "output: o\n",
    "data: {train: a.jsonl}\n",
    "data:\n  train: [a.txt]\n  validation: ",
    "objective:\n",
    "  - loss: ",
    "    weight: ",
    "    layers: ",
    "    temperature: ",
    "forward_kl\n",
    "jsd\n",
    "hidden_mse\n",
    "{0: 1, 1: 3}\n",
    "taid: ",
    "{variant: mixture, start: ",
    "train:\n",
    "  steps: ",
    "  warmup: ",
    "  betas: ",
    "  lora: ",
    "  checkpointing: ",
    "  clip: ",
    "1e-4\n",
    "1e400\n",
    "-1\n",
    "3%\n",
    "0.5\n",
    "1e18\n",
    "[0.9, 0.95]\n",
    "every-3\n",
    "none\n",
    "~\n",
    "\n",
    "{",
    "}",
    "[",
    "]",
    ", ",
    "&a ",
    "*a",
    "<<: ",
    "é",
    "\0",
    "\u{1b}",
];

fn check(text: &str) -> Result<(), TestCaseError> {
    match Run::parse(text) {
        Ok(run) => {
            let json = run.to_json().map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert_eq!(run.differences(&json).ok(), Some(Vec::new()));
        }
        Err(problems) => {
            prop_assert!(!problems.is_empty());
            let lines = text.chars().filter(|&character| matches!(character, '\n' | '\r')).count() + 1;
            for problem in &problems {
                let place = problem.place.as_ref().expect("a problem of a run has a place");
                prop_assert!(
                    (1..=lines + 1).contains(&place.line) && place.column >= 1,
                    "{problem} in {text:?}"
                );
                prop_assert!(!problem.to_string().contains(char::is_control), "{problem:?}");
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_text_is_a_run_or_has_problems(text in "\\PC{0,60}") {
        check(&text)?;
    }

    #[test]
    fn any_mixture_of_parts_is_a_run_or_has_problems(
        pieces in prop::collection::vec(prop::sample::select(PIECES), 0..30)
    ) {
        check(&pieces.concat())?;
        check(&format!("teacher: t\nstudent: s\noutput: o\ndata: {{train: a.jsonl}}\n{}", pieces.concat()))?;
    }
}
