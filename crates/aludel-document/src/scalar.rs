//! Reads what a scalar means: a number, a truth value or text.
//!
//! In: a node. Out: its value, or why it has none that every YAML reader would agree on. Which kind is wanted is the
//! caller's to say.

use serde::Serialize;

use crate::cursor::Cursor;
use crate::problem::Problem;
use crate::tree::Content;
use crate::words::quoted;

/// A single value.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Scalar {
    /// A finite number. Text that reads as one, such as `"1e-3"`, is one.
    Number(f64),
    /// `true` or `false`, also written `yes`, `no`, `on`, `off`.
    Bool(bool),
    /// Any other text.
    Text(String),
}

pub(crate) fn read(cursor: &Cursor<'_>) -> Result<Scalar, Problem> {
    let remedy = "give it a value or remove its key";
    let text = cursor.text("a value").map_err(|problem| problem.with_hint(remedy))?;
    let plain = matches!(cursor.node.content, Content::Plain(_));
    if plain && is_octal(text) {
        let message = format!("{} is octal to some YAML readers and decimal to others", quoted(text));
        return Err(cursor.problem(message).with_hint("write it without leading zeros"));
    }
    match (truth(text), number(text)) {
        (Some(truth), _) if plain => Ok(Scalar::Bool(truth)),
        (_, Some(number)) if number.is_finite() => Ok(Scalar::Number(number)),
        (_, Some(_)) => Err(cursor.problem(format!("{} is not a finite number", quoted(text)))),
        _ => Ok(Scalar::Text(text.to_owned())),
    }
}

/// YAML 1.1's truth values, which YAML readers in Python understand.
fn truth(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Some(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Some(false),
        _ => None,
    }
}

fn is_octal(text: &str) -> bool {
    let digits = text.trim_start_matches(['+', '-']);
    digits.len() > 1
        && digits.starts_with('0')
        && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_')
}

/// The number that a text is, infinities and not-a-number included.
fn number(text: &str) -> Option<f64> {
    match text.to_ascii_lowercase().as_str() {
        ".inf" | "+.inf" => Some(f64::INFINITY),
        "-.inf" => Some(f64::NEG_INFINITY),
        ".nan" => Some(f64::NAN),
        text if separates_digits(text) => text.replace('_', "").parse().ok(),
        text => text.parse().ok(),
    }
}

/// Whether there are underscores and each stands between two digits, as in `1_000`.
fn separates_digits(text: &str) -> bool {
    let ends_with_digit = |part: &str| part.ends_with(|last: char| last.is_ascii_digit());
    let starts_with_digit = |part: &str| part.starts_with(|first: char| first.is_ascii_digit());
    text.contains('_')
        && text
            .match_indices('_')
            .all(|(at, _)| ends_with_digit(&text[..at]) && starts_with_digit(&text[at + 1..]))
}
