//! Reads what stands under `data:`.
//!
//! In: its node. Out: [`Data`]. Whether the files exist, and what is in them, is not known here.

use std::path::PathBuf;

use aludel_document::{Content, Cursor, Key, Problem, Problems, Scalar};
use aludel_model::chat::Moment;
use serde::{Serialize, Serializer};

use super::fields::{self, Fields};
use crate::data::Format;

/// What is read, and how it becomes sequences.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Data {
    /// Files of the training data, read in this order; at least one.
    pub train: Vec<PathBuf>,
    /// What the student is evaluated on.
    pub validation: Option<Validation>,
    /// Names of the columns.
    pub columns: Columns,
    /// Tokens of a sequence.
    pub sequence_length: usize,
    /// How documents share sequences.
    pub packing: Packing,
    /// Which tokens are learned.
    pub loss_on: LossOn,
    /// A file with a chat template, instead of the tokenizer's own.
    pub chat_template: Option<PathBuf>,
    /// What a chat template takes for today.
    #[serde(serialize_with = "as_date")]
    pub date: Moment,
    /// What becomes of documents that are longer than a sequence.
    pub long_documents: LongDocuments,
    /// What becomes of rows that cannot be read.
    pub bad_rows: BadRows,
    /// Whether rows are put into a new random order in every epoch.
    pub shuffle: bool,
}

/// What the student is evaluated on.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Validation {
    /// Files of their own.
    Files(Vec<PathBuf>),
    /// This share of the training rows, chosen by their content and not trained on; above 0 and below 1.
    Share(f64),
}

/// Names of the columns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Columns {
    /// Holds a text.
    pub text: String,
    /// Holds a conversation.
    pub messages: String,
    /// Holds what comes before a completion.
    pub prompt: String,
    /// Holds the completion.
    pub completion: String,
    /// Holds tokens by their ids.
    #[serde(skip_serializing_if = "is_input_ids")]
    pub input_ids: String,
    /// Holds, beside tokens, which of them are learned.
    #[serde(skip_serializing_if = "is_labels")]
    pub labels: String,
}

// What decides the rows of a run is compared as JSON. Keys that came later than caches and checkpoints are left out of it where they say what
// was so before.
fn is_input_ids(name: &str) -> bool {
    name == "input_ids"
}

fn is_labels(name: &str) -> bool {
    name == "labels"
}

/// How documents share sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// Each document is one sequence.
    None,
    /// Documents follow one another in a sequence while they fit, without seeing each other.
    Fill,
}

/// Which tokens are learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LossOn {
    /// Completions and assistant turns only; whole texts, which have neither.
    Completions,
    /// Every token.
    All,
}

/// What becomes of documents that are longer than a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LongDocuments {
    /// They are cut into several.
    Split,
    /// What does not fit is left out.
    Truncate,
}

/// What becomes of rows that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BadRows {
    /// The run stops and says which.
    Refuse,
    /// They are left out and counted.
    Skip,
}

impl Default for Columns {
    fn default() -> Self {
        let [text, messages, prompt, completion, input_ids, labels] =
            ["text", "messages", "prompt", "completion", "input_ids", "labels"].map(str::to_owned);
        Self { text, messages, prompt, completion, input_ids, labels }
    }
}

const KEYS: &[Key] = &[
    Key::read("train"),
    Key::read("validation"),
    Key::read("columns"),
    Key::read("sequence_length"),
    Key::read("packing"),
    Key::read("loss_on"),
    Key::read("chat_template"),
    Key::read("date"),
    Key::read("long_documents"),
    Key::read("bad_rows"),
    Key::read("shuffle"),
];

const COLUMNS: &[Key] = &[
    Key::read("text"),
    Key::read("messages"),
    Key::read("prompt"),
    Key::read("completion"),
    Key::read("input_ids"),
    Key::read("labels"),
];

/// The longest sequence that is accepted: positions are stored in 32 bits with room to spare.
const LONGEST: u64 = 1 << 24;

pub(super) fn read(cursor: Cursor<'_>, problems: &mut Problems) -> Option<Data> {
    let mut fields = Fields::open(cursor, KEYS, "", problems)?;
    if !fields.has("train") {
        fields.report(
            "train",
            "`train` is missing",
            "list the files to train on, as in `train: [data.jsonl]`",
        );
    }
    let train = fields.read("train", files).unwrap_or_default();
    let validation = fields.read("validation", validation);
    let columns = columns(&mut fields);
    Some(Data {
        train,
        validation,
        columns,
        sequence_length: sequence_length(&mut fields),
        packing: if fields.truth("packing", true) { Packing::Fill } else { Packing::None },
        loss_on: fields.choice(
            "loss_on",
            &[("completions", LossOn::Completions), ("all", LossOn::All)],
            LossOn::Completions,
        ),
        chat_template: fields.path("chat_template"),
        date: fields.read("date", date).or(default_date()).unwrap_or(Moment::since_1970(0)),
        long_documents: fields.choice(
            "long_documents",
            &[("split", LongDocuments::Split), ("truncate", LongDocuments::Truncate)],
            LongDocuments::Split,
        ),
        bad_rows: fields.choice(
            "bad_rows",
            &[("refuse", BadRows::Refuse), ("skip", BadRows::Skip)],
            BadRows::Refuse,
        ),
        shuffle: fields.truth("shuffle", true),
    })
}

/// The day that the templates of Llama 3 fall back to.
fn default_date() -> Option<Moment> {
    Moment::day(2024, 7, 26)
}

/// A date such as `2024-07-26`.
fn date(value: &Cursor<'_>) -> Result<Moment, Problem> {
    const EXPECTED: &str = "a date such as `2024-07-26`";
    let text = value.text(EXPECTED)?;
    let mut parts = text.split('-');
    let mut part = || parts.next().filter(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
    let read = |year: &str, month: &str, day: &str| {
        Moment::day(year.parse().ok()?, month.parse().ok()?, day.parse().ok()?)
    };
    let date = match (part(), part(), part(), part()) {
        (Some(year), Some(month), Some(day), None) => read(year, month, day),
        _ => None,
    };
    date.ok_or_else(|| value.mismatch(EXPECTED))
}

fn as_date<S: Serializer>(date: &Moment, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&date.format("%F"))
}

fn sequence_length(fields: &mut Fields<'_, '_>) -> usize {
    let length = fields.count("sequence_length", 1024, 2);
    if length > LONGEST {
        fields.report(
            "sequence_length",
            format!("a sequence of {length} tokens is longer than {LONGEST}"),
            "sequences are usually 512 to 8192 tokens long",
        );
    }
    length.min(LONGEST) as usize
}

/// One file or a list of them.
fn files(value: &Cursor<'_>) -> Result<Vec<PathBuf>, Problem> {
    let Content::Sequence(_) = value.node.content else { return Ok(vec![data_file(value)?]) };
    let items = value.items()?;
    if items.is_empty() {
        return Err(value.problem("the list is empty").with_hint("name at least one file"));
    }
    items.iter().map(data_file).collect()
}

fn data_file(value: &Cursor<'_>) -> Result<PathBuf, Problem> {
    let path = fields::path(value)?;
    match Format::of(&path) {
        Some(_) => Ok(path),
        None => Err(value
            .problem(format!("the name of {} does not say what it holds", value.node.describe()))
            .with_hint("data files end in `.jsonl`, `.ndjson`, `.parquet` or `.txt`")),
    }
}

fn validation(value: &Cursor<'_>) -> Result<Validation, Problem> {
    let share = match (fields::share(value), &value.node.content) {
        (Some(percent), _) => percent?,
        (None, Content::Plain(_)) => match value.scalar()? {
            Scalar::Number(share) => share,
            _ => return files(value).map(Validation::Files),
        },
        (None, _) => return files(value).map(Validation::Files),
    };
    if share > 0.0 && share < 1.0 {
        return Ok(Validation::Share(share));
    }
    Err(value
        .mismatch("files, or a share of the training rows above 0 and below 1")
        .with_hint("for 1 % of the rows write `validation: 0.01`"))
}

fn columns(fields: &mut Fields<'_, '_>) -> Columns {
    let default = Columns::default();
    let Some(cursor) = fields.cursor.field("columns") else { return default };
    let hint = "each key is what a column holds, and its value the column's name";
    let Some(mut fields) = Fields::open(cursor, COLUMNS, hint, fields.problems) else { return default };
    let mut name = |key: &str, default: String| {
        fields.read(key, |value| value.text("the name of a column").map(str::to_owned)).unwrap_or(default)
    };
    Columns {
        text: name("text", default.text),
        messages: name("messages", default.messages),
        prompt: name("prompt", default.prompt),
        completion: name("completion", default.completion),
        input_ids: name("input_ids", default.input_ids),
        labels: name("labels", default.labels),
    }
}

/// For the test of the reference.
#[cfg(test)]
pub(super) const ALL_KEYS: [&[Key]; 2] = [KEYS, COLUMNS];
