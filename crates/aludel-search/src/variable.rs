//! A number of a recipe that varies: where it stands, and between which bounds.
//!
//! In: `models[0].parameters.weight=0..1`. Out: places and bounds. Several places with a comma between them get the same number.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// A number that varies.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Variable {
    /// Where it stands, as problems of recipes say it: `models[0].parameters.weight`. At least one place.
    pub places: Vec<String>,
    /// The least that it may be.
    pub low: f64,
    /// The most that it may be; more than the least.
    pub high: f64,
}

impl Variable {
    /// The number at a share of the way from the lower bound to the upper one, of as many digits as a difference could be made out by.
    pub(crate) fn at(&self, share: f64) -> f64 {
        self.rounded(self.low + share.clamp(0.0, 1.0) * (self.high - self.low))
    }

    /// How far a number is from the lower bound to the upper one.
    pub(crate) fn share(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    fn rounded(&self, value: f64) -> f64 {
        // A number that was just printed is one.
        format!("{value:.*}", self.decimals()).parse().unwrap_or(value).clamp(self.low, self.high)
    }

    /// Digits after the point: a millionth of the range, about.
    fn decimals(&self) -> usize {
        (DIGITS - (self.high - self.low).log10().floor() as i32).clamp(0, 20) as usize
    }
}

/// Digits that a number is known to, of its range.
const DIGITS: i32 = 6;

impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}..{}", self.places.join(","), self.low, self.high)
    }
}

impl FromStr for Variable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || "write PLACE=LOW..HIGH, as in models[0].parameters.weight=0..1".to_owned();
        let (places, range) = text.rsplit_once('=').ok_or_else(shape)?;
        let (low, high) = range.split_once("..").ok_or_else(shape)?;
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
        let (low, high) = number(low).zip(number(high)).ok_or_else(shape)?;
        let places: Vec<String> = places.split(',').map(|place| place.trim().to_owned()).collect();
        if places.iter().any(String::is_empty) {
            return Err(shape());
        }
        if low >= high {
            return Err(format!("{low} is not below {high}"));
        }
        Ok(Self { places, low, high })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_read_as_they_are_written() {
        let text = "models[0].parameters.weight,models[1].parameters.weight=-0.5..1.5";
        let variable: Variable = text.parse().unwrap();
        assert_eq!(variable.places, ["models[0].parameters.weight", "models[1].parameters.weight"]);
        assert_eq!((variable.low, variable.high), (-0.5, 1.5));
        assert_eq!(variable.to_string(), text);
        for text in ["", "a", "a=1", "=0..1", "a,=0..1", "a=0..x", "a=0..inf"] {
            assert!(text.parse::<Variable>().unwrap_err().starts_with("write PLACE=LOW..HIGH"), "{text}");
        }
        assert_eq!("a=1..1".parse::<Variable>().unwrap_err(), "1 is not below 1");
    }

    #[test]
    fn numbers_have_the_digits_of_their_range() {
        let variable: Variable = "a=0..1".parse().unwrap();
        assert_eq!(variable.at(1.0 / 3.0), 0.333_333);
        let small: Variable = "a=0..1e-5".parse().unwrap();
        assert!(small.at(1.0 / 3.0).to_string().starts_with("0.0000033333"), "{}", small.at(1.0 / 3.0));
        let large: Variable = "a=1000..3e9".parse().unwrap();
        assert_eq!(large.at(0.0), 1000.0);
        assert_eq!((variable.at(2.0), variable.at(-1.0), variable.share(0.25)), (1.0, 0.0, 0.25));
    }
}
