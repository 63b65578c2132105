//! Reads YAML into a tree in which every key and value keeps its place.
//!
//! In: text of any origin. Out: one tree, or problems. Aliases and merge keys (`<<`) are expanded here, within bounds on
//! depth and memory; repeated keys are problems. Scalars keep their text: what it means is decided by whoever expects
//! something there, since `1.10` may be a number or the name of a folder.
//!
//! It builds on the events of saphyr's parser and not on its ready-made tree, because that tree loses the text of
//! scalars, stops at the first repeated key, and nests by recursion without a bound.

use std::collections::HashMap;

use indexmap::IndexMap;
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span, Tag};

use crate::cursor::{extend_with_index, extend_with_key};
use crate::problem::{Place, Problem, Problems};
use crate::words::quoted;

/// A value of the document.
#[derive(Debug, Clone)]
pub struct Node {
    /// Line and column, counted from 1, of its first character; of its key when nothing is written.
    pub at: (usize, usize),
    /// What it holds.
    pub content: Content,
}

/// What a node holds.
#[derive(Debug, Clone)]
pub enum Content {
    /// Text without quotes, which may mean a number, a truth value or nothing.
    Plain(String),
    /// Text in quotes or in a block, which is text.
    Quoted(String),
    /// A list.
    Sequence(Vec<Node>),
    /// Keys with values, in the order written.
    Mapping(IndexMap<String, Entry>),
}

/// The value of a key.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Line and column of the key.
    pub at: (usize, usize),
    /// What stands under it.
    pub value: Node,
}

/// The largest text that is read, in bytes: the scanner holds some 150 times as
/// much while it looks ahead in a list.
const LARGEST_TEXT: usize = 1 << 20;
/// The deepest nesting that is read; a merge recipe needs nine levels.
const DEEPEST: usize = 64;
/// The memory that the tree may take with all aliases expanded, in bytes, roughly.
const LARGEST_TREE: usize = 64 << 20;

/// Reads the first document of `text`; `noun` is what messages call it, as in "the recipe is empty".
///
/// `None` means that there is no tree, and that a problem says why. A tree may come with problems as well: repeated
/// keys, keys that are no text, further documents.
pub fn read(text: &str, noun: &str, problems: &mut Problems) -> Option<Node> {
    let result = if text.len() > LARGEST_TEXT {
        Err(too_long(text, noun))
    } else {
        Builder::new(noun, problems).build(text)
    };
    problems.take(result)
}

/// Reads every document of `text`, as [`read`] reads one. Documents in which nothing is written are left out, unless there
/// is no other. All of them together have the memory that one has; anchors hold within their document.
pub fn read_all(text: &str, noun: &str, problems: &mut Problems) -> Vec<Node> {
    if text.len() > LARGEST_TEXT {
        problems.push(too_long(text, noun));
        return Vec::new();
    }
    let mut documents = Vec::new();
    let result = Builder::new(noun, problems).build_all(text, &mut documents);
    problems.take(result);
    if documents.iter().any(|document| !document.is_nothing()) {
        documents.retain(|document| !document.is_nothing());
    }
    documents
}

fn too_long(text: &str, noun: &str) -> Problem {
    Problem::at(start(), format!("the {noun} has {} bytes; at most {LARGEST_TEXT} are read", text.len()))
}

fn start() -> Place {
    Place { line: 1, column: 1, path: String::new() }
}

struct Builder<'p> {
    /// The collections that are open, outermost first.
    open: Vec<Collection>,
    root: Option<Node>,
    anchors: HashMap<usize, Node>,
    /// Bytes used of `LARGEST_TREE`.
    used: usize,
    noun: &'p str,
    problems: &'p mut Problems,
}

struct Collection {
    at: (usize, usize),
    anchor: usize,
    content: Partial,
}

enum Partial {
    Sequence(Vec<Node>),
    Mapping { entries: IndexMap<String, Entry>, pending: Option<PendingKey>, merged: Vec<Node> },
}

/// A key that waits for its value.
struct PendingKey {
    at: (usize, usize),
    /// `None` for a key that was refused: its value is dropped.
    text: Option<String>,
    merges: bool,
}

impl<'p> Builder<'p> {
    fn new(noun: &'p str, problems: &'p mut Problems) -> Self {
        Self { open: Vec::new(), root: None, anchors: HashMap::new(), used: 0, noun, problems }
    }

    fn build(mut self, text: &str) -> Result<Node, Problem> {
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| syntax_problem(&error))?;
            if matches!(event, Event::DocumentStart(_)) && self.root.is_some() {
                self.problems.push(second_document(span, self.noun));
                break;
            }
            self.take(event, span.start)?;
        }
        let noun = self.noun;
        self.root.ok_or_else(|| Problem::at(start(), format!("the {noun} is empty")))
    }

    fn build_all(mut self, text: &str, documents: &mut Vec<Node>) -> Result<(), Problem> {
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| syntax_problem(&error))?;
            if matches!(event, Event::DocumentStart(_)) {
                documents.extend(self.root.take());
                self.anchors.clear();
            }
            self.take(event, span.start)?;
        }
        documents.extend(self.root.take());
        if documents.is_empty() {
            return Err(Problem::at(start(), format!("the {} is empty", self.noun)));
        }
        Ok(())
    }

    fn take(&mut self, event: Event<'_>, marker: Marker) -> Result<(), Problem> {
        let at = (marker.line(), marker.col() + 1);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_text = self.is_text(style, tag.as_deref(), at);
                let content = if is_text { Content::Quoted } else { Content::Plain }(text.into_owned());
                self.finish(Node { at, content }, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                self.is_text(ScalarStyle::Plain, tag.as_deref(), at);
                self.open(at, anchor, Partial::Sequence(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                self.is_text(ScalarStyle::Plain, tag.as_deref(), at);
                let content =
                    Partial::Mapping { entries: IndexMap::new(), pending: None, merged: Vec::new() };
                self.open(at, anchor, content)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => self.expand(anchor, at),
            _ => Ok(()),
        }
    }

    /// Whether a scalar is text whatever it looks like. Tags other than YAML's own become a problem.
    fn is_text(&mut self, style: ScalarStyle, tag: Option<&Tag>, at: (usize, usize)) -> bool {
        match tag {
            None => style != ScalarStyle::Plain,
            Some(tag) if tag.is_yaml_core_schema() => tag.suffix == "str" || style != ScalarStyle::Plain,
            Some(tag) => {
                let message =
                    format!("the tag {} has no meaning in a {}", quoted(&tag.to_string()), self.noun);
                self.problems.push(Problem::at(self.place(at), message).with_hint("remove it"));
                true
            }
        }
    }

    fn open(&mut self, at: (usize, usize), anchor: usize, content: Partial) -> Result<(), Problem> {
        if self.open.len() == DEEPEST {
            let message = format!("nested deeper than {DEEPEST} levels");
            return Err(Problem::at(self.place(at), message));
        }
        self.open.push(Collection { at, anchor, content });
        Ok(())
    }

    fn close(&mut self) -> Result<(), Problem> {
        let Some(Collection { at, anchor, content }) = self.open.pop() else { return Ok(()) };
        let content = match content {
            Partial::Sequence(items) => Content::Sequence(items),
            Partial::Mapping { mut entries, merged, .. } => {
                for node in merged {
                    self.merge(&mut entries, node);
                }
                Content::Mapping(entries)
            }
        };
        self.finish(Node { at, content }, anchor)
    }

    /// Adds what a `<<` key brought. Keys written out win over merged ones, and earlier merged ones over later.
    fn merge(&mut self, entries: &mut IndexMap<String, Entry>, node: Node) {
        match node.content {
            Content::Mapping(brought) => {
                for (key, entry) in brought {
                    entries.entry(key).or_insert(entry);
                }
            }
            Content::Sequence(nodes) if nodes.iter().all(Node::is_mapping) => {
                nodes.into_iter().for_each(|node| self.merge(entries, node));
            }
            _ => {
                let message = format!("`<<` merges mappings, found {}", node.describe());
                self.problems.push(Problem::at(self.place(node.at), message));
            }
        }
    }

    /// Puts a copy of an anchored node here; the copy keeps the places where its parts are written.
    fn expand(&mut self, anchor: usize, at: (usize, usize)) -> Result<(), Problem> {
        let Some(node) = self.anchors.get(&anchor) else {
            return Err(Problem::at(self.place(at), "this alias stands inside the value that it repeats"));
        };
        let bytes = node.bytes();
        self.charge(bytes, at)?;
        let node = self.anchors.get(&anchor).cloned();
        node.map_or(Ok(()), |node| self.attach(node))
    }

    /// Takes a whole node: remembers it when it has an anchor, then puts it where it belongs.
    fn finish(&mut self, node: Node, anchor: usize) -> Result<(), Problem> {
        self.charge(node.own_bytes(), node.at)?;
        if anchor > 0 {
            self.charge(node.bytes(), node.at)?;
            self.anchors.insert(anchor, node.clone());
        }
        self.attach(node)
    }

    fn charge(&mut self, bytes: usize, at: (usize, usize)) -> Result<(), Problem> {
        self.used = self.used.saturating_add(bytes);
        if self.used <= LARGEST_TREE {
            return Ok(());
        }
        let limit = LARGEST_TREE >> 20;
        let message = format!("the {} takes more than {limit} MiB with its aliases expanded", self.noun);
        Err(Problem::at(self.place(at), message))
    }

    fn attach(&mut self, node: Node) -> Result<(), Problem> {
        match self.open.last_mut().map(|collection| &mut collection.content) {
            None => self.root = Some(node),
            Some(Partial::Sequence(items)) => items.push(node),
            Some(Partial::Mapping { pending, merged, entries }) => match pending.take() {
                None => {
                    let key = self.key(node);
                    self.set_pending(key);
                }
                Some(key) if key.merges => merged.push(node),
                Some(PendingKey { text: Some(text), at, .. }) => {
                    entries.insert(text, Entry { at, value: node.at_key_if_empty(at) });
                }
                Some(PendingKey { text: None, .. }) => {}
            },
        }
        Ok(())
    }

    /// What a node means as a key; a repeated key or one that is no text becomes a problem.
    fn key(&mut self, node: Node) -> PendingKey {
        let at = node.at;
        let plain = matches!(node.content, Content::Plain(_));
        let (Content::Plain(text) | Content::Quoted(text)) = node.content else {
            let message = format!("a key is text, found {}", node.describe());
            self.problems.push(Problem::at(self.place(at), message));
            return PendingKey { at, text: None, merges: false };
        };
        if plain && text == "<<" {
            return PendingKey { at, text: None, merges: true };
        }
        let text = self.unless_repeated(text, at);
        PendingKey { at, text, merges: false }
    }

    fn unless_repeated(&mut self, text: String, at: (usize, usize)) -> Option<String> {
        let Some(Collection { content: Partial::Mapping { entries, .. }, .. }) = self.open.last() else {
            return None;
        };
        let Some(first) = entries.get(&text) else { return Some(text) };
        let message = format!("{} is given twice, first on line {}", quoted(&text), first.at.0);
        let mut place = self.place(at);
        extend_with_key(&mut place.path, &text);
        self.problems.push(Problem::at(place, message).with_hint("keep one of them"));
        None
    }

    fn set_pending(&mut self, key: PendingKey) {
        if let Some(Collection { content: Partial::Mapping { pending, .. }, .. }) = self.open.last_mut() {
            *pending = Some(key);
        }
    }

    /// This spot, with the path of whatever is being read.
    fn place(&self, (line, column): (usize, usize)) -> Place {
        let mut path = String::new();
        for collection in &self.open {
            match &collection.content {
                Partial::Sequence(items) => extend_with_index(&mut path, items.len()),
                Partial::Mapping { pending: Some(PendingKey { text: Some(key), .. }), .. } => {
                    extend_with_key(&mut path, key);
                }
                Partial::Mapping { .. } => {}
            }
        }
        Place { line, column, path }
    }
}

fn syntax_problem(error: &ScanError) -> Problem {
    let marker = error.marker();
    let place = Place { line: marker.line(), column: marker.col() + 1, path: String::new() };
    let problem = Problem::at(place, format!("not valid YAML: {}", error.info()));
    if error.info().contains("alias") || error.info().contains("anchor") {
        return problem.with_hint("to mean the character itself, quote it: \"*\" or \"&\"");
    }
    problem
}

fn second_document(span: Span, noun: &str) -> Problem {
    let place = Place { line: span.start.line(), column: span.start.col() + 1, path: String::new() };
    Problem::at(place, format!("several {noun}s in one file are not supported by this version yet"))
        .with_hint(format!("keep one {noun} per file"))
}

impl Node {
    /// Whether it is a mapping.
    pub fn is_mapping(&self) -> bool {
        matches!(self.content, Content::Mapping(_))
    }

    /// Whether the value is YAML's nothing: unquoted `null`, `~` or no text at all.
    pub fn is_nothing(&self) -> bool {
        matches!(&self.content, Content::Plain(text) if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The node in words, to follow "found".
    pub fn describe(&self) -> String {
        match &self.content {
            _ if self.is_nothing() => "nothing".into(),
            Content::Plain(text) => quoted(text),
            Content::Quoted(text) => format!("the text {}", quoted(text)),
            Content::Sequence(_) => "a list".into(),
            Content::Mapping(_) => "a mapping".into(),
        }
    }

    /// A value of which nothing is written has no place of its own: it takes its key's.
    fn at_key_if_empty(mut self, key: (usize, usize)) -> Self {
        if matches!(&self.content, Content::Plain(text) if text.is_empty()) {
            self.at = key;
        }
        self
    }

    /// Bytes that this node takes without the nodes inside it, roughly.
    fn own_bytes(&self) -> usize {
        let content = match &self.content {
            Content::Plain(text) | Content::Quoted(text) => text.len(),
            Content::Sequence(_) => 0,
            Content::Mapping(entries) => entries.keys().map(|key| ENTRY_BYTES + key.len()).sum(),
        };
        size_of::<Self>() + content
    }

    /// Bytes that this node takes with all that is inside it, roughly.
    fn bytes(&self) -> usize {
        let inside: usize = match &self.content {
            Content::Plain(_) | Content::Quoted(_) => 0,
            Content::Sequence(items) => items.iter().map(Self::bytes).sum(),
            Content::Mapping(entries) => entries.values().map(|entry| entry.value.bytes()).sum(),
        };
        self.own_bytes() + inside
    }
}

/// What an entry of a mapping takes beside its value and the text of its key: its hash, its slot and its strings.
const ENTRY_BYTES: usize =
    size_of::<Entry>() - size_of::<Node>() + size_of::<String>() + 2 * size_of::<usize>();

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(text: &str) -> Result<Vec<String>, String> {
        let mut problems = Problems::new();
        let documents = read_all(text, "recipe", &mut problems);
        let shown = documents.iter().map(|document| format!("{:?} {}", document.at, document.describe()));
        if problems.is_empty() { Ok(shown.collect()) } else { Err(problems.to_string()) }
    }

    #[test]
    fn every_document_is_read_and_empty_ones_are_left_out() {
        for (text, expected) in [
            ("a", vec!["(1, 1) `a`"]),
            ("--- a\n--- b\n", vec!["(1, 5) `a`", "(2, 5) `b`"]),
            ("---\na: 1\n---\nb: 2\n---\n", vec!["(2, 1) a mapping", "(4, 1) a mapping"]),
            ("---\n---\n[a]\n...\n", vec!["(3, 1) a list"]),
        ] {
            assert_eq!(documents(text).unwrap(), expected, "{text:?}");
        }
        assert_eq!(documents("").unwrap_err(), "1:1: the recipe is empty");
        assert_eq!(documents("---\n").unwrap().len(), 1);
    }

    #[test]
    fn anchors_end_with_their_document_and_the_memory_does_not_begin_anew() {
        assert!(documents("a: &x 1\nb: *x\n---\nc: *x\n").is_err());
        let text = format!("--- &a {}\n", "x".repeat(900));
        let text = text.repeat(1000);
        assert!(documents(&text).is_ok());
        let bomb = format!("a: &a {}\nb: [{}]\n---\n", "x".repeat(20_000), "*a, ".repeat(700));
        let error = documents(&bomb.repeat(5)).unwrap_err();
        assert!(error.contains("takes more than 64 MiB"), "{error}");
    }
}
