//! Reads what another tool stored of a teacher: rows of token ids with the likeliest tokens of each position.
//!
//! In: a Parquet or JSON Lines file, or a folder of them. Out: one row after another: its tokens, and where they are wanted, ids and values of
//! every position. Which columns there are tells the layout: plain ones, or one of DistillKit's two packed ones, which need the
//! configuration that they were packed by. What a row is of in some run's data is not known here.

use std::path::{Path, PathBuf};

use aludel_document::{Problem, listed};

use super::columns::{Lists, Numbers, Table};
use super::distillkit::{Compression, Fitted, Packed};
use super::lines::{Lines, Row};
use crate::data::Format;
use crate::error::Error;

/// The column of a row's tokens.
pub(super) const TOKENS: &str = "input_ids";
/// The column of the likeliest tokens of each position.
pub(super) const IDS: &str = "token_ids";
/// The column of their log-probabilities, by this name and by those of others.
pub(super) const VALUES: [&str; 3] = ["log_probs", "top_values", "logprobs"];

/// The file in which DistillKit's sampler leaves how it packed.
const CONFIGURATION: &str = "compression_config.yaml";

/// The rows of some files, in order.
pub(super) struct Source {
    files: Vec<PathBuf>,
    compression: Option<Compression>,
    /// The next file.
    next: usize,
    open: Option<Open>,
}

/// What every position of a row says: ids and values, in any order.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) ids: Vec<i64>,
    pub(super) values: Vec<f64>,
    /// Where each position's ids end.
    pub(super) id_ends: Vec<usize>,
    /// Where each position's values end.
    pub(super) value_ends: Vec<usize>,
}

enum Open {
    Table { table: Box<Table>, tokens: usize, layout: Layout },
    Lines { lines: Lines, row: Option<Row> },
}

/// The columns of a file, by their numbers.
#[derive(Clone, Copy)]
enum Layout {
    /// Ids and log-probabilities.
    Plain { ids: usize, values: usize },
    /// DistillKit's `compressed_logprobs` and `bytepacked_indices`.
    Packed { ids: usize, values: usize },
    /// DistillKit's `packed_indices`, `exact_values` and `coeffs`.
    Fitted { ids: usize, exact: usize, terms: usize },
}

impl Source {
    /// Finds the files, and reads how they were packed.
    pub(super) fn open(path: &Path, configuration: Option<&Path>) -> Result<Self, Error> {
        let files = files(path)?;
        let beside = path.join(CONFIGURATION);
        let configuration = configuration.or(Some(beside.as_path()).filter(|file| file.is_file()));
        let compression = configuration.map(Compression::read).transpose()?;
        let mut source = Self { files, compression, next: 0, open: None };
        // What is wrong with any file's columns is known before a row is stored.
        for at in 0..source.files.len() {
            source.open_file(at)?;
        }
        source.rewind();
        Ok(source)
    }

    /// Goes back to before the first row.
    pub(super) fn rewind(&mut self) {
        (self.next, self.open) = (0, None);
    }

    /// Ids below this are known by how rows were packed.
    pub(super) fn vocabulary(&self) -> Option<u32> {
        self.compression.as_ref().map(Compression::vocabulary)
    }

    /// Whether values come from a fit.
    pub(super) fn is_fitted(&self) -> bool {
        matches!(&self.open, Some(Open::Table { layout: Layout::Packed { .. } | Layout::Fitted { .. }, .. }))
    }

    /// The tokens of the next row; `None` at the end.
    pub(super) fn next_tokens(&mut self) -> Result<Option<Vec<i64>>, Error> {
        loop {
            match &mut self.open {
                None => {
                    if self.next == self.files.len() {
                        return Ok(None);
                    }
                    self.open_file(self.next)?;
                    self.next += 1;
                }
                Some(Open::Table { table, tokens, .. }) => {
                    if table.advance()? {
                        let lists = table.read(*tokens)?;
                        let Numbers::Whole(ids) = lists.numbers else { return Err(not_whole(table, TOKENS)) };
                        return Ok(Some(ids));
                    }
                    self.open = None;
                }
                Some(Open::Lines { lines, row }) => {
                    *row = lines.next()?;
                    if let Some(row) = row {
                        return Ok(Some(std::mem::take(&mut row.input_ids)));
                    }
                    self.open = None;
                }
            }
        }
    }

    /// What is said at every position of the row at hand.
    pub(super) fn told(&mut self) -> Result<Told, Error> {
        match &mut self.open {
            Some(Open::Table { table, layout, .. }) => match *layout {
                Layout::Plain { ids, values } => plain(table, ids, values),
                Layout::Packed { ids, values } => {
                    let Some(Compression::Packed(packed)) = &self.compression else { return Err(unread()) };
                    packed_rows(table, packed, ids, values)
                }
                Layout::Fitted { ids, exact, terms } => {
                    let Some(Compression::Fitted(fitted)) = &self.compression else { return Err(unread()) };
                    fitted_rows(table, fitted, [ids, exact, terms])
                }
            },
            Some(Open::Lines { row: Some(row), .. }) => Ok(of_line(row)),
            _ => Err(unread()),
        }
    }

    /// A problem of the row at hand, or of the last one.
    pub(super) fn problem(&self, message: impl Into<String>, hint: Option<String>) -> Error {
        match &self.open {
            Some(Open::Table { table, .. }) => table.problem(message, hint),
            Some(Open::Lines { lines, .. }) => lines.problem(message, hint),
            None => {
                let last = self.files.last().cloned().unwrap_or_default();
                super::columns::problem(&last, 0, message.into(), hint)
            }
        }
    }

    fn open_file(&mut self, at: usize) -> Result<(), Error> {
        let path = &self.files[at];
        if Format::of(path) == Some(Format::JsonLines) {
            self.open = Some(Open::Lines { lines: Lines::open(path)?, row: None });
            return Ok(());
        }
        let mut table = Table::open(path)?;
        let names = table.names();
        let has = |name: &str| names.iter().any(|own| own == name);
        let values = VALUES.into_iter().find(|name| has(name));
        let layout = if has("bytepacked_indices") && has("compressed_logprobs") {
            Layout::Packed {
                ids: table.column("bytepacked_indices", 2)?,
                values: table.column("compressed_logprobs", 2)?,
            }
        } else if has("packed_indices") && has("exact_values") && has("coeffs") {
            Layout::Fitted {
                ids: table.column("packed_indices", 2)?,
                exact: table.column("exact_values", 2)?,
                terms: table.column("coeffs", 2)?,
            }
        } else if let Some(values) = values.filter(|_| has(IDS)) {
            Layout::Plain { ids: table.column(IDS, 2)?, values: table.column(values, 2)? }
        } else {
            let (message, hint) = missing(&names);
            return Err(Problem::general(format!("{}: {message}", path.display())).with_hint(hint).into());
        };
        if !has(TOKENS) {
            let message = format!("{}: it has no column `{TOKENS}`, the tokens of each row", path.display());
            return Err(Problem::general(message).with_hint("a cache is of rows of tokens: add them").into());
        }
        if has("set") && has("check") && has("row") {
            let message = format!("{}: a cache was exported to it, and its header is lost", path.display());
            let hint = "it was written anew by another tool: export the cache again, with `--to distillkit` for one that reads plain rows";
            return Err(Problem::general(message).with_hint(hint).into());
        }
        self.check_configuration(path, layout)?;
        let tokens = table.column(TOKENS, 1)?;
        self.open = Some(Open::Table { table: Box::new(table), tokens, layout });
        Ok(())
    }

    /// Packed layouts need the configuration that they were packed by.
    fn check_configuration(&self, path: &Path, layout: Layout) -> Result<(), Error> {
        let (wanted, fits) = match (layout, &self.compression) {
            (Layout::Plain { .. }, _) => return Ok(()),
            (Layout::Packed { .. }, compression) => {
                ("`logprob_compressor`", matches!(compression, Some(Compression::Packed(_))))
            }
            (Layout::Fitted { .. }, compression) => {
                ("`legacy_logit_compression`", matches!(compression, Some(Compression::Fitted(_))))
            }
        };
        if fits {
            return Ok(());
        }
        let message = format!("{}: its rows are packed, and how does not stand in them", path.display());
        let hint = format!(
            "give DistillKit's configuration of the capture by `--compression`: its {CONFIGURATION}, or a run's YAML with {wanted}"
        );
        Err(Problem::general(message).with_hint(hint).into())
    }
}

/// What columns are missing, and what would do.
pub(super) fn missing(names: &[String]) -> (String, String) {
    let own = listed(names.iter().take(20).map(String::as_str));
    let lacking: Vec<&str> =
        [TOKENS, IDS].into_iter().filter(|name| !names.iter().any(|own| own == name)).collect();
    let has_values = VALUES.iter().any(|name| names.iter().any(|own| own == name));
    let lacking = listed(lacking.into_iter().chain((!has_values).then_some(VALUES[0])));
    let message = format!("the rows have no {lacking}; their columns are {own}");
    let hint = format!(
        "name the columns `{TOKENS}` (tokens), `{IDS}` (for each position, ids of the likeliest tokens) and `{}` (their log-probabilities)",
        VALUES[0]
    );
    (message, hint)
}

/// The files of a source: itself, or those of a folder in the order of their names, numbers by their size.
fn files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let is_rows = |path: &Path| matches!(Format::of(path), Some(Format::Parquet | Format::JsonLines));
    if !path.is_dir() {
        if is_rows(path) || !path.exists() {
            return Ok(vec![path.to_path_buf()]);
        }
        let message =
            format!("{} is neither .parquet nor .jsonl, nor a folder of such files", path.display());
        return Err(Problem::general(message).into());
    }
    let entries = path.read_dir().map_err(Error::io("read", path))?;
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(Error::io("read", path))?.path();
        if is_rows(&file) && file.is_file() {
            files.push(file);
        }
    }
    files.sort_by_cached_key(|file| natural(&file.file_name().unwrap_or_default().to_string_lossy()));
    if !files.is_empty() {
        return Ok(files);
    }
    let problem = Problem::general(format!("{} holds no .parquet or .jsonl file", path.display()));
    let is_arrow = path.join("dataset_info.json").is_file() || path.join("state.json").is_file();
    Err(if is_arrow {
        problem.with_hint("it is a data set of Arrow files: write it as Parquet, by `datasets.load_from_disk(...).to_parquet(...)`")
    } else {
        problem
    }
    .into())
}

/// Orders `data_2` before `data_10`.
fn natural(name: &str) -> Vec<(u128, String)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (before, after) = rest.split_at(text);
        let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        let (number, after) = after.split_at(digits);
        parts.push((0, before.to_owned()));
        parts.push((number.parse().unwrap_or(u128::MAX), String::new()));
        rest = after;
    }
    parts
}

fn plain(table: &mut Table, ids: usize, values: usize) -> Result<Told, Error> {
    let (ids, values) = (table.read(ids)?, table.read(values)?);
    let Numbers::Whole(whole) = ids.numbers else { return Err(not_whole(table, IDS)) };
    let real = match values.numbers {
        Numbers::Real(real) => real,
        Numbers::Whole(whole) => whole.into_iter().map(|value| value as f64).collect(),
        Numbers::Bytes(_) => return Err(table.problem("its log-probabilities are no numbers", None)),
    };
    Ok(Told { ids: whole, values: real, id_ends: ids.ends, value_ends: values.ends })
}

fn packed_rows(table: &mut Table, packed: &Packed, ids: usize, values: usize) -> Result<Told, Error> {
    let bytes = |table: &mut Table, column| -> Result<(Vec<u8>, Vec<usize>), Error> {
        let Lists { numbers, ends } = table.read(column)?;
        let Numbers::Whole(whole) = numbers else {
            return Err(table.problem("its packed columns are no bytes", None));
        };
        let bytes: Result<Vec<u8>, _> = whole.into_iter().map(u8::try_from).collect();
        Ok((bytes.map_err(|_| table.problem("its packed columns are no bytes", None))?, ends))
    };
    let ((ids, id_ends), (values, value_ends)) = (bytes(table, ids)?, bytes(table, values)?);
    positions(table, [&id_ends, &value_ends], |at, told| {
        packed.push(of_list(&ids, &id_ends, at), of_list(&values, &value_ends, at), told)
    })
}

fn fitted_rows(table: &mut Table, fitted: &Fitted, columns: [usize; 3]) -> Result<Told, Error> {
    let [ids, exact, terms] = columns;
    let (ids, exact, terms) = (table.read(ids)?, table.read(exact)?, table.read(terms)?);
    let (Numbers::Whole(words), Numbers::Real(values), Numbers::Real(factors)) =
        (ids.numbers, exact.numbers, terms.numbers)
    else {
        let message =
            "`packed_indices` are to be whole numbers, `exact_values` and `coeffs` numbers with fractions";
        return Err(table.problem(message, None));
    };
    positions(table, [&ids.ends, &exact.ends], |at, told| {
        let factors =
            if terms.ends.len() == ids.ends.len() { of_list(&factors, &terms.ends, at) } else { &[] };
        fitted.push(of_list(&words, &ids.ends, at), of_list(&values, &exact.ends, at), factors, told)
    })
}

/// Unpacks every position of the row at hand.
fn positions(
    table: &Table,
    ends: [&[usize]; 2],
    unpack: impl Fn(usize, &mut Told) -> Result<(), String>,
) -> Result<Told, Error> {
    if ends[0].len() != ends[1].len() {
        let message = format!("indices of {} tokens beside values of {}", ends[0].len(), ends[1].len());
        return Err(table.problem(message, None));
    }
    let mut told = Told::default();
    for at in 0..ends[0].len() {
        unpack(at, &mut told).map_err(|detail| {
            let hint = "was it captured with another configuration than `--compression` gives?";
            table.problem(format!("token {at}: {detail}"), Some(hint.to_owned()))
        })?;
        told.id_ends.push(told.ids.len());
        told.value_ends.push(told.values.len());
    }
    Ok(told)
}

/// A list of lists, by its place.
pub(super) fn of_list<'a, T>(values: &'a [T], ends: &[usize], at: usize) -> &'a [T] {
    let start = at.checked_sub(1).map_or(0, |before| ends[before]);
    &values[start..ends[at]]
}

fn of_line(row: &Row) -> Told {
    let mut told = Told::default();
    for list in &row.token_ids {
        told.ids.extend(list);
        told.id_ends.push(told.ids.len());
    }
    for list in &row.log_probs {
        told.values.extend(list.iter().map(|value| value.unwrap_or(f64::NEG_INFINITY)));
        told.value_ends.push(told.values.len());
    }
    told
}

fn not_whole(table: &Table, name: &str) -> Error {
    table.problem(format!("`{name}` are no whole numbers"), None)
}

fn unread() -> Error {
    Error::internal("a row that was not read")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_count() {
        let mut names =
            ["data_10.parquet", "data_9.parquet", "data.parquet", "data_1b.parquet", "data_1.parquet"];
        names.sort_by_cached_key(|name| natural(name));
        assert_eq!(
            names,
            ["data.parquet", "data_1.parquet", "data_1b.parquet", "data_9.parquet", "data_10.parquet"]
        );
    }
}
