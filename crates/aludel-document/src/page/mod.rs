//! Begins and ends pages of HTML that need nothing else, and writes text and numbers for them.
//!
//! In: a title, styles and a script. Out: a page that fits desk and phone, light and dark, and whose policy forbids it to
//! load anything. What stands on it is for those who have something to show.

pub mod figure;

use std::fmt::Write;

/// The beginning of a page, up to its heading; `styles` come after those of every page.
pub fn begin(title: &str, styles: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'\">\
         <title>{title}</title><style>\n{STYLES}{styles}</style></head><body><main><h1>{title}</h1>"
    )
}

/// The end of a page.
pub fn end(page: &mut String, script: &str) {
    // Writing to a string cannot fail.
    let _ = write!(page, "</main><script>\n{script}</script></body></html>\n");
}

const STYLES: &str = include_str!("page.css");

/// The text with everything that HTML gives a meaning to replaced.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// Four significant digits: `0.0003`, `2.346`, `151.9k`, `1.2e-6`.
pub fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if !size.is_finite() => "not finite".to_owned(),
        0.0 => "0".to_owned(),
        ..1e-3 | 1e15.. => scientific(value),
        ..1e4 => significant(value),
        ..1e6 => significant(value / 1e3) + "k",
        ..1e9 => significant(value / 1e6) + "M",
        _ => significant(value / 1e9) + "G",
    }
}

fn scientific(value: f64) -> String {
    let text = format!("{value:.3e}");
    let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
    format!("{}e{power}", trimmed(digits))
}

fn significant(value: f64) -> String {
    let decimals = (3 - value.abs().log10().floor() as i32).clamp(0, 6) as usize;
    trimmed(&format!("{value:.decimals$}")).to_owned()
}

fn trimmed(digits: &str) -> &str {
    if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_four_digits_and_no_tail_of_zeros() {
        for (value, text) in [
            (0.0, "0"),
            (2.3456789, "2.346"),
            (-2.5, "-2.5"),
            (0.5, "0.5"),
            (0.001234567, "0.001235"),
            (1e-4, "1e-4"),
            (1.2345e-6, "1.234e-6"),
            (151_936.0, "151.9k"),
            (9_999.0, "9999"),
            (10_000.0, "10k"),
            (134.5e6, "134.5M"),
            (2e9, "2G"),
            (1e16, "1e16"),
            (f64::NAN, "not finite"),
        ] {
            assert_eq!(number(value), text, "{value}");
        }
    }

    #[test]
    fn html_has_no_characters_left_to_act_on() {
        assert_eq!(escape("<a href='x'>\"&\""), "&lt;a href=&#39;x&#39;&gt;&quot;&amp;&quot;");
    }
}
