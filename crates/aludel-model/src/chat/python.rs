//! Writes values as Python's `str`, `repr` and `json.dumps` do.
//!
//! In: values of a template. Out: text. Numbers of any size that a template can make, nesting as deep as the values are.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};
use serde_json::Value as Json;

/// A value of JSON as a template sees it.
pub(super) fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(truth) => Value::from(*truth),
        Json::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(number), ..) => Value::from(number),
            (_, Some(number), _) => Value::from(number),
            (.., number) => Value::from(number.unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(value).collect(),
        Json::Object(entries) => {
            Value::from_pairs(entries.iter().map(|(key, item)| (key.as_str(), value(item))))
        }
    }
}

/// What `{{ value }}` prints.
pub(super) fn printed(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.to_string(),
        _ => {
            let mut text = String::new();
            write_repr(value, &mut text, 0);
            text
        }
    }
}

/// Values nested deeper than this are printed as `...`.
const DEEPEST: usize = 100;

fn write_repr(value: &Value, text: &mut String, depth: usize) {
    match value.kind() {
        _ if depth > DEEPEST => text.push_str("..."),
        ValueKind::None | ValueKind::Undefined => text.push_str("None"),
        ValueKind::Bool => text.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => text.push_str(&number(value)),
        ValueKind::String => write_quoted(value.as_str().unwrap_or_default(), text),
        ValueKind::Map => write_items(text, ('{', '}'), value, |key, text| {
            write_repr(&key, text, depth + 1);
            text.push_str(": ");
            write_repr(&value.get_item(&key).unwrap_or_default(), text, depth + 1);
        }),
        ValueKind::Seq if value.is_tuple() => {
            write_items(text, ('(', ')'), value, |item, text| write_repr(&item, text, depth + 1));
        }
        ValueKind::Seq | ValueKind::Iterable => {
            write_items(text, ('[', ']'), value, |item, text| write_repr(&item, text, depth + 1));
        }
        _ => text.push_str(&value.to_string()),
    }
}

fn write_items(
    text: &mut String,
    (open, close): (char, char),
    items: &Value,
    mut write: impl FnMut(Value, &mut String),
) {
    text.push(open);
    for (index, item) in items.try_iter().into_iter().flatten().enumerate() {
        if index > 0 {
            text.push_str(", ");
        }
        write(item, text);
    }
    text.push(close);
}

/// Single quotes unless there are some inside and no double ones.
fn write_quoted(string: &str, text: &mut String) {
    let quote = if string.contains('\'') && !string.contains('"') { '"' } else { '\'' };
    text.push(quote);
    for character in string.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c if c == quote => text.extend(['\\', c]),
            c if (c as u32) < 0x20 || (0x7f..=0xa0).contains(&(c as u32)) || c == '\u{ad}' => {
                text.push_str(&format!("\\x{:02x}", c as u32));
            }
            c => text.push(c),
        }
    }
    text.push(quote);
}

/// A number as Python writes it: floats with a point or an exponent of two digits at least.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(float) = f64::try_from(value.clone()) else { return value.to_string() };
    if !float.is_finite() {
        return if float.is_nan() {
            "nan".into()
        } else if float > 0.0 {
            "inf".into()
        } else {
            "-inf".into()
        };
    }
    // Rust's shortest digits are Python's; where the exponent begins is not.
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if float == 0.0 || (-4..16).contains(&exponent) {
        let plain = float.to_string();
        return if plain.contains('.') { plain } else { format!("{plain}.0") };
    }
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// How `json.dumps` lays text out.
struct Layout {
    item: String,
    key: String,
    indent: Option<String>,
    sorted: bool,
    ascii: bool,
}

/// `value|tojson(indent=..., separators=..., sort_keys=..., ensure_ascii=...)`, as transformers defines it: nothing is
/// escaped for HTML.
pub(super) fn tojson(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let named: Option<Value> = options.get("indent")?;
    let indent = match named.or(indent).filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => Some(match (indent.as_str(), indent.as_usize()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(width)) if width <= 100 => " ".repeat(width),
            _ => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    "indent is a text or a number up to 100",
                ));
            }
        }),
    };
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item, key) = match separators.as_deref() {
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators are two texts")),
    };
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    options.assert_all_used()?;
    let mut text = String::new();
    write_json(value, &Layout { item, key, indent, sorted, ascii }, &mut text, 0)?;
    Ok(Value::from(text))
}

fn write_json(value: &Value, layout: &Layout, text: &mut String, depth: usize) -> Result<(), Error> {
    match value.kind() {
        _ if depth > DEEPEST => {
            return Err(Error::new(ErrorKind::InvalidOperation, "a value is nested too deeply for JSON"));
        }
        ValueKind::None => text.push_str("null"),
        ValueKind::Bool => text.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => text.push_str(&match number(value).as_str() {
            "nan" => "NaN".to_owned(),
            "inf" => "Infinity".to_owned(),
            "-inf" => "-Infinity".to_owned(),
            number => number.to_owned(),
        }),
        ValueKind::String => write_json_text(value.as_str().unwrap_or_default(), layout.ascii, text),
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if layout.sorted {
                keys.sort();
            }
            write_json_items(keys, ('{', '}'), layout, text, depth, |key, text| {
                // Keys of JSON are text: Python writes others as their JSON text.
                match key.as_str() {
                    Some(key) => write_json_text(key, layout.ascii, text),
                    None => {
                        let mut inner = String::new();
                        write_json(&key, layout, &mut inner, depth + 1)?;
                        write_json_text(&inner, layout.ascii, text);
                    }
                }
                text.push_str(&layout.key);
                write_json(&value.get_item(&key)?, layout, text, depth + 1)
            })?;
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.collect();
            write_json_items(items, ('[', ']'), layout, text, depth, |item, text| {
                write_json(&item, layout, text, depth + 1)
            })?;
        }
        kind => {
            let detail = format!("a value of type {kind} cannot be written as JSON");
            return Err(Error::new(ErrorKind::InvalidOperation, detail));
        }
    }
    Ok(())
}

fn write_json_items(
    items: Vec<Value>,
    (open, close): (char, char),
    layout: &Layout,
    text: &mut String,
    depth: usize,
    mut write: impl FnMut(Value, &mut String) -> Result<(), Error>,
) -> Result<(), Error> {
    let line = |text: &mut String, depth: usize| {
        if let Some(indent) = &layout.indent {
            text.push('\n');
            (0..depth).for_each(|_| text.push_str(indent));
        }
    };
    text.push(open);
    let is_empty = items.is_empty();
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            text.push_str(&layout.item);
        }
        line(text, depth + 1);
        write(item, text)?;
    }
    if !is_empty {
        line(text, depth);
    }
    text.push(close);
    Ok(())
}

fn write_json_text(string: &str, ascii: bool, text: &mut String) {
    text.push('"');
    for character in string.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            c if (c as u32) < 0x20 => text.push_str(&format!("\\u{:04x}", c as u32)),
            c if ascii && !c.is_ascii() => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    text.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => text.push(c),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Expected texts are those of Python's `str` and `json.dumps`.
    #[test]
    fn values_are_printed_as_python_prints_them() {
        for (value, text) in [
            (json!(null), "None"),
            (json!(true), "True"),
            (json!("it's"), "it's"),
            (json!(1.0), "1.0"),
            (json!(1e16), "1e+16"),
            (json!(1e-5), "1e-05"),
            (json!(0.0001), "0.0001"),
            (json!(123456789012345680.0), "1.2345678901234568e+17"),
            (json!(-7), "-7"),
            (
                json!(["a", "it's", "\"'", null, {"k": [1, 2.5]}]),
                r#"['a', "it's", '"\'', None, {'k': [1, 2.5]}]"#,
            ),
            (json!(["\n\u{1}é"]), "['\\n\\x01é']"),
        ] {
            assert_eq!(printed(&super::value(&value)), text, "{value}");
        }
        assert_eq!(printed(&Value::UNDEFINED), "");
    }

    #[test]
    fn json_is_laid_out_as_python_lays_it_out() {
        let value = super::value(&json!({"b": [1, "é\"<", {}], "a": null}));
        let dump = |options: Kwargs| tojson(&value, None, options).unwrap().to_string();
        assert_eq!(
            dump(Kwargs::from_iter([("indent", Value::from(()))])),
            r#"{"b": [1, "é\"<", {}], "a": null}"#
        );
        let sorted = [("sort_keys", Value::from(true)), ("ensure_ascii", Value::from(true))];
        assert_eq!(dump(sorted.into_iter().collect()), r#"{"a": null, "b": [1, "\u00e9\"<", {}]}"#);
        let indented = [("indent", Value::from(2))];
        assert_eq!(
            dump(indented.into_iter().collect()),
            "{\n  \"b\": [\n    1,\n    \"é\\\"<\",\n    {}\n  ],\n  \"a\": null\n}"
        );
        let separators = [("separators", Value::from(vec![",", ":"]))];
        assert_eq!(dump(separators.into_iter().collect()), r#"{"b":[1,"é\"<",{}],"a":null}"#);
    }

    #[test]
    fn values_nested_without_end_are_cut() {
        let mut value = Value::from(1);
        for _ in 0..150 {
            value = Value::from(vec![value]);
        }
        assert!(printed(&value).contains("..."));
        assert!(tojson(&value, None, Kwargs::from_iter([("indent", Value::from(()))])).is_err());
    }
}
