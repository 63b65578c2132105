//! Tests the data from files to steps: what is read, what is learned, how it is packed, and that a run goes on where it was.

mod aligned;
mod files;
mod learned;
mod steps;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aludel_model::Tokenizer;

use super::*;
use crate::run::{Data, Run};

/// The workspace, where examples and goldens are.
fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A byte-level tokenizer of 512 tokens, whose end-of-text token is 0; nothing is put before a text.
fn tokenizer() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::open(&workspace().join("examples/models/base")).unwrap())
}

/// Files of a test, gone when it ends.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

/// Settings for these files, with more keys in flow style.
fn settings(train: &[&Path], more: &str) -> Data {
    run(train, more, "").data
}

fn run(train: &[&Path], data: &str, rest: &str) -> Run {
    let files: Vec<String> = train.iter().map(|path| format!("\"{}\"", path.display())).collect();
    let text = format!("student: s\noutput: o\ndata: {{train: [{}], {data}}}\n{rest}", files.join(", "));
    Run::parse(&text).unwrap()
}

fn encoder(settings: &Data) -> Arc<Encoder> {
    Arc::new(Encoder::new(tokenizer(), settings).unwrap())
}

/// JSON lines of texts.
fn texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    texts.into_iter().map(|text| serde_json::json!({ "text": text }).to_string() + "\n").collect()
}
