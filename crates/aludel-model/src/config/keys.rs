//! Reads numbers of a `config.json` within bounds and notes every problem instead of stopping at the first.
//!
//! In: a JSON object. Out: values, the given default where a key is absent or wrong; the list of problems and of the keys
//! that were asked for.

use std::collections::BTreeSet;

use aludel_checkpoint::Config;
use serde_json::{Map, Value};

/// A config while it is read.
pub(super) struct Keys<'a> {
    config: &'a Config,
    asked: BTreeSet<&'static str>,
    pub(super) problems: Vec<String>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(config: &'a Config) -> Self {
        Self { config, asked: BTreeSet::new(), problems: Vec::new() }
    }

    pub(super) fn problem(&mut self, problem: impl Into<String>) {
        self.problems.push(problem.into());
    }

    /// Whether a key was asked for, and so is understood.
    pub(super) fn knows(&self, key: &str) -> bool {
        self.asked.contains(key)
    }

    pub(super) fn asked(&self) -> impl Iterator<Item = &'static str> {
        self.asked.iter().copied()
    }

    /// The value of a key; a null is an absence.
    pub(super) fn value(&mut self, key: &'static str) -> Option<&'a Value> {
        self.asked.insert(key);
        self.config.value(key).filter(|value| !value.is_null())
    }

    /// A whole number of `1..=most`.
    pub(super) fn count(&mut self, key: &'static str, most: usize) -> Option<usize> {
        let value = self.value(key)?;
        let count = count_of(value).filter(|count| (1..=most).contains(count));
        if count.is_none() {
            self.problem(format!("{key} is {}, which is no whole number from 1 to {most}", short(value)));
        }
        count
    }

    /// Whether the file does not have the key at all; a null is there.
    pub(super) fn is_absent(&self, key: &str) -> bool {
        self.config.value(key).is_none()
    }

    /// A whole number of `0..=most`.
    pub(super) fn count_or_zero(&mut self, key: &'static str, most: usize) -> Option<usize> {
        if self.value(key).and_then(count_of) == Some(0) { Some(0) } else { self.count(key, most) }
    }

    /// Every how many layers one sees everything, in either of its spellings.
    pub(super) fn pattern(&mut self) -> Option<usize> {
        let hidden = self.count("_sliding_window_pattern", usize::MAX);
        self.count("sliding_window_pattern", usize::MAX).or(hidden)
    }

    /// A list of whole numbers below `most`, empty where it is absent.
    pub(super) fn numbers(&mut self, key: &'static str, most: usize) -> Vec<usize> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let numbers = value.as_array().and_then(|list| {
            list.iter().map(|number| count_of(number).filter(|&number| number < most)).collect()
        });
        numbers.unwrap_or_else(|| {
            self.problem(format!("{key} is no list of whole numbers below {most}"));
            Vec::new()
        })
    }

    /// As [`Keys::count`], where the key must be there. The answer is 1 where it is not, which divides everything.
    pub(super) fn required(&mut self, key: &'static str, most: usize) -> usize {
        if self.value(key).is_none() {
            self.problem(format!("{key} is missing"));
        }
        self.count(key, most).unwrap_or(1)
    }

    /// A finite number above 0.
    pub(super) fn positive(&mut self, key: &'static str) -> Option<f64> {
        let value = self.value(key)?;
        let number = positive_of(value);
        if number.is_none() {
            self.problem(format!("{key} is {}, which is no number above 0", short(value)));
        }
        number
    }

    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> bool {
        let Some(value) = self.value(key) else { return default };
        value.as_bool().unwrap_or_else(|| {
            self.problem(format!("{key} is {}, which is neither true nor false", short(value)));
            default
        })
    }

    pub(super) fn object(&mut self, key: &'static str) -> Option<&'a Map<String, Value>> {
        let value = self.value(key)?;
        if !value.is_object() {
            self.problem(format!("{key} is {}, which is no object", short(value)));
        }
        value.as_object()
    }

    /// A list of `length` elements, each understood by `element`.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        length: usize,
        element: impl Fn(&Value) -> Option<T>,
    ) -> Option<Vec<T>> {
        let value = self.value(key)?;
        let list = value.as_array().filter(|list| list.len() == length);
        let Some(list) = list else {
            self.problem(format!("{key} is no list of {length} elements, one for each layer"));
            return None;
        };
        let elements: Option<Vec<T>> = list.iter().map(element).collect();
        if elements.is_none() {
            self.problem(format!("{key} holds an element that is not understood"));
        }
        elements
    }
}

pub(super) fn count_of(value: &Value) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok()
}

/// Above 0 as an f32 too, and finite: a number that vanishes there is no factor, and one over it is infinite.
pub(super) fn positive_of(value: &Value) -> Option<f64> {
    let range = f64::from(f32::MIN_POSITIVE)..=f64::from(f32::MAX);
    value.as_f64().filter(|number| range.contains(number))
}

/// A value in a message: cut, since it may be of any length.
pub(super) fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::positive_of;

    #[test]
    fn numbers_that_an_f32_loses_are_no_factors() {
        for lost in [0.0, -1.0, 1e-119, 1e-40, 1e39, f64::from(f32::MAX) * 2.0] {
            assert_eq!(positive_of(&json!(lost)), None, "{lost}");
        }
        for kept in [f64::from(f32::MIN_POSITIVE), 1e-6, 1.0, f64::from(f32::MAX)] {
            assert_eq!(positive_of(&json!(kept)), Some(kept));
        }
    }
}
