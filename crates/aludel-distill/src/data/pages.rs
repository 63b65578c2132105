//! Holds the pages of a Parquet file against the file and against a bound, before the library makes room for them.
//!
//! In: a file and its footer. Out: nothing, or what is wrong. A page's header says how many bytes its contents come to, and the library makes room for
//! as many before it looks at them: two gigabytes, for a few bytes of a file that lies. Headers alone are read here, from the start of each
//! column to its end; of each, two numbers. What pages hold is the library's to check.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;

/// Bytes that one page may come to. Writers make pages of about a megabyte, or of one row where that is larger.
pub(crate) const MOST: u64 = 256 << 20;

/// Checks every page of every column.
///
/// # Errors
/// A page that is larger than [`MOST`], or longer than the file; a header that cannot be read.
pub(crate) fn check(file: &File, metadata: &ParquetMetaData) -> Result<(), ParquetError> {
    let end = file.metadata().map_err(|error| ParquetError::External(error.into()))?.len();
    let mut headers = Headers { file: BufReader::with_capacity(1 << 10, file), at: 0 };
    for column in metadata.row_groups().iter().flat_map(|group| group.columns()) {
        let (start, length) = column.byte_range();
        let stop = start.checked_add(length).filter(|stop| *stop <= end);
        let stop = stop.ok_or_else(|| general("a column ends after the file"))?;
        let mut at = start;
        while at < stop {
            let page =
                headers.read(at).map_err(|error| general(&format!("a page has no header: {error}")))?;
            if page.contents > MOST {
                return Err(general(&format!(
                    "a page says that it holds {} bytes, and more than {MOST} are not read at once",
                    page.contents
                )));
            }
            let next = headers.at.checked_add(page.stored).filter(|next| *next <= stop);
            at = next.ok_or_else(|| general("a page ends after its column"))?;
        }
    }
    Ok(())
}

fn general(message: &str) -> ParquetError {
    ParquetError::General(message.to_owned())
}

/// What a header says of its page.
struct Page {
    /// Bytes of its contents.
    contents: u64,
    /// Bytes that these take in the file.
    stored: u64,
}

/// Reads headers, which are structs of Thrift's compact protocol.
struct Headers<'a> {
    file: BufReader<&'a File>,
    /// Where the next byte is.
    at: u64,
}

impl Headers<'_> {
    fn read(&mut self, at: u64) -> io::Result<Page> {
        self.file.seek(SeekFrom::Start(at))?;
        self.at = at;
        let (mut contents, mut stored, mut field) = (None, None, 0);
        while let Some(kind) = self.field(&mut field)? {
            match (field, kind) {
                (CONTENTS, I32) => contents = Some(self.size()?),
                (STORED, I32) => stored = Some(self.size()?),
                _ => self.skip(kind, 0)?,
            }
        }
        let sizes = contents.zip(stored).ok_or_else(|| invalid("it does not say how large the page is"))?;
        Ok(Page { contents: sizes.0, stored: sizes.1 })
    }

    /// The type of the next field, and its number; `None` at the struct's end.
    fn field(&mut self, number: &mut i64) -> io::Result<Option<u8>> {
        let byte = self.byte()?;
        let (step, kind) = (byte >> 4, byte & 15);
        if kind == 0 {
            return Ok(None);
        }
        *number = if step == 0 { self.signed()? } else { *number + i64::from(step) };
        Ok(Some(kind))
    }

    fn skip(&mut self, kind: u8, depth: u32) -> io::Result<()> {
        if depth > DEEPEST {
            return Err(invalid("it is nested deeper than any header"));
        }
        match kind {
            // The type of a truth value is the value.
            1 | 2 => Ok(()),
            3 => self.byte().map(drop),
            4..=6 => self.number().map(drop),
            7 => self.pass(8),
            8 => {
                let length = self.number()?;
                self.pass(length)
            }
            9 | 10 => {
                let byte = self.byte()?;
                let count = if byte >> 4 == 15 { self.number()? } else { u64::from(byte >> 4) };
                (0..count).try_for_each(|_| self.skip_element(byte & 15, depth + 1))
            }
            11 => {
                let count = self.number()?;
                let kinds = if count > 0 { self.byte()? } else { 0 };
                (0..count).try_for_each(|_| {
                    self.skip_element(kinds >> 4, depth + 1)?;
                    self.skip_element(kinds & 15, depth + 1)
                })
            }
            12 => {
                let mut number = 0;
                while let Some(kind) = self.field(&mut number)? {
                    self.skip(kind, depth + 1)?;
                }
                Ok(())
            }
            13 => self.pass(16),
            _ => Err(invalid("it has a value of an unknown type")),
        }
    }

    /// Truth values take a byte in lists, so that no list is longer than the file.
    fn skip_element(&mut self, kind: u8, depth: u32) -> io::Result<()> {
        if matches!(kind, 1 | 2) { self.byte().map(drop) } else { self.skip(kind, depth) }
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.file.read_exact(&mut byte)?;
        self.at += 1;
        Ok(byte[0])
    }

    fn pass(&mut self, count: u64) -> io::Result<()> {
        let passed = io::copy(&mut self.file.by_ref().take(count), &mut io::sink())?;
        self.at += passed;
        if passed == count { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(number);
            }
        }
        Err(invalid("a number in it has no end"))
    }

    fn signed(&mut self) -> io::Result<i64> {
        let number = self.number()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    /// Of 32 bits, as the library reads it.
    fn size(&mut self) -> io::Result<u64> {
        u64::try_from(self.signed()? as i32).map_err(|_| invalid("a size in it is below 0"))
    }
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// The numbers of the fields `uncompressed_page_size` and `compressed_page_size`.
const CONTENTS: i64 = 2;
const STORED: i64 = 3;

/// The type of whole numbers of 32 bits.
const I32: u8 = 5;

/// Structs in a header lie three deep.
const DEEPEST: u32 = 16;

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use parquet::basic::{Compression, ZstdLevel};
    use parquet::data_type::Int64Type;
    use parquet::file::properties::WriterProperties;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use tempfile::NamedTempFile;

    use super::super::parquet::copy_to_lines;
    use super::*;
    use crate::run::Columns;

    /// A file of one column and one page, before anything in it lies.
    fn honest() -> Vec<u8> {
        let schema = Arc::new(parse_message_type("message rows { required int64 text; }").unwrap());
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_dictionary_enabled(false);
        let mut bytes = Vec::new();
        let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties.build())).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let values: Vec<i64> = (0..400).map(|at| at * at % 997).collect();
        column.typed::<Int64Type>().write_batch(&values, None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        bytes
    }

    fn number(value: i32) -> Vec<u8> {
        let (mut left, mut bytes) = ((value as u32) << 1, Vec::new());
        while left > 127 {
            bytes.push(left as u8 | 128);
            left >>= 7;
        }
        bytes.push(left as u8);
        bytes
    }

    /// The same file, whose page says that it holds so many bytes. The header is longer then, and what it says to be stored is less by as much, so that
    /// every other length fits.
    pub(crate) fn lying(says: i32) -> NamedTempFile {
        let bytes = honest();
        let file = NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let opened = File::open(file.path()).unwrap();
        let page = Headers { file: BufReader::new(&opened), at: 0 }.read(4).unwrap();
        let (contents, stored) = (number(page.contents as i32), number(page.stored as i32));
        assert_eq!(page.contents, 3200);
        // A field's number and type in one byte: 1 and I32, twice.
        let begin = [&[0x15, 0][..], &[0x15], &contents, &[0x15], &stored].concat();
        assert_eq!(bytes[4..][..begin.len()], begin);
        let more = number(says).len() - contents.len();
        let less = number(page.stored as i32 - more as i32);
        assert_eq!(less.len(), stored.len());
        let changed =
            [&bytes[..4], &[0x15, 0, 0x15], &number(says), &[0x15], &less, &bytes[4 + begin.len()..]];
        std::fs::write(file.path(), changed.concat()).unwrap();
        file
    }

    fn checked(path: &std::path::Path) -> Result<(), ParquetError> {
        let file = File::open(path).unwrap();
        check(&file, SerializedFileReader::new(file.try_clone().unwrap()).unwrap().metadata())
    }

    /// The library made room for two gigabytes before it looked at what there was.
    #[test]
    fn a_page_that_says_to_hold_more_than_fits_is_refused_before_room_is_made() {
        let file = lying(i32::MAX);
        let error = checked(file.path()).unwrap_err().to_string();
        assert!(error.contains("says that it holds 2147483647 bytes"), "{error}");
        let error = copy_to_lines(file.path(), &Columns::default()).unwrap_err().to_string();
        assert!(error.contains("says that it holds 2147483647 bytes"), "{error}");
        // What is within bounds is the library's to find.
        let file = lying(1 << 20);
        checked(file.path()).unwrap();
        assert!(copy_to_lines(file.path(), &Columns::default()).is_err());
    }

    /// Any byte of a header may change.
    #[test]
    fn a_damaged_header_is_no_worse_than_an_error() {
        let (file, bytes) = (NamedTempFile::new().unwrap(), honest());
        std::fs::write(file.path(), &bytes).unwrap();
        checked(file.path()).unwrap();
        let mut refused = 0;
        for (at, bit) in (4..40).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            std::fs::write(file.path(), &changed).unwrap();
            refused += u32::from(checked(file.path()).is_err());
        }
        assert!(refused > 50, "{refused}");
    }
}
