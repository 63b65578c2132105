//! Parses the header of a GGUF file: metadata, tensor names, types, shapes and places.
//!
//! In: an untrusted file. Out: a [`Header`] in which every length, offset and shape has been held against the file's
//! size, no two tensors share bytes, and every type can be decoded. It reads no weight and allocates no more than twice
//! the header's size plus a fixed part.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use super::block::{BlockType, unread_name};
use super::metadata::{Entry, Kind, LENGTH_BYTES, Metadata, Scalar, Span};
use crate::error::Error;

/// What a GGUF file says about itself before its weights.
#[derive(Debug)]
pub struct Header {
    pub(super) metadata: Metadata,
    tensors: Vec<TensorInfo>,
    file_bytes: u64,
}

/// A tensor of a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name in the file, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// How its elements are stored.
    pub block: BlockType,
    /// Sides, slowest first: the reverse of the file's order.
    pub shape: Vec<usize>,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl TensorInfo {
    /// The number of elements.
    pub fn elements(&self) -> u64 {
        self.bytes / self.block.bytes() * self.block.elements()
    }
}

impl Header {
    /// Reads the header of the file at `path`.
    ///
    /// Errors: [`Error::NotFound`]; [`Error::NotACheckpoint`] when the file is no GGUF; [`Error::Unsupported`] for version
    /// 1, big-endian files, parts of a split model and block types that are not read, each named; [`Error::Damaged`] for
    /// everything that contradicts the format or the file's length; [`Error::Io`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let file = open(path)?;
        let file_bytes = file.metadata().map_err(Error::io("read", path))?.len();
        let mut reader = Reader { file, path, file_bytes, bytes: Vec::new(), position: 0 };
        let counts = reader.preamble()?;
        let entries = reader.entries(counts.entries)?;
        let raw = reader.tensors(counts.tensors)?;
        let end = reader.position as u64;
        let metadata = Metadata::new(path, reader.bytes, entries)?;
        refuse_splits(&metadata)?;
        let tensors = place(&metadata, raw, end, file_bytes)?;
        Ok(Self { metadata, tensors, file_bytes })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.metadata.path
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// The file's tensors, in its order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// `general.architecture`, such as "llama". Errors: [`Error::Damaged`] when it is missing or no text.
    pub fn architecture(&self) -> Result<&str, Error> {
        let found = self.metadata.text("general.architecture")?;
        found.ok_or_else(|| Error::damaged(self.path(), "metadata key \"general.architecture\" is missing"))
    }
}

/// Opens a GGUF file for reading.
pub(super) fn open(path: &Path) -> Result<File, Error> {
    if path.is_dir() {
        return Err(Error::not_a_checkpoint(path, "it is a folder; name the .gguf file"));
    }
    crate::regular::open(path).map_err(|error| match error {
        Error::Io { source, path, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Error::NotFound { path, remedy: "check the path to the .gguf file".into() }
        }
        other => other,
    })
}

/// Reads forward, keeping everything read: values stay where they are and are found by their place.
struct Reader<'a> {
    file: File,
    path: &'a Path,
    file_bytes: u64,
    bytes: Vec<u8>,
    position: usize,
}

struct Counts {
    tensors: u64,
    entries: u64,
}

/// A tensor info as it stands in the file.
struct RawTensor {
    name: String,
    sides: Vec<u64>,
    type_id: u32,
    offset: u64,
}

impl Reader<'_> {
    fn preamble(&mut self) -> Result<Counts, Error> {
        if self.file_bytes < 4 || self.word::<4>("the magic number")? != *b"GGUF" {
            return Err(Error::not_a_checkpoint(self.path, "it does not begin with the bytes GGUF"));
        }
        let version = self.u32("the version")?;
        match version {
            2 | 3 => {}
            1 => {
                return Err(Error::unsupported(
                    self.path,
                    "it is GGUF version 1; convert it anew with llama.cpp",
                ));
            }
            _ if (2..=3).contains(&version.swap_bytes()) => {
                return Err(Error::unsupported(
                    self.path,
                    "it is a big-endian GGUF; use the little-endian one",
                ));
            }
            _ => {
                return Err(Error::unsupported(
                    self.path,
                    format!("it is GGUF version {version}; 2 and 3 are read"),
                ));
            }
        }
        let tensors = self.count("the tensor count", MOST_TENSORS)?;
        let entries = self.count("the metadata count", MOST_ENTRIES)?;
        Ok(Counts { tensors, entries })
    }

    fn entries(&mut self, count: u64) -> Result<Vec<Entry>, Error> {
        // Not reserved from the count, which is only a claim.
        let mut entries = Vec::new();
        for _ in 0..count {
            let key = self.text("a metadata key")?;
            let kind = self.u32("a metadata type")?;
            let (kind, value) = self.value(kind)?;
            entries.push(Entry { key, kind, value });
        }
        Ok(entries)
    }

    fn value(&mut self, type_id: u32) -> Result<(Kind, Span), Error> {
        if type_id == ARRAY {
            return self.array(0);
        }
        let scalar = self.scalar(type_id)?;
        let value = match scalar.bytes() {
            Some(bytes) => self.take(bytes, "a metadata value")?,
            None => self.text("a metadata value")?,
        };
        Ok((Kind::One(scalar), value))
    }

    fn array(&mut self, depth: u32) -> Result<(Kind, Span), Error> {
        let type_id = self.u32("an array's type")?;
        let count = self.u64("an array's length")?;
        let start = self.position as u32;
        let kind = if type_id == ARRAY {
            if depth == DEEPEST_ARRAY {
                return Err(self.damaged(format!("arrays are nested deeper than {DEEPEST_ARRAY}")));
            }
            for _ in 0..count {
                self.array(depth + 1)?;
            }
            Kind::Nested
        } else {
            let scalar = self.scalar(type_id)?;
            self.elements(scalar, count)?;
            // The elements lie in the header, so their count fits its size.
            Kind::Array(scalar, count as u32)
        };
        Ok((kind, Span { start, end: self.position as u32 }))
    }

    fn elements(&mut self, scalar: Scalar, count: u64) -> Result<(), Error> {
        match scalar.bytes() {
            Some(bytes) => {
                let all =
                    count.checked_mul(bytes).ok_or_else(|| self.damaged("an array's length overflows"))?;
                self.take(all, "an array")?;
            }
            None => {
                for _ in 0..count {
                    self.text("a text of an array")?;
                }
            }
        }
        Ok(())
    }

    fn scalar(&self, type_id: u32) -> Result<Scalar, Error> {
        SCALARS
            .iter()
            .find(|(id, _)| *id == type_id)
            .map(|(_, scalar)| *scalar)
            .ok_or_else(|| self.damaged(format!("metadata type {type_id} does not exist")))
    }

    fn tensors(&mut self, count: u64) -> Result<Vec<RawTensor>, Error> {
        let mut tensors = Vec::new();
        for _ in 0..count {
            tensors.push(self.tensor()?);
        }
        Ok(tensors)
    }

    fn tensor(&mut self) -> Result<RawTensor, Error> {
        let name = self.text("a tensor name")?;
        let name = &self.bytes[name.start as usize..name.end as usize];
        if name.is_empty() || name.len() > LONGEST_NAME {
            return Err(self.damaged(format!("a tensor name has {} bytes", name.len())));
        }
        let name =
            std::str::from_utf8(name).map_err(|_| self.damaged("a tensor name is not UTF-8"))?.to_owned();
        let count = self.u32("a tensor's number of sides")?;
        if count == 0 || count > MOST_SIDES {
            return Err(self.damaged(format!("tensor {name:?} has {count} sides")));
        }
        let mut sides = Vec::with_capacity(count as usize);
        for _ in 0..count {
            sides.push(self.u64("a tensor's shape")?);
        }
        Ok(RawTensor {
            name,
            sides,
            type_id: self.u32("a tensor's type")?,
            offset: self.u64("a tensor's offset")?,
        })
    }

    fn count(&mut self, what: &str, most: u64) -> Result<u64, Error> {
        let count = self.u64(what)?;
        if count > most {
            return Err(self.damaged(format!("{what} is {count}; at most {most} are read")));
        }
        Ok(count)
    }

    fn text(&mut self, what: &str) -> Result<Span, Error> {
        let length = self.u64(what)?;
        self.take(length, what)
    }

    fn u32(&mut self, what: &str) -> Result<u32, Error> {
        self.word(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, Error> {
        self.word::<LENGTH_BYTES>(what).map(u64::from_le_bytes)
    }

    fn word<const BYTES: usize>(&mut self, what: &str) -> Result<[u8; BYTES], Error> {
        let span = self.take(BYTES as u64, what)?;
        let mut word = [0; BYTES];
        word.copy_from_slice(&self.bytes[span.start as usize..span.end as usize]);
        Ok(word)
    }

    /// Moves past `length` bytes, which are read if they have not been.
    fn take(&mut self, length: u64, what: &str) -> Result<Span, Error> {
        let start = self.position as u64;
        let end = start.checked_add(length).filter(|&end| end <= self.file_bytes);
        let end = end.ok_or_else(|| self.damaged(format!("the file ends inside {what}")))?;
        if end > MAX_HEADER_BYTES {
            return Err(self.damaged(format!("its header is larger than {} MiB", MAX_HEADER_BYTES >> 20)));
        }
        self.fill(end)?;
        self.position = end as usize;
        Ok(Span { start: start as u32, end: end as u32 })
    }

    /// Reads until `end` bytes are there, and somewhat ahead.
    fn fill(&mut self, end: u64) -> Result<(), Error> {
        let have = self.bytes.len() as u64;
        if end <= have {
            return Ok(());
        }
        let ahead = end.max(have + have / 2 + READ_AHEAD).min(self.file_bytes).min(MAX_HEADER_BYTES.max(end));
        self.bytes.reserve_exact((ahead - have) as usize);
        self.bytes.resize(ahead as usize, 0);
        self.file.read_exact(&mut self.bytes[have as usize..]).map_err(Error::io("read", self.path))
    }

    fn damaged(&self, detail: impl Into<String>) -> Error {
        Error::damaged(self.path, detail)
    }
}

fn refuse_splits(metadata: &Metadata) -> Result<(), Error> {
    match metadata.count("split.count")? {
        Some(parts) if parts > 1 => {
            let remedy = "join them with llama.cpp's `llama-gguf-split --merge`";
            Err(Error::unsupported(
                &metadata.path,
                format!("it is one of {parts} parts of a model; {remedy}"),
            ))
        }
        _ => Ok(()),
    }
}

/// Holds every tensor against the file: type, shape, place, and that no two share bytes.
fn place(
    metadata: &Metadata,
    raw: Vec<RawTensor>,
    end: u64,
    file_bytes: u64,
) -> Result<Vec<TensorInfo>, Error> {
    let path = &metadata.path;
    refuse_unread_types(path, &raw)?;
    let alignment = metadata.count("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > LARGEST_ALIGNMENT {
        return Err(Error::damaged(path, format!("general.alignment is {alignment}")));
    }
    let data = end.next_multiple_of(alignment)..file_bytes;
    let mut tensors = Vec::with_capacity(raw.len());
    for tensor in raw {
        let name = tensor.name.clone();
        let placed = place_one(tensor, &data, alignment);
        tensors.push(placed.map_err(|fault| Error::damaged(path, format!("tensor {name:?}: {fault}")))?);
    }
    check_apart(path, &tensors)?;
    Ok(tensors)
}

fn refuse_unread_types(path: &Path, raw: &[RawTensor]) -> Result<(), Error> {
    let unread: Vec<&RawTensor> =
        raw.iter().filter(|tensor| BlockType::parse(tensor.type_id).is_none()).collect();
    let Some(first) = unread.first() else { return Ok(()) };
    let mut types: Vec<String> = unread.iter().map(|tensor| unread_name(tensor.type_id)).collect();
    types.sort();
    types.dedup();
    let detail = format!(
        "{} of its tensors, {:?} first, are stored as {}, which is not read; use a file in F16, BF16, Q4_0 to Q8_0 or Q2_K to Q6_K",
        unread.len(),
        first.name,
        types.join(", ")
    );
    Err(Error::unsupported(path, detail))
}

fn place_one(raw: RawTensor, data: &Range<u64>, alignment: u64) -> Result<TensorInfo, String> {
    let RawTensor { name, sides, type_id, offset } = raw;
    let block = BlockType::parse(type_id).ok_or_else(|| format!("type {type_id} is not read"))?;
    if sides.contains(&0) {
        return Err(format!("its shape {sides:?} has an empty side"));
    }
    if !sides[0].is_multiple_of(block.elements()) {
        return Err(format!(
            "its rows of {} elements are no whole number of {} blocks",
            sides[0],
            block.name()
        ));
    }
    let elements = sides.iter().try_fold(1u64, |product, &side| product.checked_mul(side));
    let bytes = elements.and_then(|elements| (elements / block.elements()).checked_mul(block.bytes()));
    let bytes = bytes.ok_or_else(|| format!("its shape {sides:?} overflows"))?;
    if !offset.is_multiple_of(alignment) {
        return Err(format!("its offset {offset} is not aligned to {alignment}"));
    }
    let offset = data.start.checked_add(offset).ok_or("its offset overflows")?;
    let inside = offset.checked_add(bytes).is_some_and(|end| end <= data.end);
    if !inside {
        return Err(format!("its {bytes} bytes at {offset} leave the file of {} bytes", data.end));
    }
    let shape = sides.iter().rev().map(|&side| usize::try_from(side)).collect::<Result<_, _>>();
    Ok(TensorInfo { name, block, shape: shape.map_err(|error| error.to_string())?, offset, bytes })
}

/// No two tensors have a name or a byte in common: else a small file could stand for any amount of output.
fn check_apart(path: &Path, tensors: &[TensorInfo]) -> Result<(), Error> {
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|tensor| tensor.offset);
    if let Some(pair) = order.windows(2).find(|pair| pair[0].offset + pair[0].bytes > pair[1].offset) {
        let detail = format!("tensors {:?} and {:?} overlap", pair[0].name, pair[1].name);
        return Err(Error::damaged(path, detail));
    }
    order.sort_by(|left, right| left.name.cmp(&right.name));
    match order.windows(2).find(|pair| pair[0].name == pair[1].name) {
        Some(pair) => Err(Error::damaged(path, format!("two tensors are named {:?}", pair[0].name))),
        None => Ok(()),
    }
}

const ARRAY: u32 = 9;

/// The format's numbers for the types of single values.
const SCALARS: [(u32, Scalar); 12] = [
    (0, Scalar::Unsigned(1)),
    (1, Scalar::Signed(1)),
    (2, Scalar::Unsigned(2)),
    (3, Scalar::Signed(2)),
    (4, Scalar::Unsigned(4)),
    (5, Scalar::Signed(4)),
    (6, Scalar::Float(4)),
    (7, Scalar::Flag),
    (8, Scalar::Text),
    (10, Scalar::Unsigned(8)),
    (11, Scalar::Signed(8)),
    (12, Scalar::Float(8)),
];

/// The largest vocabularies make headers of about 20 MB.
const MAX_HEADER_BYTES: u64 = 256 << 20;
const READ_AHEAD: u64 = 64 << 10;

/// The largest models have some thousand tensors and some hundred keys.
const MOST_TENSORS: u64 = 1 << 16;
const MOST_ENTRIES: u64 = 1 << 16;

/// The format's bound.
const MOST_SIDES: u32 = 4;
const LONGEST_NAME: usize = 256;
const DEEPEST_ARRAY: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;
const LARGEST_ALIGNMENT: u64 = 1 << 20;
