//! Reads list columns of a Parquet file, one row at a time.
//!
//! In: a file, and the names of columns with how deep their lists are. Out: the numbers of a row and where its lists end. Nothing is held
//! but a page of each column and the row at hand; a column that is not asked for in a row is skipped there without being decoded. What the
//! numbers mean is not known here.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parquet::basic::{ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{
    ByteArray, ByteArrayType, DataType, DoubleType, FixedLenByteArray, FixedLenByteArrayType, FloatType,
    Int32Type, Int64Type,
};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::{ColumnDescPtr, Type};

use crate::data::{RowProblem, pages};
use crate::error::Error;

/// Numbers that one row may have in one column: a sequence of 131072 tokens with 128 numbers each. A page of a few bytes can say that it has
/// billions of equal ones.
const MOST: usize = 1 << 24;

/// An open file.
pub(super) struct Table {
    path: PathBuf,
    reader: SerializedFileReader<File>,
    columns: Vec<Column>,
    /// The next row group.
    group: usize,
    /// Rows of the open row group that come after the row at hand.
    left: u64,
    /// The row at hand, from 1; 0 before the first.
    row: u64,
}

/// The numbers of one row of a column.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Numbers {
    /// Whole; those of 64 bits without a sign as their bits.
    Whole(Vec<i64>),
    /// With fractions.
    Real(Vec<f64>),
    /// Each a string of bytes.
    Bytes(Vec<ByteArray>),
}

/// The values of one row of a column of lists.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lists {
    /// Of all lists, one after another.
    pub(super) numbers: Numbers,
    /// Where each list ends in them; of a column of plain lists or of single values, one.
    pub(super) ends: Vec<usize>,
}

struct Column {
    name: String,
    descriptor: ColumnDescPtr,
    leaf: usize,
    /// For each level of lists, the definition level from which on an element is there.
    inside: Vec<i16>,
    is_unsigned: bool,
    reader: Option<Reader>,
    /// Rows that were passed without being read.
    behind: usize,
    /// Numbers that the row at hand may still take.
    room: Arc<AtomicUsize>,
}

enum Reader {
    Int32(ColumnReaderImpl<Int32Type>),
    Int64(ColumnReaderImpl<Int64Type>),
    Float(ColumnReaderImpl<FloatType>),
    Double(ColumnReaderImpl<DoubleType>),
    Half(ColumnReaderImpl<FixedLenByteArrayType>),
    Bytes(ColumnReaderImpl<ByteArrayType>),
}

impl Table {
    /// Opens a file by its footer.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::io("read", path))?;
        let again = file.try_clone().map_err(Error::io("read", path))?;
        let reader = guarded(|| {
            let reader = SerializedFileReader::new(file)?;
            pages::check(&again, reader.metadata())?;
            Ok::<_, ParquetError>(reader)
        });
        let reader = reader.map_err(|detail| Error::damaged(path, detail))?;
        Ok(Self { path: path.to_path_buf(), reader, columns: Vec::new(), group: 0, left: 0, row: 0 })
    }

    /// The names of all columns.
    pub(super) fn names(&self) -> Vec<String> {
        let fields = self.reader.metadata().file_metadata().schema().get_fields();
        fields.iter().map(|field| field.name().to_owned()).collect()
    }

    /// What is written beside the columns under a key.
    pub(super) fn note(&self, key: &str) -> Option<&str> {
        let notes = self.reader.metadata().file_metadata().key_value_metadata()?;
        notes.iter().find(|note| note.key == key)?.value.as_deref()
    }

    /// How many rows it says that it has.
    pub(super) fn rows(&self) -> u64 {
        self.reader.metadata().file_metadata().num_rows().max(0) as u64
    }

    /// Takes up a column; `depth` is 0 for single values, 1 for lists, 2 for lists of lists. Its number, for [`Table::read`].
    pub(super) fn column(&mut self, name: &str, depth: usize) -> Result<usize, Error> {
        let schema = self.reader.metadata().file_metadata().schema_descr();
        let of_name =
            |leaf: &usize| schema.column(*leaf).path().parts().first().is_some_and(|part| part == name);
        let leaves: Vec<usize> = (0..schema.num_columns()).filter(of_name).collect();
        let wrong = |found: &str| {
            let wanted = ["a single value", "a list", "a list of lists"][depth.min(2)];
            Error::damaged(
                &self.path,
                format!("its column `{name}` is to be {wanted} in each row, and is {found}"),
            )
        };
        let leaf = match leaves[..] {
            [leaf] => leaf,
            [] => return Err(Error::damaged(&self.path, format!("it has no column `{name}`"))),
            _ => return Err(wrong("of several parts")),
        };
        let descriptor = schema.column(leaf);
        let inside = list_levels(self.reader.metadata().file_metadata().schema(), name);
        if inside.len() != depth {
            return Err(wrong(
                ["a single value", "a list", "a list of lists", "nested deeper"][inside.len().min(3)],
            ));
        }
        let is_half =
            descriptor.physical_type() == Physical::FIXED_LEN_BYTE_ARRAY && descriptor.type_length() == 2;
        if !is_half
            && matches!(
                descriptor.physical_type(),
                Physical::BOOLEAN | Physical::INT96 | Physical::FIXED_LEN_BYTE_ARRAY
            )
        {
            return Err(wrong(&format!("of {}", descriptor.physical_type())));
        }
        let is_unsigned = matches!(
            descriptor.converted_type(),
            ConvertedType::UINT_8 | ConvertedType::UINT_16 | ConvertedType::UINT_32 | ConvertedType::UINT_64
        ) || matches!(descriptor.logical_type_ref(), Some(LogicalType::Integer(kind)) if !kind.is_signed);
        let room = Arc::new(AtomicUsize::new(0));
        let name = name.to_owned();
        self.columns.push(Column {
            name,
            descriptor,
            leaf,
            inside,
            is_unsigned,
            reader: None,
            behind: 0,
            room,
        });
        Ok(self.columns.len() - 1)
    }

    /// Goes to the next row; `false` at the end.
    pub(super) fn advance(&mut self) -> Result<bool, Error> {
        while self.left == 0 {
            if self.group == self.reader.num_row_groups() {
                return Ok(false);
            }
            let rows = self.reader.metadata().row_group(self.group).num_rows();
            self.left = u64::try_from(rows)
                .map_err(|_| Error::damaged(&self.path, "a row group has less than no rows"))?;
            for column in &mut self.columns {
                (column.reader, column.behind) = (None, 0);
            }
            self.group += 1;
        }
        self.left -= 1;
        self.row += 1;
        self.columns.iter_mut().for_each(|column| column.behind += 1);
        Ok(true)
    }

    /// The values of a column in the row at hand, which may be asked for once.
    pub(super) fn read(&mut self, column: usize) -> Result<Lists, Error> {
        let Some(group) = self.group.checked_sub(1) else {
            return Err(Error::internal("a row before the first"));
        };
        let (reader, column) = (&self.reader, &mut self.columns[column]);
        let read = guarded(|| column.read(reader, group));
        let message = |detail| format!("column `{}`: {detail}", column.name);
        read.map_err(|detail| problem(&self.path, self.row, message(detail), None))
    }

    /// A problem of the row at hand.
    pub(super) fn problem(&self, message: impl Into<String>, hint: Option<String>) -> Error {
        problem(&self.path, self.row, message.into(), hint)
    }
}

/// A problem of one row of a file.
pub(super) fn problem(file: &Path, row: u64, message: String, hint: Option<String>) -> Error {
    Error::Rows { problems: vec![RowProblem { file: file.to_path_buf(), row, message, hint }], count: 1 }
}

impl Column {
    fn read(&mut self, file: &SerializedFileReader<File>, group: usize) -> Result<Lists, String> {
        let failed = |error: ParquetError| error.to_string();
        if self.reader.is_none() {
            let group = file.get_row_group(group).map_err(failed)?;
            let inner = group.get_column_page_reader(self.leaf).map_err(failed)?;
            let pages = Box::new(Bounded { inner, room: Arc::clone(&self.room) });
            self.reader = Some(Reader::new(Arc::clone(&self.descriptor), pages)?);
        }
        let Some(reader) = &mut self.reader else { return Err("it has no reader".to_owned()) };
        let passed = self.behind.checked_sub(1).ok_or("it is read twice")?;
        // Pages that are passed are bounded one by one.
        for _ in 0..passed {
            self.room.store(MOST, Relaxed);
            if reader.skip().map_err(failed)? != 1 {
                return Err("it ends before its row group does".to_owned());
            }
        }
        self.behind = 0;
        self.room.store(MOST, Relaxed);
        let (mut definitions, mut repetitions) = (Vec::new(), Vec::new());
        let numbers = reader.read(&mut definitions, &mut repetitions, self.is_unsigned).map_err(failed)?;
        let count = numbers.len();
        if count > MOST {
            return Err(TOO_MANY.to_owned());
        }
        let ends = self.ends(&definitions, &repetitions, count)?;
        Ok(Lists { numbers, ends })
    }

    /// Where lists end, by the levels of a row with so many values.
    fn ends(&self, definitions: &[i16], repetitions: &[i16], count: usize) -> Result<Vec<usize>, String> {
        const NOTHING: &str = "a value is missing (null)";
        let most = self.descriptor.max_def_level();
        // Of columns that cannot be null, no levels are stored.
        let definition = |at: usize| definitions.get(at).copied().unwrap_or(most);
        let repetition = |at: usize| repetitions.get(at).copied().unwrap_or(0);
        let entries = definitions.len().max(repetitions.len()).max(count);
        if entries == 0 {
            return Err("it ends before its row group does".to_owned());
        }
        let (mut ends, mut seen) = (Vec::new(), 0);
        for at in 0..entries {
            let level = definition(at);
            // The outermost list that has no element here, if any.
            let empty = self.inside.iter().position(|&inside| level < inside);
            match empty {
                Some(list) if level + 1 < self.inside[list] => return Err(NOTHING.to_owned()),
                None if level != most => return Err(NOTHING.to_owned()),
                _ => {}
            }
            let begins = self.inside.len() < 2 || repetition(at) < 2;
            if begins && empty != Some(0) && !(self.inside.len() < 2 && at > 0) {
                ends.push(seen);
            }
            seen += usize::from(empty.is_none());
            if let Some(end) = ends.last_mut() {
                *end = seen;
            }
        }
        if self.inside.len() < 2 && ends.is_empty() {
            ends.push(0);
        }
        if seen == count { Ok(ends) } else { Err("its levels and its values disagree".to_owned()) }
    }
}

impl Reader {
    fn new(descriptor: ColumnDescPtr, pages: Box<dyn PageReader>) -> Result<Self, String> {
        Ok(match descriptor.physical_type() {
            Physical::INT32 => Self::Int32(ColumnReaderImpl::new(descriptor, pages)),
            Physical::INT64 => Self::Int64(ColumnReaderImpl::new(descriptor, pages)),
            Physical::FLOAT => Self::Float(ColumnReaderImpl::new(descriptor, pages)),
            Physical::DOUBLE => Self::Double(ColumnReaderImpl::new(descriptor, pages)),
            Physical::BYTE_ARRAY => Self::Bytes(ColumnReaderImpl::new(descriptor, pages)),
            Physical::FIXED_LEN_BYTE_ARRAY => Self::Half(ColumnReaderImpl::new(descriptor, pages)),
            other => return Err(format!("{other} is no number")),
        })
    }

    fn skip(&mut self) -> Result<usize, ParquetError> {
        match self {
            Self::Int32(reader) => reader.skip_records(1),
            Self::Int64(reader) => reader.skip_records(1),
            Self::Float(reader) => reader.skip_records(1),
            Self::Double(reader) => reader.skip_records(1),
            Self::Half(reader) => reader.skip_records(1),
            Self::Bytes(reader) => reader.skip_records(1),
        }
    }

    fn read(
        &mut self,
        definitions: &mut Vec<i16>,
        repetitions: &mut Vec<i16>,
        is_unsigned: bool,
    ) -> Result<Numbers, ParquetError> {
        let levels = (definitions, repetitions);
        Ok(match self {
            Self::Int32(reader) => {
                let values = values(reader, levels)?.into_iter();
                let whole = |value: i32| if is_unsigned { i64::from(value as u32) } else { i64::from(value) };
                Numbers::Whole(values.map(whole).collect())
            }
            Self::Int64(reader) => Numbers::Whole(values(reader, levels)?),
            Self::Float(reader) => {
                Numbers::Real(values(reader, levels)?.into_iter().map(f64::from).collect())
            }
            Self::Double(reader) => Numbers::Real(values(reader, levels)?),
            Self::Half(reader) => Numbers::Real(values(reader, levels)?.iter().map(half).collect()),
            Self::Bytes(reader) => Numbers::Bytes(values(reader, levels)?),
        })
    }
}

/// One row of a column.
fn values<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    (definitions, repetitions): (&mut Vec<i16>, &mut Vec<i16>),
) -> Result<Vec<T::T>, ParquetError> {
    let mut values = Vec::new();
    reader.read_records(1, Some(definitions), Some(repetitions), &mut values)?;
    Ok(values)
}

fn half(bytes: &FixedLenByteArray) -> f64 {
    match bytes.data() {
        [low, high] => half::f16::from_le_bytes([*low, *high]).to_f64(),
        _ => f64::NAN,
    }
}

impl Numbers {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Whole(values) => values.len(),
            Self::Real(values) => values.len(),
            Self::Bytes(values) => values.len(),
        }
    }
}

/// For each level of lists of a column, the definition level from which on an element is there.
fn list_levels(schema: &Type, name: &str) -> Vec<i16> {
    let (mut inside, mut definition) = (Vec::new(), 0);
    let mut next = schema.get_fields().iter().find(|field| field.name() == name);
    while let Some(node) = next {
        match node.get_basic_info().repetition() {
            Repetition::REQUIRED => {}
            Repetition::OPTIONAL => definition += 1,
            Repetition::REPEATED => {
                definition += 1;
                inside.push(definition);
            }
        }
        next = if node.is_group() { node.get_fields().first() } else { None };
    }
    inside
}

const TOO_MANY: &str = "a row has more than 16777216 values in it";

/// Pages that end where one row has taken too many values.
struct Bounded {
    inner: Box<dyn PageReader>,
    room: Arc<AtomicUsize>,
}

impl PageReader for Bounded {
    fn get_next_page(&mut self) -> Result<Option<Page>, ParquetError> {
        // Asked before the page is decompressed, where its header tells.
        let levels = self.inner.peek_next_page()?.and_then(|page| page.num_levels).unwrap_or(0);
        let left = self.room.load(Relaxed).checked_sub(levels);
        let left = left.ok_or_else(|| ParquetError::General(TOO_MANY.to_owned()))?;
        self.room.store(left, Relaxed);
        checked(self.inner.get_next_page()?)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>, ParquetError> {
        self.inner.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<(), ParquetError> {
        self.inner.skip_next_page()
    }

    fn supports_deferred_dictionary(&self) -> bool {
        self.inner.supports_deferred_dictionary()
    }

    fn take_deferred_dictionary(&mut self) -> Result<Option<Page>, ParquetError> {
        checked(self.inner.take_deferred_dictionary()?)
    }

    fn at_record_boundary(&mut self) -> Result<bool, ParquetError> {
        self.inner.at_record_boundary()
    }
}

/// Room is made for as many entries as a dictionary says that it has; each takes a byte or more of the page.
fn checked(page: Option<Page>) -> Result<Option<Page>, ParquetError> {
    match &page {
        Some(Page::DictionaryPage { buf, num_values, .. }) if *num_values as usize > buf.len() => {
            Err(ParquetError::General("a dictionary has more entries than bytes".to_owned()))
        }
        _ => Ok(page),
    }
}

impl Iterator for Bounded {
    type Item = Result<Page, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

/// The library checks most of what it reads, and panics at some damage: that is the file's fault, not the program's.
fn guarded<T, E: ToString>(read: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("it cannot be decoded".to_owned()),
    }
}
