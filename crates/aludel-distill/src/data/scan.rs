//! Finds where the rows of a file begin and end.
//!
//! In: a file, read once from its beginning to its end. Out: the place of every row, and a checksum of the whole. What a row
//! holds is looked at by whoever asks for the rows.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};

/// A row of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Its first byte.
    pub(super) start: u64,
    /// Bytes of it, without the end of the line.
    pub(super) length: u32,
    /// The line or passage that it is, counted from 1.
    pub(super) number: u64,
}

/// What is known of a whole file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Whole {
    pub(super) bytes: u64,
    pub(super) checksum: u32,
}

/// Longer rows are refused.
pub(super) const LARGEST_ROW: usize = 64 << 20;
/// The longest passage of a text file, in bytes: some four thousand tokens.
const PASSAGE: usize = 16 << 10;
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Calls `row` with the place and the bytes of every line that is not blank; with `None` for the bytes of one that is
/// too long.
pub(super) fn lines<E: From<std::io::Error>>(
    file: &File,
    mut row: impl FnMut(Place, Option<&[u8]>) -> Result<(), E>,
) -> Result<Whole, E> {
    let mut reader = BufReader::with_capacity(1 << 18, file);
    let mut whole = Whole { bytes: 0, checksum: 0 };
    let mut line = Vec::new();
    let mut number = 0;
    loop {
        line.clear();
        let start = whole.bytes;
        let read = take_line(&mut reader, &mut line, &mut whole)?;
        if read == 0 {
            return Ok(whole);
        }
        number += 1;
        let mark = if number == 1 && line.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
        let before = line[mark..].iter().take_while(|byte| byte.is_ascii_whitespace()).count() + mark;
        let text = line[before..].trim_ascii_end();
        if read > LARGEST_ROW as u64 {
            row(Place { start, length: 0, number }, None)?;
        } else if !text.is_empty() {
            row(Place { start: start + before as u64, length: text.len() as u32, number }, Some(text))?;
        }
    }
}

/// Reads to the end of a line, keeping no more of it than a row may have. Returns the bytes read.
fn take_line(reader: &mut impl BufRead, line: &mut Vec<u8>, whole: &mut Whole) -> std::io::Result<u64> {
    let start = whole.bytes;
    loop {
        let buffer = reader.fill_buf()?;
        let end = buffer.iter().position(|&byte| byte == b'\n');
        let taken = end.map_or(buffer.len(), |at| at + 1);
        let room = LARGEST_ROW.saturating_sub(line.len());
        line.extend_from_slice(&buffer[..taken.min(room)]);
        whole.checksum = crc32c::crc32c_append(whole.checksum, &buffer[..taken]);
        whole.bytes += taken as u64;
        reader.consume(taken);
        if end.is_some() || taken == 0 {
            return Ok(whole.bytes - start);
        }
    }
}

/// Calls `row` with the place and the bytes of every passage of a text. A passage ends with its text or, of a longer one,
/// after the last blank line, line or word that fits.
pub(super) fn passages<E: From<std::io::Error>>(
    mut file: &File,
    mut row: impl FnMut(Place, &[u8]) -> Result<(), E>,
) -> Result<Whole, E> {
    let mut whole = Whole { bytes: 0, checksum: 0 };
    let mut held: Vec<u8> = Vec::new();
    let (mut start, mut number) = (0u64, 0u64);
    loop {
        let before = held.len();
        let read = (&mut file).take((2 * PASSAGE) as u64).read_to_end(&mut held)?;
        whole.checksum = crc32c::crc32c_append(whole.checksum, &held[before..]);
        whole.bytes += read as u64;
        if start == 0 && held.starts_with(BYTE_ORDER_MARK) {
            held.drain(..BYTE_ORDER_MARK.len());
            start = BYTE_ORDER_MARK.len() as u64;
        }
        let last = read == 0;
        // While more may come, a passage is cut only where its whole window is seen.
        while held.len() > PASSAGE || (last && !held.is_empty()) {
            let length = if held.len() > PASSAGE { cut(&held[..PASSAGE]) } else { held.len() };
            number += 1;
            row(Place { start, length: length as u32, number }, &held[..length])?;
            held.drain(..length);
            start += length as u64;
        }
        if last {
            return Ok(whole);
        }
    }
}

/// Where a passage ends in a window that is full. The second half is preferred, so that passages do not become short.
fn cut(window: &[u8]) -> usize {
    let half = window.len() / 2;
    let after_last = |mark: &[u8]| {
        let found = window[half..].windows(mark.len()).rposition(|bytes| bytes == mark);
        found.map(|at| half + at + mark.len())
    };
    let is_boundary = |&at: &usize| !(0x80..0xc0).contains(&window[at]);
    after_last(b"\n\n")
        .or_else(|| after_last(b"\n"))
        .or_else(|| after_last(b" "))
        .or_else(|| (half..window.len()).rev().find(is_boundary))
        .unwrap_or(window.len())
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file.rewind().unwrap();
        file
    }

    fn found_lines(content: &[u8]) -> (Vec<(u64, u64, Vec<u8>)>, Whole) {
        let mut rows = Vec::new();
        let whole = lines::<std::io::Error>(&file(content), |place, bytes| {
            let bytes = bytes.unwrap().to_vec();
            assert_eq!(content[place.start as usize..][..place.length as usize], bytes);
            rows.push((place.number, place.start, bytes));
            Ok(())
        })
        .unwrap();
        assert_eq!(whole, Whole { bytes: content.len() as u64, checksum: crc32c::crc32c(content) });
        (rows, whole)
    }

    #[test]
    fn lines_are_found_whatever_ends_them() {
        let (rows, _) = found_lines("\u{feff}a\r\n\n  \t\n bc \nlast".as_bytes());
        assert_eq!(rows, [(1, 3, b"a".to_vec()), (4, 12, b"bc".to_vec()), (5, 16, b"last".to_vec())]);
        assert_eq!(found_lines(b"").0, []);
        assert_eq!(found_lines(b"\n\n").0, []);
        let long = vec![b'x'; 3 << 18];
        assert_eq!(found_lines(&long).0, [(1, 0, long)]);
    }

    fn found_passages(content: &[u8]) -> Vec<Vec<u8>> {
        let mut rows = Vec::new();
        let mut end = None;
        passages::<std::io::Error>(&file(content), |place, bytes| {
            assert_eq!(&content[place.start as usize..][..place.length as usize], bytes);
            assert!(end.is_none_or(|end| end == place.start), "passages follow each other");
            end = Some(place.start + u64::from(place.length));
            rows.push(bytes.to_vec());
            Ok(())
        })
        .unwrap();
        assert_eq!(end.unwrap_or(content.len() as u64), content.len() as u64);
        rows
    }

    #[test]
    fn texts_are_cut_at_blank_lines_lines_words_or_characters() {
        assert_eq!(found_passages(b""), [b""; 0]);
        assert_eq!(found_passages("\u{feff}é".as_bytes()), ["é".as_bytes()]);
        for (unit, mark) in [("word\nline\n\n", "\n\n"), ("some words\n", "\n"), ("word ", " ")] {
            let text = unit.repeat(50_000 / unit.len());
            let rows = found_passages(text.as_bytes());
            assert!(
                rows.len() >= 3
                    && rows.iter().all(|row| row.len() <= PASSAGE && row.ends_with(mark.as_bytes()))
            );
        }
        let rows = found_passages("é".repeat(20_000).as_bytes());
        assert!(rows.len() == 3 && rows.iter().all(|row| std::str::from_utf8(row).is_ok()));
    }
}
