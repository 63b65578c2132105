//! Walks the tree of a document while keeping the path that led there, so that every problem can say where it is.
//!
//! In: nodes. Out: nodes of the expected shape with their places, or problems that say what was found instead.

use super::Located;
use super::document::{Content, Entry, Node};
use super::keys::{Key, listed, nearest, quoted};
use crate::problem::{Place, Problem, Problems};

/// A node and the path to it.
#[derive(Debug, Clone)]
pub(super) struct Cursor<'a> {
    pub(super) node: &'a Node,
    path: String,
}

impl<'a> Cursor<'a> {
    pub(super) fn root(node: &'a Node) -> Self {
        Self { node, path: String::new() }
    }

    pub(super) fn place(&self) -> Place {
        Place { line: self.node.at.0, column: self.node.at.1, path: self.path.clone() }
    }

    pub(super) fn locate<T>(&self, value: T) -> Located<T> {
        Located { value, place: self.place() }
    }

    /// A problem of this node.
    pub(super) fn problem(&self, message: impl Into<String>) -> Problem {
        Problem::at(self.place(), message)
    }

    /// A problem of this node: it is not `expected`, which is a noun with its article.
    pub(super) fn mismatch(&self, expected: &str) -> Problem {
        self.problem(format!("expected {expected}, found {}", self.node.describe()))
    }

    /// The value of a key. A key whose value is nothing counts as absent.
    pub(super) fn field(&self, key: &str) -> Option<Self> {
        let Content::Mapping(entries) = &self.node.content else { return None };
        let entry = entries.get(key).filter(|entry| !entry.value.is_nothing())?;
        Some(self.child(key, entry))
    }

    /// The keys with their places and values.
    ///
    /// # Errors
    /// The node is no mapping.
    pub(super) fn entries(&self) -> Result<Vec<(&'a str, Place, Self)>, Problem> {
        let Content::Mapping(entries) = &self.node.content else { return Err(self.mismatch("a mapping")) };
        Ok(entries.iter().map(|(key, entry)| self.located_child(key, entry)).collect())
    }

    /// The elements of a list.
    ///
    /// # Errors
    /// The node is no list.
    pub(super) fn items(&self) -> Result<Vec<Self>, Problem> {
        let Content::Sequence(items) = &self.node.content else { return Err(self.mismatch("a list")) };
        Ok(items.iter().enumerate().map(|(index, node)| self.item(index, node)).collect())
    }

    /// The text of a scalar, quoted or not.
    ///
    /// # Errors
    /// The node is a collection or nothing; `expected` says what should be there.
    pub(super) fn text(&self, expected: &str) -> Result<&'a str, Problem> {
        match &self.node.content {
            Content::Plain(text) | Content::Quoted(text) if !self.node.is_nothing() => Ok(text),
            _ => Err(self.mismatch(expected)),
        }
    }

    /// Reports every key that is not among `known`, and every known one that is not supported yet.
    pub(super) fn check_keys(&self, known: &[Key], otherwise: &str, problems: &mut Problems) {
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
pub(super) fn extend_with_key(path: &mut String, key: &str) {
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
pub(super) fn extend_with_index(path: &mut String, index: usize) {
    path.push_str(&format!("[{index}]"));
}
