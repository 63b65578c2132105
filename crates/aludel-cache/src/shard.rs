//! Lays records out in a file: a start, frames, an index, an end. `docs/teacher-cache.md` has the offsets.
//!
//! In: bytes of a shard, complete or still growing. Out: its parts, checked. A complete one has an end; of one that grows, the frames
//! up to the first that is torn are sound. Files are opened and written elsewhere.

use std::ops::Range;

use super::rows::{RecordId, Set};

const MAGIC: [u8; 8] = *b"ALUDELSH";
const END_MAGIC: [u8; 4] = *b"ALEN";

/// Bytes before the first frame.
pub(crate) const START_BYTES: usize = 60;
/// Bytes of a frame before its payload.
pub(crate) const FRAME_BYTES: usize = 32;
/// Bytes of a record in the index.
pub(crate) const ENTRY_BYTES: usize = 24;
/// Bytes after the index.
pub(crate) const END_BYTES: usize = 40;

/// What a shard begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    /// From 1.
    pub(crate) part: u32,
    pub(crate) parts: u32,
    /// Of the part's shards, from 0.
    pub(crate) sequence: u32,
    /// SHA-256 of `cache.json`.
    pub(crate) cache: [u8; 32],
}

impl Start {
    pub(crate) fn bytes(&self) -> [u8; START_BYTES] {
        let mut bytes = [0; START_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        put(&mut bytes, 8, super::header::VERSION);
        put(&mut bytes, 12, self.part);
        put(&mut bytes, 16, self.parts);
        put(&mut bytes, 20, self.sequence);
        bytes[24..56].copy_from_slice(&self.cache);
        let crc = crc32c::crc32c(&bytes[..56]);
        put(&mut bytes, 56, crc);
        bytes
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let bytes = bytes.get(..START_BYTES).ok_or("it is shorter than its start")?;
        if bytes[..8] != MAGIC {
            return Err("it does not begin as a shard does");
        }
        if u32_at(bytes, 56) != crc32c::crc32c(&bytes[..56]) {
            return Err("the checksum of its start is wrong");
        }
        if u32_at(bytes, 8) != super::header::VERSION {
            return Err("it has a version that this program does not read");
        }
        let mut cache = [0; 32];
        cache.copy_from_slice(&bytes[24..56]);
        Ok(Self { part: u32_at(bytes, 12), parts: u32_at(bytes, 16), sequence: u32_at(bytes, 20), cache })
    }
}

/// A record where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) id: RecordId,
    /// Rows of the payload.
    pub(crate) targets: u32,
    /// Over the piece's tokens and labels.
    pub(crate) check: u32,
    pub(crate) payload: Range<usize>,
}

/// The bytes of a frame before a payload of this length and checksum.
pub(crate) fn frame_head(
    id: RecordId,
    targets: u32,
    check: u32,
    (payload, crc): (usize, u32),
) -> Option<[u8; FRAME_BYTES]> {
    let length = u32::try_from(payload).ok()?;
    let mut bytes = [0; FRAME_BYTES];
    put_id(&mut bytes, id);
    put(&mut bytes, 16, targets);
    put(&mut bytes, 20, check);
    put(&mut bytes, 24, length);
    let crc = crc32c::crc32c_combine(crc32c::crc32c(&bytes[..28]), crc, payload);
    put(&mut bytes, 28, crc);
    Some(bytes)
}

/// The frame at a place.
pub(crate) fn frame_at(bytes: &[u8], at: usize) -> Result<Frame, &'static str> {
    let head = bytes.get(at..).and_then(|rest| rest.get(..FRAME_BYTES)).ok_or("a record is cut short")?;
    let start = at + FRAME_BYTES;
    let end = start.saturating_add(u32_at(head, 24) as usize);
    let payload = bytes.get(start..end).ok_or("a record is cut short")?;
    if u32_at(head, 28) != crc32c::crc32c_append(crc32c::crc32c(&head[..28]), payload) {
        return Err("the checksum of a record is wrong");
    }
    let id = id_at(head).ok_or("a record is of no known set")?;
    Ok(Frame { id, targets: u32_at(head, 16), check: u32_at(head, 20), payload: start..end })
}

/// Records with the offset of each.
pub(crate) type Index = Vec<(RecordId, u64)>;

/// What a complete shard ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) records: u64,
    pub(crate) targets: u64,
    /// Where the index begins.
    pub(crate) index: u64,
    /// Whether it is the last of its part.
    pub(crate) is_last: bool,
}

/// Index and end, for a file whose bytes before them have this checksum.
pub(crate) fn index_and_end(entries: &[(RecordId, u64)], end: End, crc_before: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * ENTRY_BYTES + END_BYTES);
    for (id, offset) in entries {
        let mut entry = [0; ENTRY_BYTES];
        put_id(&mut entry, *id);
        entry[16..].copy_from_slice(&offset.to_le_bytes());
        bytes.extend(entry);
    }
    bytes.extend(end.records.to_le_bytes());
    bytes.extend(end.targets.to_le_bytes());
    bytes.extend(end.index.to_le_bytes());
    bytes.extend(u32::from(end.is_last).to_le_bytes());
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    let crc = crc32c::crc32c_append(crc_before, &bytes);
    bytes.extend(crc.to_le_bytes());
    bytes.extend(END_MAGIC);
    bytes
}

/// Where the end of a shard of this length lies; `None` where it has no room for one.
pub(crate) fn end_range(length: u64) -> Option<Range<u64>> {
    let at = length.checked_sub(END_BYTES as u64).filter(|at| *at >= START_BYTES as u64)?;
    Some(at..length)
}

impl End {
    /// The end in the last bytes of a complete shard, which begin at this place of it.
    pub(crate) fn parse(bytes: &[u8], at: u64) -> Result<Self, &'static str> {
        if bytes.len() != END_BYTES || bytes[36..] != END_MAGIC {
            return Err("it does not end as a shard does");
        }
        let end = Self {
            records: u64_at(bytes, 0),
            targets: u64_at(bytes, 8),
            index: u64_at(bytes, 16),
            is_last: u32_at(bytes, 24) == 1,
        };
        let is_inside = (START_BYTES as u64..=at).contains(&end.index);
        if is_inside { Ok(end) } else { Err("its index is not in it") }
    }
}

/// The index in the bytes of a complete shard from its index on.
pub(crate) fn parse_index(end: &End, tail: &[u8]) -> Result<Index, &'static str> {
    let at = tail.len().checked_sub(END_BYTES).ok_or("it is cut short")?;
    if u32_at(tail, at + 28) != crc32c::crc32c(&tail[..at + 28]) {
        return Err("the checksum of its index is wrong");
    }
    if at as u64 != end.records.saturating_mul(ENTRY_BYTES as u64) {
        return Err("its index has another length than it says");
    }
    let entry = |entry: &[u8]| {
        let offset = u64_at(entry, 16);
        let fits = offset >= START_BYTES as u64 && offset < end.index;
        id_at(entry).filter(|_| fits).map(|id| (id, offset))
    };
    let entries: Option<Vec<_>> = tail[..at].chunks_exact(ENTRY_BYTES).map(entry).collect();
    entries.ok_or("its index names a place outside of it")
}

/// End and index of a complete shard.
pub(crate) fn parse_end(bytes: &[u8]) -> Result<(End, Index), &'static str> {
    let last = end_range(bytes.len() as u64).ok_or("it is cut short")?;
    let end = End::parse(&bytes[last.start as usize..], last.start)?;
    let index = parse_index(&end, &bytes[end.index as usize..])?;
    Ok((end, index))
}

/// Holds a complete shard's whole content against its checksum.
pub(crate) fn check_whole(bytes: &[u8]) -> Result<(), &'static str> {
    let at = bytes.len().checked_sub(8).ok_or("it is cut short")?;
    if u32_at(bytes, at) == crc32c::crc32c(&bytes[..at]) { Ok(()) } else { Err("its checksum is wrong") }
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put_id(bytes: &mut [u8], id: RecordId) {
    bytes[..8].copy_from_slice(&id.row.to_le_bytes());
    put(bytes, 8, id.start);
    put(bytes, 12, if id.set == Set::Train { 0 } else { 1 });
}

fn id_at(bytes: &[u8]) -> Option<RecordId> {
    let set = match u32_at(bytes, 12) {
        0 => Set::Train,
        1 => Set::Validation,
        _ => return None,
    };
    Some(RecordId { set, row: u64_at(bytes, 0), start: u32_at(bytes, 8) })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
