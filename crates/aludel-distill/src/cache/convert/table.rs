//! Writes list columns of a Parquet file, one row at a time.
//!
//! In: the names and types of columns, and the values of each row. Out: a file that has its name only when it is complete. Rows are held until
//! there are enough for a row group. What the values mean is not known here.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, FloatType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::parser::parse_message_type;
use tempfile::NamedTempFile;

use crate::error::Error;

/// Bytes of values that are held for a row group, about.
const GROUP_BYTES: usize = 64 << 20;

/// A file that is being written.
pub(super) struct TableWriter {
    path: PathBuf,
    writer: SerializedFileWriter<NamedTempFile>,
    columns: Vec<Column>,
    held: usize,
}

/// A column: its name, how deep its lists are, and the type of its values.
pub(super) struct Shape {
    pub(super) name: &'static str,
    pub(super) depth: usize,
    pub(super) kind: Kind,
}

/// A type of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Whole numbers of 32 bits without a sign.
    U32,
    /// Whole numbers of 64 bits.
    I64,
    F32,
    Text,
    Bytes,
}

/// Values of a row.
pub(super) enum Cells<'a> {
    U32(&'a [u32]),
    I64(&'a [i64]),
    F32(&'a [f32]),
    Bytes(&'a [&'a [u8]]),
}

struct Column {
    depth: i16,
    values: Values,
    definitions: Vec<i16>,
    repetitions: Vec<i16>,
}

enum Values {
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Float(Vec<f32>),
    Bytes(Vec<ByteArray>),
}

impl TableWriter {
    /// Begins a file with these columns, and with notes beside them.
    pub(super) fn create(path: &Path, shapes: &[Shape], notes: Vec<(String, String)>) -> Result<Self, Error> {
        let fields: Vec<String> = shapes.iter().map(Shape::field).collect();
        let schema = parse_message_type(&format!("message rows {{ {} }}", fields.concat()))
            .map_err(|error| Error::internal(error.to_string()))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = aludel_cache::write::nameless(folder).map_err(Error::io("create a file in", folder))?;
        let notes = notes.into_iter().map(|(key, value)| KeyValue::new(key, value)).collect();
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_created_by(format!("aludel {}", env!("CARGO_PKG_VERSION")))
            .set_key_value_metadata(Some(notes));
        let writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties.build()))
            .map_err(|error| failed(path, error))?;
        let columns = shapes.iter().map(Column::new).collect();
        Ok(Self { path: path.to_path_buf(), writer, columns, held: 0 })
    }

    /// Adds a single value, a list, or with `ends` a list of lists to a column; each column takes one of a row.
    pub(super) fn push(
        &mut self,
        column: usize,
        cells: &Cells<'_>,
        ends: Option<&[usize]>,
    ) -> Result<(), Error> {
        let column = &mut self.columns[column];
        let (count, bytes) =
            column.values.extend(cells).ok_or_else(|| Error::internal("values of another type"))?;
        self.held += bytes + 4 * count;
        column.levels(count, ends);
        Ok(())
    }

    /// Ends a row.
    pub(super) fn end_row(&mut self) -> Result<(), Error> {
        if self.held < GROUP_BYTES { Ok(()) } else { self.flush() }
    }

    /// Ends the file, and gives it its name; one that is there is replaced.
    pub(super) fn finish(mut self, sync: bool) -> Result<(), Error> {
        self.flush()?;
        let path = self.path;
        let file = self.writer.into_inner().map_err(|error| failed(&path, error))?;
        if sync {
            file.as_file().sync_all().map_err(Error::io("sync", &path))?;
        }
        let file: File = file.persist(&path).map_err(|error| Error::io("create", &path)(error.error))?;
        drop(file);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        if self.columns.iter().all(|column| column.definitions.is_empty()) {
            return Ok(());
        }
        let failed = |error| failed(&self.path, error);
        let mut group = self.writer.next_row_group().map_err(failed)?;
        for column in &mut self.columns {
            let Some(mut next) = group.next_column().map_err(failed)? else {
                return Err(Error::internal("a file with fewer columns"));
            };
            column.write(&mut next).map_err(failed)?;
            next.close().map_err(failed)?;
        }
        group.close().map_err(failed)?;
        self.held = 0;
        Ok(())
    }
}

impl Shape {
    /// Its place in a schema. Nothing in it can be missing.
    fn field(&self) -> String {
        let element = |name: &str| match self.kind {
            Kind::U32 => format!("required int32 {name} (INTEGER(32,false));"),
            Kind::I64 => format!("required int64 {name};"),
            Kind::F32 => format!("required float {name};"),
            Kind::Text => format!("required binary {name} (STRING);"),
            Kind::Bytes => format!("required binary {name};"),
        };
        let list = |name: &str, inner: String| {
            format!("required group {name} (LIST) {{ repeated group list {{ {inner} }} }} ")
        };
        match self.depth {
            0 => element(self.name),
            1 => list(self.name, element("element")),
            _ => list(self.name, list("element", element("element"))),
        }
    }
}

impl Column {
    fn new(shape: &Shape) -> Self {
        let values = match shape.kind {
            Kind::U32 => Values::Int32(Vec::new()),
            Kind::I64 => Values::Int64(Vec::new()),
            Kind::F32 => Values::Float(Vec::new()),
            Kind::Text | Kind::Bytes => Values::Bytes(Vec::new()),
        };
        Self { depth: shape.depth as i16, values, definitions: Vec::new(), repetitions: Vec::new() }
    }

    /// Where the lists of one row begin and end: with so many values in all.
    fn levels(&mut self, count: usize, ends: Option<&[usize]>) {
        let whole = [count];
        let lists = match self.depth {
            2 => ends.unwrap_or(&whole),
            _ => &whole,
        };
        // A row without lists, and a list without values, have one entry each that says so.
        if self.depth == 2 && lists.is_empty() {
            self.definitions.push(0);
            self.repetitions.push(0);
        }
        let mut start = 0;
        for (list, &end) in lists.iter().enumerate() {
            let first = if list == 0 { 0 } else { 1 };
            if end == start {
                self.definitions.push(self.depth - 1);
                self.repetitions.push(first);
            }
            for at in start..end {
                self.definitions.push(self.depth);
                self.repetitions.push(if at == start { first } else { self.depth });
            }
            start = end;
        }
    }

    /// Writes what is held, and lets go of it.
    fn write(&mut self, to: &mut SerializedColumnWriter<'_>) -> Result<(), ParquetError> {
        let of_lists = |levels| Some(levels).filter(|_| self.depth > 0);
        let levels = (of_lists(self.definitions.as_slice()), of_lists(self.repetitions.as_slice()));
        match &mut self.values {
            Values::Int32(values) => {
                to.typed::<Int32Type>().write_batch(values, levels.0, levels.1)?;
                values.clear();
            }
            Values::Int64(values) => {
                to.typed::<Int64Type>().write_batch(values, levels.0, levels.1)?;
                values.clear();
            }
            Values::Float(values) => {
                to.typed::<FloatType>().write_batch(values, levels.0, levels.1)?;
                values.clear();
            }
            Values::Bytes(values) => {
                to.typed::<ByteArrayType>().write_batch(values, levels.0, levels.1)?;
                values.clear();
            }
        }
        self.definitions.clear();
        self.repetitions.clear();
        Ok(())
    }
}

impl Values {
    /// How many were added, and their bytes; `None` for those of another type.
    fn extend(&mut self, cells: &Cells<'_>) -> Option<(usize, usize)> {
        match (self, cells) {
            (Self::Int32(own), Cells::U32(values)) => own.extend(values.iter().map(|value| *value as i32)),
            (Self::Int64(own), Cells::I64(values)) => own.extend_from_slice(values),
            (Self::Float(own), Cells::F32(values)) => own.extend_from_slice(values),
            (Self::Bytes(own), Cells::Bytes(values)) => {
                own.extend(values.iter().map(|value| ByteArray::from(value.to_vec())));
            }
            _ => return None,
        }
        Some(match cells {
            Cells::U32(values) => (values.len(), 4 * values.len()),
            Cells::I64(values) => (values.len(), 8 * values.len()),
            Cells::F32(values) => (values.len(), 4 * values.len()),
            Cells::Bytes(values) => (values.len(), values.iter().map(|value| value.len() + 32).sum()),
        })
    }
}

fn failed(path: &Path, error: ParquetError) -> Error {
    match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(source) => Error::io("write", path)(*source),
            Err(source) => Error::io("write", path)(std::io::Error::other(source)),
        },
        other => Error::io("write", path)(std::io::Error::other(other)),
    }
}
