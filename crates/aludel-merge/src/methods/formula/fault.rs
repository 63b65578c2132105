//! Describes what is wrong with an expression, and finds where in the recipe that stands.
//!
//! In: a range of bytes of an expression, and the recipe that it was read from. Out: the line and column of its first
//! character. YAML folds, quotes and indents text; what remains the same are its characters other than blanks, in their
//! order, so that is what the expression is recognised by.

use std::ops::Range;

use crate::problem::{Place, Problem};

/// Something wrong with an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// The bytes of the expression that are to blame.
    pub at: Range<usize>,
    pub message: String,
    pub hint: Option<String>,
}

impl Fault {
    pub(super) fn new(at: Range<usize>, message: impl Into<String>) -> Self {
        Self { at, message: message.into(), hint: None }
    }

    pub(super) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same as a problem of the recipe, whose expression begins at or a little after `start`.
    pub(super) fn into_problem(self, recipe: &str, start: &Place, expression: &str) -> Problem {
        let place = place_of(recipe, start, expression, self.at.start).unwrap_or_else(|| start.clone());
        let problem = Problem::at(place, self.message);
        match self.hint {
            Some(hint) => problem.with_hint(hint),
            None => problem,
        }
    }
}

/// How far after the start of a value its text may begin: quotes, or the indicator and comment of a block.
const FARTHEST_START: usize = 400;

/// Where the character at a byte of the expression stands in the recipe.
fn place_of(recipe: &str, start: &Place, expression: &str, byte: usize) -> Option<Place> {
    let from = byte_at(recipe, start)?;
    let wanted: Vec<char> = expression.chars().filter(|c| !c.is_whitespace()).collect();
    let before = expression.get(..byte)?.chars().filter(|c| !c.is_whitespace()).count();
    let source = recipe[from..].char_indices().filter(|(_, c)| !c.is_whitespace());
    let source: Vec<(usize, char)> = source.take(FARTHEST_START + wanted.len()).collect();
    let begins = |source: &&[(usize, char)]| source.iter().map(|(_, c)| c).eq(&wanted);
    let found = source.windows(wanted.len().max(1)).take(FARTHEST_START).find(begins)?;
    // The end of an expression is right behind its last character.
    let at = match found.get(before) {
        Some((at, _)) => from + at,
        None => found.last().map(|(at, c)| from + at + c.len_utf8())?,
    };
    let (line, column) = line_and_column(recipe, at);
    Some(Place { line, column, path: start.path.clone() })
}

/// The byte at a place. It is looked for by its line: a recipe may be long.
fn byte_at(text: &str, place: &Place) -> Option<usize> {
    let mut lines = text.split_inclusive('\n');
    let start: usize = lines.by_ref().take(place.line.checked_sub(1)?).map(str::len).sum();
    let (within, _) = lines.next()?.char_indices().nth(place.column.checked_sub(1)?)?;
    Some(start + within)
}

/// Both counted from 1, columns in characters.
fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..at];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(
        recipe: &str,
        line: usize,
        column: usize,
        expression: &str,
        word: &str,
    ) -> Option<(usize, usize)> {
        let start = Place { line, column, path: String::new() };
        let byte = if word.is_empty() { expression.len() } else { expression.find(word).unwrap() };
        place_of(recipe, &start, expression, byte).map(|place| (place.line, place.column))
    }

    #[test]
    fn a_byte_is_found_in_plain_quoted_and_folded_text() {
        let expression = "base + é * wrong";
        for (recipe, start, expected) in [
            ("formula: base + é * wrong\n", (1, 10), (1, 21)),
            ("formula: \"base + é * wrong\"\n", (1, 10), (1, 22)),
            ("x: 1\nformula: >  # base\n  base + é\n  * wrong\n", (2, 10), (4, 5)),
            ("formula: |-\n    base + é * wrong\n", (2, 5), (2, 16)),
            ("é: 1\n\n{é: 2, formula: base + é * wrong}\n", (3, 17), (3, 28)),
        ] {
            assert_eq!(place(recipe, start.0, start.1, expression, "wrong"), Some(expected), "{recipe}");
        }
        assert_eq!(place("formula: base + é * wrong\n", 1, 10, expression, ""), Some((1, 26)));
    }

    #[test]
    fn text_that_is_not_there_has_no_place() {
        assert_eq!(place("formula: base\n", 1, 10, "model[0]", "model"), None);
        assert_eq!(place("formula: base\n", 7, 1, "base", "base"), None);
        assert_eq!(place("formula: base\n", 1, 20, "base", "base"), None);
        assert_eq!(place("formula: ''\n", 1, 10, "", ""), None);
    }
}
