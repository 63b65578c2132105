//! Describes what is wrong with a document or what it asks for: where, what, and what to do about it.
//!
//! In: faults as they are found. Out: one value that holds all of them, in the order of discovery, fit to be an error.
//! It renders no colour and knows no file name: the command line puts the file's name in front.

use std::fmt;

use serde::Serialize;

use crate::words::visible;

/// A spot in a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
    /// The keys and list positions that lead there, as in `models[1].parameters.weight`; empty for the whole document.
    pub path: String,
}

impl fmt::Display for Place {
    /// `7:5 models[1].parameters.weight`, or `1:1` for the whole document.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.line, self.column)?;
        if self.path.is_empty() { Ok(()) } else { write!(formatter, " {}", self.path) }
    }
}

/// One fault. What a message or a hint quotes has its control characters escaped: no document steers a terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Where in the document; `None` when no part of it is to blame.
    pub place: Option<Place>,
    /// What is wrong, as a clause without a full stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Problem {
    /// A fault of this place, without a hint.
    pub fn at(place: Place, message: impl Into<String>) -> Self {
        Self { place: Some(place), message: visible(message.into()), hint: None }
    }

    /// A fault of no particular place, without a hint.
    pub fn general(message: impl Into<String>) -> Self {
        Self { place: None, message: visible(message.into()), hint: None }
    }

    /// The same fault with this remedy.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(visible(hint.into()));
        self
    }
}

impl fmt::Display for Problem {
    /// Place, message and hint on one line: `7:5 models[1].weight: unknown key (did you mean ...?)`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(formatter, "{place}: ")?;
        }
        formatter.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(formatter, " ({hint})"),
            None => Ok(()),
        }
    }
}

/// All faults found so far. As an error it holds at least one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Problems {
    list: Vec<Problem>,
    /// How many were found beyond [`Problems::LIMIT`].
    omitted: usize,
}

impl Problems {
    /// The number of problems that are kept; further ones are counted only, so that a hostile document cannot fill
    /// the memory with complaints about it.
    pub const LIMIT: usize = 1000;

    /// No problems.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one.
    pub fn push(&mut self, problem: Problem) {
        if self.list.len() < Self::LIMIT {
            self.list.push(problem);
        } else {
            self.omitted += 1;
        }
    }

    /// Adds what went wrong, if anything, and returns the value otherwise.
    pub fn take<T>(&mut self, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.push(problem)).ok()
    }

    /// Adds all of another list, its count of those beyond the limit included.
    pub fn append(&mut self, other: Self) {
        self.omitted += other.omitted;
        self.extend(other.list);
    }

    /// The same problems from the top of the document to its end; those without a place come first.
    #[must_use]
    pub fn in_order_of_place(mut self) -> Self {
        self.list.sort_by_key(|problem| problem.place.as_ref().map(|place| (place.line, place.column)));
        self
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The number found, including those beyond [`Problems::LIMIT`].
    pub fn count(&self) -> usize {
        self.list.len() + self.omitted
    }

    /// Those that were kept, in the order of discovery.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.list.iter()
    }

    /// `value` when there are no problems, and all the problems otherwise.
    ///
    /// # Errors
    /// `self`, with at least one problem in it.
    pub fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl fmt::Display for Problems {
    /// One problem per line, without a final line break.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(formatter, "{separator}{problem}")?;
        }
        if self.omitted > 0 { write!(formatter, "\nand {} more", self.omitted) } else { Ok(()) }
    }
}

impl std::error::Error for Problems {}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self { list: vec![problem], omitted: 0 }
    }
}

impl Extend<Problem> for Problems {
    fn extend<I: IntoIterator<Item = Problem>>(&mut self, problems: I) {
        problems.into_iter().for_each(|problem| self.push(problem));
    }
}

impl IntoIterator for Problems {
    type Item = Problem;
    type IntoIter = std::vec::IntoIter<Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.into_iter()
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem() -> Problem {
        let place = Place { line: 7, column: 5, path: "models[1].parameters.wieght".into() };
        Problem::at(place, "unknown key").with_hint("did you mean `weight`?")
    }

    #[test]
    fn a_problem_is_one_line_that_starts_with_its_place() {
        assert_eq!(
            problem().to_string(),
            "7:5 models[1].parameters.wieght: unknown key (did you mean `weight`?)"
        );
        let whole = Place { line: 1, column: 1, path: String::new() };
        assert_eq!(Problem::at(whole, "empty").to_string(), "1:1: empty");
        assert_eq!(Problem::general("no space left").to_string(), "no space left");
    }

    #[test]
    fn none_is_a_result_and_some_is_an_error() {
        assert_eq!(Problems::new().into_result(3), Ok(3));
        let error = Problems::from(problem()).into_result(3).unwrap_err();
        assert_eq!(error.iter().collect::<Vec<_>>(), [&problem()]);
    }

    #[test]
    fn those_beyond_the_limit_are_counted() {
        let mut problems = Problems::new();
        problems.extend(std::iter::repeat_n(problem(), Problems::LIMIT + 2));
        assert_eq!((problems.count(), problems.iter().len()), (Problems::LIMIT + 2, Problems::LIMIT));
        assert!(problems.to_string().ends_with("\nand 2 more"));
    }

    #[test]
    fn order_is_by_place_and_else_by_discovery() {
        let at =
            |line, column, message: &str| Problem::at(Place { line, column, path: String::new() }, message);
        let mut problems = Problems::from(at(10, 1, "a"));
        problems.extend([at(9, 2, "b"), at(9, 2, "c"), at(9, 1, "d"), Problem::general("e")]);
        let order: Vec<String> =
            problems.in_order_of_place().into_iter().map(|problem| problem.message).collect();
        assert_eq!(order.concat(), "edbca");
    }

    #[test]
    fn problems_serialise_with_their_place() {
        let json = serde_json::to_value(Problems::from(problem())).unwrap();
        assert_eq!(json["list"][0]["place"]["line"], 7);
        assert_eq!(json["list"][0]["hint"], "did you mean `weight`?");
    }
}
