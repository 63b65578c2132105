//! Copies the rows of a Parquet file into a temporary file of JSON lines.
//!
//! In: a file. Out: an unnamed file in the system's temporary folder, which is gone when it is closed. Rows of Parquet can
//! only be reached from the start of their row group; of JSON lines, in any order. Only the columns that are asked for
//! are read, one batch of rows at a time.

use std::fs::File;
use std::io::{BufWriter, Seek, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Value as Json};

use super::pages;
use crate::error::Error;
use crate::run::Columns;

/// Values nested deeper than this are refused.
const DEEPEST: usize = 60;

/// The rows of a file, one line each, in order.
pub(super) fn copy_to_lines(path: &Path, columns: &Columns) -> Result<File, Error> {
    // The library checks most of what it reads, and panics at some damage: that is the file's fault, not the program's.
    let copied = catch_unwind(AssertUnwindSafe(|| copy(path, columns)));
    copied.unwrap_or_else(|_| Err(Error::damaged(path, "it cannot be decoded")))
}

fn copy(path: &Path, columns: &Columns) -> Result<File, Error> {
    let damaged = |error: parquet::errors::ParquetError| Error::damaged(path, error.to_string());
    let file = File::open(path).map_err(Error::io("read", path))?;
    let again = file.try_clone().map_err(Error::io("read", path))?;
    let reader = SerializedFileReader::new(file).map_err(damaged)?;
    pages::check(&again, reader.metadata()).map_err(damaged)?;
    let wanted = wanted(reader.metadata().file_metadata().schema(), columns).map_err(damaged)?;
    let spool = std::env::temp_dir();
    let lines = tempfile::tempfile().map_err(Error::io("create a temporary file in", &spool))?;
    let mut writer = BufWriter::new(lines);
    for row in RowIter::from_file(Some(wanted), &reader).map_err(damaged)? {
        let row = object(&row.map_err(damaged)?, 0)
            .ok_or_else(|| Error::damaged(path, format!("a value is nested deeper than {DEEPEST} levels")))?;
        serde_json::to_writer(&mut writer, &row).map_err(|error| Error::io("write", &spool)(error.into()))?;
        writer.write_all(b"\n").map_err(Error::io("write", &spool))?;
    }
    let mut lines = writer.into_inner().map_err(|error| Error::io("write", &spool)(error.into_error()))?;
    lines.rewind().map_err(Error::io("read", &spool))?;
    Ok(lines)
}

/// The schema with the columns that may mean something; the whole of it when there is none, so that a message can say
/// what there is.
fn wanted(schema: &Type, columns: &Columns) -> parquet::errors::Result<Type> {
    let Columns { text, messages, prompt, completion, input_ids, labels } = columns;
    let known = [text, messages, prompt, completion, input_ids, labels];
    let is_wanted =
        |field: &&Arc<Type>| field.name() == "tools" || known.iter().any(|name| *name == field.name());
    let mut fields: Vec<Arc<Type>> = schema.get_fields().iter().filter(is_wanted).cloned().collect();
    if fields.is_empty() {
        fields = schema.get_fields().to_vec();
    }
    Type::group_type_builder(schema.name()).with_fields(fields).build()
}

fn object(row: &Row, depth: usize) -> Option<Json> {
    row.get_column_iter()
        .map(|(name, field)| Some((name.clone(), value(field, depth + 1)?)))
        .collect::<Option<Map<_, _>>>()
        .map(Json::Object)
}

/// A value as JSON; `None` when it is nested too deeply. Dates and other values that no template reads become text.
fn value(field: &Field, depth: usize) -> Option<Json> {
    if depth > DEEPEST {
        return None;
    }
    Some(match field {
        Field::Null => Json::Null,
        Field::Bool(truth) => Json::Bool(*truth),
        Field::Byte(number) => (*number).into(),
        Field::Short(number) => (*number).into(),
        Field::Int(number) => (*number).into(),
        Field::Long(number) => (*number).into(),
        Field::UByte(number) => (*number).into(),
        Field::UShort(number) => (*number).into(),
        Field::UInt(number) => (*number).into(),
        Field::ULong(number) => (*number).into(),
        Field::Float16(number) => f64::from(*number).into(),
        Field::Float(number) => f64::from(*number).into(),
        Field::Double(number) => (*number).into(),
        Field::Str(text) => Json::String(text.clone()),
        // Some writers leave out that a column of bytes is text.
        Field::Bytes(bytes) => match bytes.as_utf8() {
            Ok(text) => Json::String(text.to_owned()),
            Err(_) => Json::Null,
        },
        Field::Group(row) => object(row, depth)?,
        Field::ListInternal(list) => {
            list.elements().iter().map(|item| value(item, depth + 1)).collect::<Option<Vec<_>>>()?.into()
        }
        Field::MapInternal(map) => map
            .entries()
            .iter()
            .map(|(key, item)| Some((key.to_string().trim_matches('"').to_owned(), value(item, depth + 1)?)))
            .collect::<Option<Map<_, _>>>()?
            .into(),
        other => Json::String(other.to_string()),
    })
}
