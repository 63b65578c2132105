//! Reads the fields of one mapping of a run, each with its default, and reports what is wrong with each.
//!
//! In: a cursor on a mapping. Out: typed values. A field that cannot be read is reported and its default stands in for it,
//! so that everything after it is still looked at; the run is given out only when nothing was reported.

use std::path::PathBuf;

use aludel_checkpoint::expand_home;
use aludel_document::{Content, Cursor, Key, Problem, Problems, Scalar, listed, nearest, quoted};
use aludel_kernels::loss::objective::TEMPERATURES;

/// A mapping whose fields are being read.
pub(crate) struct Fields<'a, 'p> {
    pub(crate) cursor: Cursor<'a>,
    pub(crate) problems: &'p mut Problems,
}

/// Which numbers a field takes.
pub(crate) struct Bounds {
    /// What it expects, as a noun with its article.
    pub(crate) noun: &'static str,
    pub(crate) holds: fn(f64) -> bool,
}

pub(crate) const POSITIVE: Bounds = Bounds { noun: "a number above 0", holds: |n| n > 0.0 };
pub(crate) const TEMPERATURE: Bounds = Bounds {
    noun: "a temperature from 0.01 to 1000",
    holds: |n| (f64::from(*TEMPERATURES.start())..=f64::from(*TEMPERATURES.end())).contains(&n),
};
pub(crate) const NOT_NEGATIVE: Bounds = Bounds { noun: "a number of at least 0", holds: |n| n >= 0.0 };
pub(crate) const UNIT: Bounds = Bounds { noun: "a number from 0 to 1", holds: |n| (0.0..=1.0).contains(&n) };
pub(crate) const BELOW_ONE: Bounds =
    Bounds { noun: "a number of at least 0 and below 1", holds: |n| (0.0..1.0).contains(&n) };

impl<'a, 'p> Fields<'a, 'p> {
    /// The fields of a mapping, of which only `known` may stand there; `None`, with a problem, for anything else.
    /// `otherwise` is the hint for keys that resemble none of them; it may be empty.
    pub(crate) fn open(
        cursor: Cursor<'a>,
        known: &[Key],
        otherwise: &str,
        problems: &'p mut Problems,
    ) -> Option<Self> {
        if !cursor.node.is_mapping() {
            let names = listed(known.iter().map(|key| key.name));
            problems.push(cursor.mismatch("a mapping").with_hint(format!("its keys are {names}")));
            return None;
        }
        cursor.check_keys(known, otherwise, problems);
        Some(Self { cursor, problems })
    }

    /// Whether a key is given with a value.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.cursor.field(key).is_some()
    }

    /// Reports a problem of a key's value, or of the mapping when the key is absent.
    pub(crate) fn report(&mut self, key: &str, message: impl Into<String>, hint: impl Into<String>) {
        let place = self.cursor.field(key).map_or_else(|| self.cursor.place(), |value| value.place());
        self.problems.push(Problem::at(place, message).with_hint(hint));
    }

    /// What a reader makes of a key's value; `None` when it is absent or, with a problem, unreadable.
    pub(crate) fn read<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&Cursor<'a>) -> Result<T, Problem>,
    ) -> Option<T> {
        let value = self.cursor.field(key)?;
        self.problems.take(read(&value))
    }

    /// A number within bounds.
    pub(crate) fn number(&mut self, key: &str, default: f64, bounds: &Bounds) -> f64 {
        self.read(key, |value| number(value, bounds)).unwrap_or(default)
    }

    /// A whole number of at least `least`.
    pub(crate) fn count(&mut self, key: &str, default: u64, least: u64) -> u64 {
        self.optional_count(key, least).unwrap_or(default)
    }

    /// A whole number of at least `least`, where one is given.
    pub(crate) fn optional_count(&mut self, key: &str, least: u64) -> Option<u64> {
        self.read(key, |value| count(value, least))
    }

    /// `true` or `false`.
    pub(crate) fn truth(&mut self, key: &str, default: bool) -> bool {
        let read = |value: &Cursor<'_>| match scalar(value, "`true` or `false`")? {
            Scalar::Bool(truth) => Ok(truth),
            _ => Err(value.mismatch("`true` or `false`")),
        };
        self.read(key, read).unwrap_or(default)
    }

    /// One of some words.
    pub(crate) fn choice<T: Clone>(&mut self, key: &str, words: &[(&str, T)], default: T) -> T {
        self.read(key, |value| choice(value, words)).unwrap_or(default)
    }

    /// The path of a file or folder.
    pub(crate) fn path(&mut self, key: &str) -> Option<PathBuf> {
        self.read(key, path)
    }

    /// As [`Fields::path`], for a key that has to be given.
    pub(crate) fn required_path(&mut self, key: &str, hint: &str) -> PathBuf {
        if !self.has(key) {
            let missing = self.cursor.problem(format!("`{key}` is missing"));
            self.problems.push(missing.with_hint(hint));
        }
        self.path(key).unwrap_or_default()
    }
}

/// The number, truth value or text of a node that should be `expected`.
pub(crate) fn scalar(value: &Cursor<'_>, expected: &str) -> Result<Scalar, Problem> {
    match value.node.content {
        Content::Plain(_) | Content::Quoted(_) => value.scalar(),
        _ => Err(value.mismatch(expected)),
    }
}

pub(crate) fn number(value: &Cursor<'_>, bounds: &Bounds) -> Result<f64, Problem> {
    let Scalar::Number(number) = scalar(value, bounds.noun)? else { return Err(value.mismatch(bounds.noun)) };
    if number.abs() > f64::from(f32::MAX) {
        let message = format!("{} is more than a 32-bit number holds", value.node.describe());
        return Err(value.problem(message));
    }
    if (bounds.holds)(number) { Ok(number) } else { Err(value.mismatch(bounds.noun)) }
}

pub(crate) fn count(value: &Cursor<'_>, least: u64) -> Result<u64, Problem> {
    let noun = format!("a whole number of at least {least}");
    match scalar(value, &noun)? {
        Scalar::Number(number) => whole(number).filter(|&count| count >= least).ok_or(()),
        _ => Err(()),
    }
    .map_err(|()| value.mismatch(&noun))
}

/// A number as a count: every count up to here is exact in f64, and a step or token count beyond it is a slip.
fn whole(number: f64) -> Option<u64> {
    const MOST: f64 = (1u64 << 53) as f64;
    (number.fract() == 0.0 && (0.0..=MOST).contains(&number)).then_some(number as u64)
}

/// A share, as a number or in percent: `0.03` or `3%`.
pub(crate) fn share(value: &Cursor<'_>) -> Option<Result<f64, Problem>> {
    let (Content::Plain(text) | Content::Quoted(text)) = &value.node.content else { return None };
    let percent = text.strip_suffix('%')?.trim().parse::<f64>();
    Some(match percent {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent / 100.0),
        _ => Err(value.mismatch("a percentage from 0 % to 100 %")),
    })
}

pub(crate) fn choice<T: Clone>(value: &Cursor<'_>, words: &[(&str, T)]) -> Result<T, Problem> {
    let names = || words.iter().map(|(name, _)| *name);
    let expected = format!("one of {}", listed(names()));
    let text = value.text(&expected)?;
    if let Some((_, chosen)) = words.iter().find(|(name, _)| *name == text) {
        return Ok(chosen.clone());
    }
    let problem = value.mismatch(&expected);
    Err(match nearest(text, names()) {
        Some(meant) => problem.with_hint(format!("did you mean `{meant}`?")),
        None => problem,
    })
}

/// A path, with a leading `~/` replaced by the user's home folder.
pub(crate) fn path(value: &Cursor<'_>) -> Result<PathBuf, Problem> {
    let text = value.text("a path")?;
    if text.trim().is_empty() {
        return Err(value.problem("the path is empty"));
    }
    if text.contains('\0') {
        return Err(value.problem(format!("{} is no path: it holds a zero byte", quoted(text))));
    }
    let path = expand_home(text);
    // A record of the run is text.
    Ok(if path.to_str().is_some() { path } else { PathBuf::from(text) })
}
