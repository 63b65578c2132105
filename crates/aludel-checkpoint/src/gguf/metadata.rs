//! Holds a GGUF file's metadata as the bytes it came in, and reads values out of them on demand.
//!
//! In: the header's bytes and the places of the values in them, already held against their length. Out: texts, numbers,
//! flags and arrays by key. Nothing is copied until it is asked for, so a file cannot make a reader allocate more than a
//! small multiple of its own size. What the keys mean is not known here.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Keys and values of one file.
#[derive(Debug)]
pub(super) struct Metadata {
    pub(super) path: PathBuf,
    bytes: Vec<u8>,
    /// Sorted by key.
    entries: Vec<Entry>,
}

/// Where one key and its value lie in the header's bytes.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: Span,
    pub(super) kind: Kind,
    /// The value; for an array, its elements without type and count.
    pub(super) value: Span,
}

/// A range of the header's bytes. Headers are smaller than 4 GiB.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) end: u32,
}

impl Span {
    fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    One(Scalar),
    Array(Scalar, u32),
    /// An array of arrays: no key that is read here has one.
    Nested,
}

/// The types of single values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scalar {
    Unsigned(u8),
    Signed(u8),
    Float(u8),
    Flag,
    Text,
}

impl Scalar {
    /// Bytes of one value; `None` for texts, whose length is written before them.
    pub(super) fn bytes(self) -> Option<u64> {
        match self {
            Self::Unsigned(bytes) | Self::Signed(bytes) | Self::Float(bytes) => Some(bytes.into()),
            Self::Flag => Some(1),
            Self::Text => None,
        }
    }
}

impl Metadata {
    /// Sorts the entries. Errors: [`Error::Damaged`] when a key is there twice.
    pub(super) fn new(path: &Path, bytes: Vec<u8>, mut entries: Vec<Entry>) -> Result<Self, Error> {
        entries.sort_by(|left, right| bytes[left.key.range()].cmp(&bytes[right.key.range()]));
        let same = |pair: &&[Entry]| bytes[pair[0].key.range()] == bytes[pair[1].key.range()];
        if let Some(pair) = entries.windows(2).find(same) {
            let key = String::from_utf8_lossy(&bytes[pair[0].key.range()]).into_owned();
            return Err(Error::damaged(path, format!("metadata key {key:?} is there twice")));
        }
        Ok(Self { path: path.to_path_buf(), bytes, entries })
    }

    /// A text.
    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, Error> {
        let Some(entry) = self.entry(key) else { return Ok(None) };
        match entry.kind {
            Kind::One(Scalar::Text) => self.utf8(key, &self.bytes[entry.value.range()]).map(Some),
            _ => Err(self.wrong(key, "text")),
        }
    }

    /// A whole number that is not negative, of any width.
    pub(super) fn count(&self, key: &str) -> Result<Option<u64>, Error> {
        let Some(entry) = self.entry(key) else { return Ok(None) };
        let value = match entry.kind {
            Kind::One(scalar) => whole(scalar, &self.bytes[entry.value.range()]),
            // Written per layer where an architecture allows layers to differ.
            Kind::Array(scalar, _) => self.uniform(key, scalar, entry)?,
            Kind::Nested => None,
        };
        let value = value.ok_or_else(|| self.wrong(key, "a whole number"))?;
        u64::try_from(value).map(Some).map_err(|_| self.wrong(key, "a number that is not negative"))
    }

    /// A number; an f32 is taken as the shortest decimal that names it, so that 1e-5 stays 1e-5.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        let Some(entry) = self.entry(key) else { return Ok(None) };
        let Kind::One(scalar) = entry.kind else { return Err(self.wrong(key, "a number")) };
        let value = real(scalar, &self.bytes[entry.value.range()]).filter(|value| value.is_finite());
        value.map(Some).ok_or_else(|| self.wrong(key, "a finite number"))
    }

    /// A truth value.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        let Some(entry) = self.entry(key) else { return Ok(None) };
        match entry.kind {
            Kind::One(Scalar::Flag) => Ok(Some(self.bytes[entry.value.range()] != [0])),
            _ => Err(self.wrong(key, "true or false")),
        }
    }

    /// An array of texts. Errors: [`Error::Damaged`] also when one of them is not UTF-8.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Texts<'_>>, Error> {
        let Some(entry) = self.entry(key) else { return Ok(None) };
        let Kind::Array(Scalar::Text, count) = entry.kind else {
            return Err(self.wrong(key, "an array of texts"));
        };
        let bytes = &self.bytes[entry.value.range()];
        let mut starts = Vec::with_capacity(count as usize);
        let mut at = 0;
        for _ in 0..count {
            let end = text_end(bytes, at).ok_or_else(|| self.wrong(key, "an array of texts"))?;
            self.utf8(key, &bytes[at + LENGTH_BYTES..end])?;
            starts.push(at as u32);
            at = end;
        }
        Ok(Some(Texts { bytes, starts }))
    }

    /// An array of numbers, as f32.
    pub(super) fn numbers(&self, key: &str) -> Result<Option<Vec<f32>>, Error> {
        let to_f32 = |scalar, bytes: &[u8]| match scalar {
            Scalar::Float(4) => word(bytes).map(f32::from_le_bytes),
            _ => real(scalar, bytes).map(|value| value as f32),
        };
        self.array(key, "an array of numbers", to_f32)
    }

    /// An array of whole numbers that fit i32.
    pub(super) fn integers(&self, key: &str) -> Result<Option<Vec<i32>>, Error> {
        self.array(key, "an array of whole numbers", |scalar, bytes| whole(scalar, bytes)?.try_into().ok())
    }

    fn array<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(Scalar, &[u8]) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Error> {
        let Some(entry) = self.entry(key) else { return Ok(None) };
        let Kind::Array(scalar, count) = entry.kind else { return Err(self.wrong(key, expected)) };
        let bytes = scalar.bytes().ok_or_else(|| self.wrong(key, expected))? as usize;
        let mut values = Vec::with_capacity(count as usize);
        for chunk in self.bytes[entry.value.range()].chunks_exact(bytes) {
            values.push(read(scalar, chunk).ok_or_else(|| self.wrong(key, expected))?);
        }
        Ok(Some(values))
    }

    /// The one value of an array whose elements are all equal.
    fn uniform(&self, key: &str, scalar: Scalar, entry: &Entry) -> Result<Option<i128>, Error> {
        let Some(bytes) = scalar.bytes() else { return Ok(None) };
        let mut values =
            self.bytes[entry.value.range()].chunks_exact(bytes as usize).map(|chunk| whole(scalar, chunk));
        let first = values.next().flatten();
        if values.any(|value| value != first) {
            let detail = format!("{key} differs between layers, which the output's config.json cannot say");
            return Err(Error::unsupported(&self.path, detail));
        }
        Ok(first)
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        let found = self.entries.binary_search_by(|entry| self.bytes[entry.key.range()].cmp(key.as_bytes()));
        found.ok().map(|index| &self.entries[index])
    }

    fn utf8<'a>(&self, key: &str, bytes: &'a [u8]) -> Result<&'a str, Error> {
        std::str::from_utf8(bytes)
            .map_err(|_| Error::damaged(&self.path, format!("{key} holds text that is not UTF-8")))
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        Error::damaged(&self.path, format!("metadata key {key:?} should be {expected}"))
    }
}

/// An array of texts inside the header's bytes.
#[derive(Debug)]
pub(super) struct Texts<'a> {
    bytes: &'a [u8],
    starts: Vec<u32>,
}

impl<'a> Texts<'a> {
    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    /// The text at an index; `None` past the end.
    pub(super) fn at(&self, index: usize) -> Option<&'a str> {
        let start = *self.starts.get(index)? as usize;
        let end = text_end(self.bytes, start)?;
        std::str::from_utf8(&self.bytes[start + LENGTH_BYTES..end]).ok()
    }

    /// Every text in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &'a str> + '_ {
        (0..self.len()).map_while(|index| self.at(index))
    }
}

/// The end of the length-prefixed text at `start`; `None` when it leaves the bytes.
fn text_end(bytes: &[u8], start: usize) -> Option<usize> {
    let begin = start.checked_add(LENGTH_BYTES)?;
    let length = u64::from_le_bytes(word(bytes.get(start..begin)?)?);
    begin.checked_add(usize::try_from(length).ok()?).filter(|&end| end <= bytes.len())
}

fn whole(scalar: Scalar, bytes: &[u8]) -> Option<i128> {
    match scalar {
        Scalar::Unsigned(1) => Some(bytes[0].into()),
        Scalar::Unsigned(2) => word(bytes).map(|word| u16::from_le_bytes(word).into()),
        Scalar::Unsigned(4) => word(bytes).map(|word| u32::from_le_bytes(word).into()),
        Scalar::Unsigned(8) => word(bytes).map(|word| u64::from_le_bytes(word).into()),
        Scalar::Signed(1) => word(bytes).map(|word| i8::from_le_bytes(word).into()),
        Scalar::Signed(2) => word(bytes).map(|word| i16::from_le_bytes(word).into()),
        Scalar::Signed(4) => word(bytes).map(|word| i32::from_le_bytes(word).into()),
        Scalar::Signed(8) => word(bytes).map(|word| i64::from_le_bytes(word).into()),
        _ => None,
    }
}

fn real(scalar: Scalar, bytes: &[u8]) -> Option<f64> {
    match scalar {
        Scalar::Float(4) => shortest(f32::from_le_bytes(word(bytes)?)),
        Scalar::Float(8) => word(bytes).map(f64::from_le_bytes),
        _ => whole(scalar, bytes).map(|value| value as f64),
    }
}

/// The f64 nearest to the shortest decimal that names an f32: what its author wrote, most likely.
pub(super) fn shortest(value: f32) -> Option<f64> {
    value.to_string().parse().ok()
}

fn word<const BYTES: usize>(bytes: &[u8]) -> Option<[u8; BYTES]> {
    bytes.try_into().ok()
}

/// Texts are preceded by their length as u64.
pub(super) const LENGTH_BYTES: usize = 8;
