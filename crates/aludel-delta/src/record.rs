//! What the index has of a chunk, 16 bytes.

use crc32c::{crc32c, crc32c_append};

use crate::chunk::{Coded, Form};

/// Where a chunk lies and what it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) offset: u64,
    /// With the highest bit set where the chunk is the bytes themselves, the next where it is of FP8.
    marked_length: u32,
    pub(crate) crc: u32,
}

impl Record {
    /// That of a chunk at this offset.
    pub(crate) const fn new(offset: u64, coded: &Coded) -> Self {
        let mark = match coded.form {
            Form::Distances => 0,
            Form::Whole => WHOLE,
            Form::Fp8 => FP8,
        };
        Self { offset, marked_length: coded.bytes.len() as u32 | mark, crc: coded.crc }
    }

    pub(crate) const fn moved_to(self, offset: u64) -> Self {
        Self { offset, ..self }
    }

    pub(crate) fn of(bytes: [u8; RECORD as usize]) -> Self {
        let bytes = u128::from_le_bytes(bytes);
        Self { offset: bytes as u64, marked_length: (bytes >> 64) as u32, crc: (bytes >> 96) as u32 }
    }

    pub(crate) fn bytes(self) -> [u8; RECORD as usize] {
        (u128::from(self.crc) << 96 | u128::from(self.marked_length) << 64 | u128::from(self.offset))
            .to_le_bytes()
    }

    pub(crate) const fn length(self) -> u64 {
        (self.marked_length & !(WHOLE | FP8)) as u64
    }

    pub(crate) const fn form(self) -> Form {
        if self.marked_length & WHOLE != 0 {
            Form::Whole
        } else if self.marked_length & FP8 != 0 {
            Form::Fp8
        } else {
            Form::Distances
        }
    }

    /// The CRC-32C of the record and the chunk, wherever that lies.
    pub(crate) fn crc_with(self, coded: &[u8]) -> u32 {
        crc32c_append(crc32c(&self.bytes()[8..]), coded)
    }
}

/// Bytes of a record.
pub(crate) const RECORD: u64 = 16;

const WHOLE: u32 = 1 << 31;
const FP8: u32 = 1 << 30;
