//! Walks the tree of a document while keeping the path that led there, so that every problem can say where it is.
//!
//! In: nodes. Out: nodes of the expected shape with their places, or problems that say what was found instead.

use serde::Serialize;

use crate::problem::{Place, Problem, Problems};
use crate::scalar::{self, Scalar};
use crate::tree::{Content, Entry, Node};
use crate::words::{listed, nearest, quoted};

/// A value and where it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Where it begins.
    pub place: Place,
}

/// A key that may stand in a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// As it is written.
    pub name: &'static str,
    /// For keys that are understood and refused by this version: what to do instead.
    pub instead: Option<&'static str>,
}

impl Key {
    /// A key that is read.
    pub const fn read(name: &'static str) -> Self {
        Self { name, instead: None }
    }

    /// A key that this version refuses, with what to do instead.
    pub const fn later(name: &'static str, instead: &'static str) -> Self {
        Self { name, instead: Some(instead) }
    }
}

/// A node and the path to it.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    /// The node.
    pub node: &'a Node,
    path: String,
}

impl<'a> Cursor<'a> {
    /// The root of a document.
    pub fn root(node: &'a Node) -> Self {
        Self { node, path: String::new() }
    }

    /// Where the node is.
    pub fn place(&self) -> Place {
        Place { line: self.node.at.0, column: self.node.at.1, path: self.path.clone() }
    }

    /// A value read from this node, with its place.
    pub fn locate<T>(&self, value: T) -> Located<T> {
        Located { value, place: self.place() }
    }

    /// A problem of this node.
    pub fn problem(&self, message: impl Into<String>) -> Problem {
        Problem::at(self.place(), message)
    }

    /// A problem of this node: it is not `expected`, which is a noun with its article.
    pub fn mismatch(&self, expected: &str) -> Problem {
        self.problem(format!("expected {expected}, found {}", self.node.describe()))
    }

    /// The value of a key. A key whose value is nothing counts as absent.
    pub fn field(&self, key: &str) -> Option<Self> {
        let Content::Mapping(entries) = &self.node.content else { return None };
        let entry = entries.get(key).filter(|entry| !entry.value.is_nothing())?;
        Some(self.child(key, entry))
    }

    /// The keys with their places and values.
    ///
    /// # Errors
    /// The node is no mapping.
    pub fn entries(&self) -> Result<Vec<(&'a str, Place, Self)>, Problem> {
        let Content::Mapping(entries) = &self.node.content else { return Err(self.mismatch("a mapping")) };
        Ok(entries.iter().map(|(key, entry)| self.located_child(key, entry)).collect())
    }

    /// The elements of a list.
    ///
    /// # Errors
    /// The node is no list.
    pub fn items(&self) -> Result<Vec<Self>, Problem> {
        let Content::Sequence(items) = &self.node.content else { return Err(self.mismatch("a list")) };
        Ok(items.iter().enumerate().map(|(index, node)| self.item(index, node)).collect())
    }

    /// The text of a scalar, quoted or not.
    ///
    /// # Errors
    /// The node is a collection or nothing; `expected` says what should be there.
    pub fn text(&self, expected: &str) -> Result<&'a str, Problem> {
        match &self.node.content {
            Content::Plain(text) | Content::Quoted(text) if !self.node.is_nothing() => Ok(text),
            _ => Err(self.mismatch(expected)),
        }
    }

    /// The number, truth value or text of a scalar.
    ///
    /// # Errors
    /// The node is a collection or nothing, or reads as a number that is not finite or that YAML readers disagree about.
    pub fn scalar(&self) -> Result<Scalar, Problem> {
        scalar::read(self)
    }

    /// Reports every key that is not among `known`, and every known one that is not supported yet. `otherwise` is a hint for
    /// keys that resemble none, put before the list of those known; it may be empty.
    pub fn check_keys(&self, known: &[Key], otherwise: &str, problems: &mut Problems) {
        for (name, place, value) in self.entries().unwrap_or_default() {
            match known.iter().find(|key| key.name == name) {
                None => problems.push(unknown_key(name, place, known, otherwise)),
                Some(Key { instead: Some(instead), .. }) if !value.node.is_nothing() => {
                    let message = format!("`{name}` is not supported by this version yet");
                    problems.push(Problem::at(place, message).with_hint(*instead));
                }
                Some(_) => {}
            }
        }
    }

    fn child(&self, key: &str, entry: &'a Entry) -> Self {
        let mut path = self.path.clone();
        extend_with_key(&mut path, key);
        Self { node: &entry.value, path }
    }

    fn located_child(&self, key: &'a str, entry: &'a Entry) -> (&'a str, Place, Self) {
        let child = self.child(key, entry);
        (key, Place { line: entry.at.0, column: entry.at.1, path: child.path.clone() }, child)
    }

    fn item(&self, index: usize, node: &'a Node) -> Self {
        let mut path = self.path.clone();
        extend_with_index(&mut path, index);
        Self { node, path }
    }
}

fn unknown_key(name: &str, place: Place, known: &[Key], otherwise: &str) -> Problem {
    let supported = || listed(known.iter().filter(|key| key.instead.is_none()).map(|key| key.name));
    let hint = match nearest(name, known.iter().map(|key| key.name)) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None if otherwise.is_empty() => format!("known here: {}", supported()),
        None => format!("{otherwise}; known here: {}", supported()),
    };
    Problem::at(place, format!("unknown key {}", quoted(name))).with_hint(hint)
}

/// Appends a key to a path; one that is no plain word is quoted.
pub(crate) fn extend_with_key(path: &mut String, key: &str) {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !path.is_empty() {
        path.push('.');
    }
    if key.len() <= 60 && !key.is_empty() && key.bytes().all(is_word) {
        path.push_str(key);
    } else {
        path.push_str(&quoted(key));
    }
}

/// Appends a position in a list to a path.
pub(crate) fn extend_with_index(path: &mut String, index: usize) {
    path.push_str(&format!("[{index}]"));
}
