//! Reads sizes as people write them: `128MiB`, `5GB`, `1.5GB`, `5000000`.

use std::fmt;
use std::str::FromStr;

/// A number of bytes; at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

/// Units without their last letter; decimal ones may stand without it too, as in `500M`.
const UNITS: [(&str, u64); 9] = [
    ("", 1),
    ("k", 1_000),
    ("m", 1_000_000),
    ("g", 1_000_000_000),
    ("t", 1_000_000_000_000),
    ("ki", 1 << 10),
    ("mi", 1 << 20),
    ("gi", 1 << 30),
    ("ti", 1 << 40),
];

impl FromStr for Size {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        match product(number, scale(number, unit)?) {
            Some(0) => Err(BadSize("at least one byte".into())),
            Some(bytes) => Ok(Self(bytes)),
            None => Err(BadSize::default()),
        }
    }
}

/// What a unit multiplies by.
fn scale(number: &str, unit: &str) -> Result<u64, BadSize> {
    let unit = unit.trim_start().to_ascii_lowercase();
    // mergekit writes five billion bytes as `5B`; elsewhere the same means five bytes.
    if unit == "b" {
        return Err(BadSize(format!("`{number}GB` for billions of bytes, or `{number}` for bytes")));
    }
    let stem = unit.strip_suffix('b').unwrap_or(&unit);
    UNITS.iter().find(|(known, _)| *known == stem).map(|&(_, scale)| scale).ok_or_else(BadSize::default)
}

/// Exact for whole numbers; `None` for what is no number or too large.
fn product(number: &str, scale: u64) -> Option<u64> {
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale);
    }
    let product = number.parse::<f64>().ok()? * scale as f64;
    (product < u64::MAX as f64).then_some(product as u64)
}

/// Why a text is no size: what to write instead.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadSize(String);

impl Default for BadSize {
    fn default() -> Self {
        Self("a size such as `128MiB`, `5GB` or `5000000`".into())
    }
}

impl fmt::Display for BadSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "write {}", self.0)
    }
}

impl std::error::Error for BadSize {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("1", 1),
            ("5000000", 5_000_000),
            ("128MiB", 128 << 20),
            ("128mib", 128 << 20),
            ("128Mi", 128 << 20),
            ("5GB", 5_000_000_000),
            ("5 GB", 5_000_000_000),
            ("500M", 500_000_000),
            ("1.5GB", 1_500_000_000),
            (".5k", 500),
            ("2TiB", 2 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "GB",
            "-1",
            "5XB",
            "5GBs",
            "1.2.3",
            ".",
            "1e9",
            "18446744073709551616",
            "99999999TB",
            "1.5e9TB",
        ] {
            assert_eq!(text.parse::<Size>(), Err(BadSize::default()), "{text}");
        }
        assert_eq!("0GB".parse::<Size>().unwrap_err().to_string(), "write at least one byte");
        assert_eq!("0.1".parse::<Size>().unwrap_err().to_string(), "write at least one byte");
    }

    #[test]
    fn a_bare_b_may_mean_two_things_and_is_asked_about() {
        let error = "5B".parse::<Size>().unwrap_err();
        assert_eq!(error.to_string(), "write `5GB` for billions of bytes, or `5` for bytes");
    }
}
