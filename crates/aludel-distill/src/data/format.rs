//! Tells from a file's name how its rows are stored.

use std::path::Path;

/// How rows are stored in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object on each line.
    JsonLines,
    /// Columns; a row has a value in each.
    Parquet,
    /// The whole file is one text.
    Text,
}

impl Format {
    /// The format that a file's name stands for, whatever the case of its letters; `None` for other names.
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" => Some(Self::JsonLines),
            "parquet" => Some(Self::Parquet),
            "txt" | "text" | "md" => Some(Self::Text),
            _ => None,
        }
    }
}
