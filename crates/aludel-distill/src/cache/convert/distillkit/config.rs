//! Reads how a capture of DistillKit was configured.
//!
//! In: `compression_config.yaml` as its sampler leaves it, or the run that the capture is trained from. Out: a [`Compression`] whose numbers
//! fit each other and bound what a position takes. Where it does not say something, the default is DistillKit's.

use std::path::Path;

use aludel_document::{Cursor, Key, Problem, Problems, Scalar};

use super::bits::{KINDS, Kind, index_bits};
use super::fitted::Fitted;
use super::packed::{Bin, Packed, Term};
use crate::error::Error;
use crate::run::fields::{Fields, choice, count, scalar};

/// How positions were packed.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::cache::convert) enum Compression {
    /// By `logprob_compressor`.
    Packed(Packed),
    /// By `legacy_logit_compression`.
    Fitted(Fitted),
}

const PACKED: &[Key] = &[
    Key::read("d"),
    Key::read("k"),
    Key::read("exact_k"),
    Key::read("exact_dtype"),
    Key::read("polynomial_terms"),
    Key::read("term_dtype"),
    Key::read("residual_bins"),
    Key::read("delta_encoding"),
    Key::read("error_diffusion"),
    Key::read("normalize_t"),
];
const BIN: &[Key] = &[Key::read("scale_dtype"), Key::read("element_bits"), Key::read("num_elements")];
const FITTED: &[Key] = &[
    Key::read("k"),
    Key::read("exact_k"),
    Key::read("polynomial_degree"),
    Key::read("vocab_size"),
    Key::read("invert_polynomial"),
    Key::read("with_sqrt_term"),
    Key::read("term_dtype"),
];

/// Columns, and tokens of a position, at most.
const MOST_COLUMNS: u64 = 1 << 26;
const MOST_TOKENS: u64 = 1 << 16;

impl Compression {
    /// Reads a file.
    pub(in crate::cache::convert) fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        Self::parse(&text).map_err(|problems| {
            let mut named = Problems::new();
            for problem in problems.iter() {
                let message = format!("{}: {problem}", path.display());
                named.push(match &problem.hint {
                    Some(hint) => Problem::general(message).with_hint(hint.clone()),
                    None => Problem::general(message),
                });
            }
            named.into()
        })
    }

    pub(super) fn parse(text: &str) -> Result<Self, Problems> {
        let mut problems = Problems::new();
        let node = aludel_document::tree::read(text, "the configuration", &mut problems);
        let compression = node.and_then(|node| {
            let mut cursor = Cursor::root(&node);
            for key in ["teacher", "logprob_compressor", "legacy_logit_compression"] {
                cursor = cursor.field(key).unwrap_or(cursor);
            }
            if cursor.field("vocab_size").is_some() {
                return fitted(cursor, &mut problems).map(Self::Fitted);
            }
            packed(cursor, &mut problems).map(Self::Packed)
        });
        match compression {
            Some(compression) if problems.is_empty() => Ok(compression),
            _ => {
                problems.into_result(()).and(Err(Problem::general("the configuration cannot be read").into()))
            }
        }
    }

    /// Every id is below.
    pub(in crate::cache::convert) fn vocabulary(&self) -> u32 {
        match self {
            Self::Packed(packed) => packed.columns,
            Self::Fitted(fitted) => fitted.columns,
        }
    }
}

fn packed(cursor: Cursor<'_>, problems: &mut Problems) -> Option<Packed> {
    let mut fields = Fields::open(cursor, PACKED, "", problems)?;
    let columns = number(&mut fields, "d", 2, MOST_COLUMNS)?;
    let k = number(&mut fields, "k", 1, MOST_TOKENS)?;
    let exact = number(&mut fields, "exact_k", 0, k)?;
    let terms = fields.read("polynomial_terms", |value| value.items()?.iter().map(term).collect());
    let bins = fields.read("residual_bins", |value| value.items());
    let packed = Packed {
        columns: columns as u32,
        index_bits: index_bits(columns as u32),
        k: k as usize,
        exact: exact as usize,
        exact_kind: fields.choice("exact_dtype", &KINDS, Kind::F32),
        terms: terms.unwrap_or_default(),
        term_kind: fields.choice("term_dtype", &KINDS, Kind::F32),
        bins: bins.unwrap_or_default().into_iter().filter_map(|item| bin(item, fields.problems)).collect(),
        are_deltas: fields.truth("delta_encoding", true),
        is_to_one: fields.truth("normalize_t", false),
    };
    let in_bins: usize = packed.bins.iter().map(|bin| bin.count).sum();
    if in_bins > packed.k - packed.exact {
        fields.report("residual_bins", "the bins hold more tokens than `k` less `exact_k`", "");
    }
    Some(packed)
}

fn bin(cursor: Cursor<'_>, problems: &mut Problems) -> Option<Bin> {
    let mut fields = Fields::open(cursor, BIN, "", problems)?;
    let bits = number(&mut fields, "element_bits", 1, 64)? as u32;
    let count = number(&mut fields, "num_elements", 1, MOST_TOKENS)? as usize;
    Some(Bin { scale_kind: fields.choice("scale_dtype", &KINDS, Kind::F32), bits, count })
}

fn term(value: &Cursor<'_>) -> Result<Term, Problem> {
    const NOUN: &str = "a power from -64 to 64, `sqrt` or `exp`";
    match scalar(value, NOUN)? {
        Scalar::Number(power) if power.fract() == 0.0 && power.abs() <= 64.0 => Ok(Term::Power(power as i32)),
        Scalar::Text(_) => choice(value, &[("sqrt", Term::Root), ("exp", Term::Exponential)]),
        _ => Err(value.mismatch(NOUN)),
    }
}

fn fitted(cursor: Cursor<'_>, problems: &mut Problems) -> Option<Fitted> {
    let mut fields = Fields::open(cursor, FITTED, "", problems)?;
    let columns = number(&mut fields, "vocab_size", 2, MOST_COLUMNS)? as u32;
    let k = number(&mut fields, "k", 1, MOST_TOKENS)?;
    let exact = number(&mut fields, "exact_k", 0, k)?;
    let degree = number(&mut fields, "polynomial_degree", 0, 64)? as i32;
    let sign = if fields.truth("invert_polynomial", true) { -1 } else { 1 };
    let mut terms: Vec<Term> = (0..=degree).map(|power| Term::Power(sign * power)).collect();
    if fields.truth("with_sqrt_term", false) {
        terms.push(Term::Root);
    }
    fields.choice("term_dtype", &KINDS, Kind::F32);
    Some(Fitted { columns, index_bits: index_bits(columns), k: k as usize, exact: exact as usize, terms })
}

/// A count that has to be there, within bounds.
fn number(fields: &mut Fields<'_, '_>, key: &str, least: u64, most: u64) -> Option<u64> {
    if !fields.has(key) {
        let hint = "this is DistillKit's `logprob_compressor` or `legacy_logit_compression`";
        fields.report(key, format!("`{key}` is missing"), hint);
        return None;
    }
    let found = fields.read(key, |value| count(value, least))?;
    if found > most {
        fields.report(key, format!("{found} is more than {most}"), "");
        return None;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_generations_are_told_apart_by_their_keys() {
        let newer = "d: 500\nk: 20\nexact_k: 4\nexact_dtype: bfloat16\npolynomial_terms: [0, 1, sqrt]\n\
                     residual_bins: [{scale_dtype: float16, element_bits: 5, num_elements: 9}]\nerror_diffusion: false\n";
        let Ok(Compression::Packed(packed)) = Compression::parse(newer) else { panic!() };
        assert_eq!((packed.columns, packed.index_bits, packed.k, packed.exact), (500, 9, 20, 4));
        assert_eq!(packed.terms, [Term::Power(0), Term::Power(1), Term::Root]);
        assert_eq!(packed.bins, [Bin { scale_kind: Kind::F16, bits: 5, count: 9 }]);
        assert_eq!((packed.exact_kind, packed.term_kind), (Kind::BF16, Kind::F32));
        assert!(packed.are_deltas && !packed.is_to_one);
        let older = "teacher:\n  kind: dataset\n  legacy_logit_compression:\n    vocab_size: 500\n    k: 10\n    \
                     exact_k: 2\n    polynomial_degree: 2\n    with_sqrt_term: true\n";
        let Ok(Compression::Fitted(fitted)) = Compression::parse(older) else { panic!() };
        assert_eq!(fitted.terms, [Term::Power(0), Term::Power(-1), Term::Power(-2), Term::Root]);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_place() {
        for (text, expected) in [
            ("", "the configuration is empty"),
            ("k: 5", "`d` is missing"),
            ("d: 500\nk: 5\nexact_k: 6", "6 is more than 5"),
            ("d: 500\nk: 70000\nexact_k: 6", "70000 is more than 65536"),
            ("d: 500\nk: 5\nexact_k: 1\npolynomial_terms: [cube]", "cube"),
            (
                "d: 500\nk: 5\nexact_k: 4\nresidual_bins: [{scale_dtype: float16, element_bits: 65, num_elements: 1}]",
                "65 is more than 64",
            ),
            (
                "d: 500\nk: 5\nexact_k: 4\nresidual_bins: [{scale_dtype: float16, element_bits: 5, num_elements: 2}]",
                "the bins hold more tokens",
            ),
            ("d: 500\nk: 5\nexact_k: 1\ntemperature: 2", "unknown key `temperature`"),
        ] {
            let problems = Compression::parse(text).unwrap_err();
            let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
            assert!(said.iter().any(|said| said.contains(expected)), "{text}: {said:?}");
        }
    }
}
