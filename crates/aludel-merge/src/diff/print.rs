//! Prints a difference for people, one line for each thing that differs.

use std::fmt;

use aludel_document::page::number;
use serde_json::Value;

use super::{Changed, Difference, TokenizerDifference, ValueDifference};

/// Tokens that are named before the rest is counted.
const NAMED: usize = 8;

/// The length at which a value of a config is cut.
const LONGEST: usize = 60;

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, second) = (&self.first, &self.second);
        for (names, model) in [(&self.only_in_first, first), (&self.only_in_second, second)] {
            names.iter().try_for_each(|name| writeln!(f, "tensor {name}: only in {model}"))?;
        }
        for shapes in &self.shapes {
            writeln!(f, "tensor {}: shape {:?} and {:?}", shapes.tensor, shapes.first, shapes.second)?;
        }
        for types in &self.types {
            writeln!(f, "tensor {}: type {} and {}", types.tensor, types.first, types.second)?;
        }
        self.values
            .iter()
            .try_for_each(|found| writeln!(f, "tensor {}: {}", found.tensor, of_values(found)))?;
        self.config.iter().try_for_each(|changed| writeln!(f, "config {}", of_key(changed)))?;
        if let Some(tokenizer) = &self.tokenizer {
            of_tokenizer(tokenizer, first, second)
                .iter()
                .try_for_each(|line| writeln!(f, "tokenizer {line}"))?;
        }
        for file in &self.files {
            match (file.in_first, file.in_second) {
                (true, false) => writeln!(f, "file {}: only in {first}", file.name)?,
                (false, _) => writeln!(f, "file {}: only in {second}", file.name)?,
                _ if file.keys.is_empty() => writeln!(f, "file {}: differs", file.name)?,
                _ => {
                    file.keys
                        .iter()
                        .try_for_each(|key| writeln!(f, "file {}: {}", file.name, of_key(key)))?;
                }
            }
        }
        self.print_sum(f)
    }
}

impl Difference {
    fn print_sum(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let within = match self.within_tolerance {
            0 => String::new(),
            count => format!(", {count} of them within the tolerance only"),
        };
        let compared = self.compared;
        if self.equal {
            return write!(f, "equal: {compared} tensors{within}");
        }
        let differing = self.values.len();
        write!(
            f,
            "different: {differing} of {compared} tensors that both have differ in their values{within}"
        )
    }
}

fn of_values(found: &ValueDifference) -> String {
    let share = found.beyond_tolerance as f64 / found.elements.max(1) as f64 * 100.0;
    let mut text = format!("{} of {} values differ ({share:.2} %)", found.beyond_tolerance, found.elements);
    if let Some(largest) = found.largest {
        text.push_str(&format!(", by at most {}", number(largest)));
    }
    if found.not_finite > 0 {
        text.push_str(&format!(", {} of them infinite or NaN", found.not_finite));
    }
    if let Some(place) = &found.first_place {
        text.push_str(&format!(", first at {:?}: {} and {}", place.index, place.first, place.second));
    }
    text
}

fn of_key(changed: &Changed) -> String {
    let text = |value: &Option<Value>| {
        let text = value.as_ref().map_or_else(|| "absent".to_owned(), Value::to_string);
        match text.char_indices().nth(LONGEST) {
            Some((at, _)) => format!("{}…", &text[..at]),
            None => text,
        }
    };
    let key = if changed.key.is_empty() { String::new() } else { format!("{}: ", changed.key) };
    format!("{key}{} and {}", text(&changed.first), text(&changed.second))
}

fn of_tokenizer(tokenizer: &TokenizerDifference, first: &str, second: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut tell = |what: String, tokens: &[String]| {
        if !tokens.is_empty() {
            let named: Vec<String> = tokens.iter().take(NAMED).map(|token| format!("{token:?}")).collect();
            let more = tokens.len().saturating_sub(NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            lines.push(format!("{what}: {}{more}", named.join(" ")));
        }
    };
    tell(format!("tokens only in {first}"), &tokenizer.only_in_first);
    tell(format!("tokens only in {second}"), &tokenizer.only_in_second);
    tell("tokens with other ids".to_owned(), &tokenizer.moved);
    if !tokenizer.parts.is_empty() {
        lines.push(format!("parts that differ: {}", tokenizer.parts.join(", ")));
    }
    lines
}
