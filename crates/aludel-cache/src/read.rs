//! Reads any record of a complete cache through memory maps.
//!
//! In: a folder. Out: a [`Cache`] whose header, starts and indexes have been checked; a record's checksum is checked when it is
//! read, and [`Cache::verify`] checks every byte. A cache that is not complete is refused, with what is missing. Nothing is allocated
//! beyond what the files' lengths justify.

use std::fs;
use std::path::{Path, PathBuf};

use aludel_checkpoint::{MappedFile, hexadecimal};
use sha2::{Digest, Sha256};

use super::dense::Stored;
use super::error::Error;
use super::header::{Contents, Header};
use super::rows::{LogitRows, RecordId, Rows};
use super::shard::{self, Frame, Start};
use super::write::Part;
use super::{dense, sparse};

pub(crate) const HEADER: &str = "cache.json";
pub(crate) const HEAD: &str = "head.safetensors";

/// A header is no longer than this.
pub(crate) const LONGEST_HEADER: u64 = 16 << 20;

/// Rows of a record: the longest sequence that a run takes.
const MOST_ROWS: u32 = 1 << 24;

pub(crate) fn shard_name(part: Part, sequence: u32) -> String {
    format!("part-{:04}-of-{:04}-{sequence:06}.shard", part.number, part.of)
}

/// A complete cache.
#[derive(Debug)]
pub struct Cache {
    path: PathBuf,
    header: Header,
    shards: Vec<Shard>,
    /// By name.
    index: Vec<(RecordId, u32, u64)>,
    targets: u64,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: MappedFile,
}

/// A record whose checksum is right.
#[derive(Debug)]
pub struct Record<'a> {
    frame: Frame,
    header: &'a Header,
    shard: &'a Shard,
}

impl Cache {
    /// Opens a cache.
    ///
    /// # Errors
    /// [`Error::NotACache`]; [`Error::Incomplete`]; [`Error::Damaged`]; what mapping its files fails by.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let (header, digest) = read_header(path)?;
        let mut cache =
            Self { path: path.to_path_buf(), header, shards: Vec::new(), index: Vec::new(), targets: 0 };
        let parts = cache.header.parts;
        let mut missing = Vec::new();
        for number in 1..=parts {
            if !cache.open_part(Part { number, of: parts }, digest)? {
                missing.push(number);
            }
        }
        if !missing.is_empty() {
            let detail = unfinished(&missing, parts);
            return Err(Error::Incomplete { path: path.to_path_buf(), detail });
        }
        cache.index.sort_unstable();
        if let Some(pair) = cache.index.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(Error::damaged(path, format!("{} is there twice", pair[0].0)));
        }
        Ok(cache)
    }

    /// The header of a cache, complete or not.
    ///
    /// # Errors
    /// As [`Cache::open`].
    pub fn header_of(path: &Path) -> Result<Header, Error> {
        Ok(read_header(path)?.0)
    }

    /// Whether the part is complete; its shards so far are opened.
    fn open_part(&mut self, part: Part, digest: [u8; 32]) -> Result<bool, Error> {
        for sequence in 0.. {
            let path = self.path.join(shard_name(part, sequence));
            if !path.is_file() {
                return Ok(false);
            }
            let map = MappedFile::open(&path)?;
            let damaged = |detail: &str| Error::damaged(&path, detail);
            let start = Start::parse(map.bytes()).map_err(damaged)?;
            if start.cache != digest {
                return Err(damaged("it was written under another cache.json than the one beside it"));
            }
            if (start.part, start.parts, start.sequence) != (part.number, part.of, sequence) {
                return Err(damaged("it is another shard than its name says"));
            }
            let (end, entries) = shard::parse_end(map.bytes()).map_err(damaged)?;
            let shard = self.shards.len() as u32;
            self.index.extend(entries.into_iter().map(|(id, offset)| (id, shard, offset)));
            self.targets = self.targets.saturating_add(end.targets);
            self.shards.push(Shard { path, map });
            if end.is_last {
                break;
            }
        }
        Ok(true)
    }

    /// What it is of.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Rows of all records.
    pub fn targets(&self) -> u64 {
        self.targets
    }

    /// Bytes of all shards.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.map.bytes().len() as u64).sum()
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// The names of all records, in ascending order.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = RecordId> + '_ {
        self.index.iter().map(|(id, ..)| *id)
    }

    /// A record by its name.
    ///
    /// # Errors
    /// [`Error::NoRecord`]; [`Error::Damaged`].
    pub fn record(&self, id: RecordId) -> Result<Record<'_>, Error> {
        let found = self.index.binary_search_by(|(other, ..)| other.cmp(&id));
        let Ok(at) = found else {
            return Err(Error::NoRecord { path: self.path.clone(), what: id.to_string() });
        };
        let (_, shard, offset) = self.index[at];
        let shard = &self.shards[shard as usize];
        let damaged = |detail: &str| Error::damaged(&shard.path, format!("{detail} ({id})"));
        let at = usize::try_from(offset).map_err(|_| damaged("its index names a place outside of it"))?;
        let frame = shard::frame_at(shard.map.bytes(), at).map_err(damaged)?;
        if frame.id != id {
            return Err(damaged("another record is where its index says"));
        }
        Ok(Record { frame, header: &self.header, shard })
    }

    /// Holds every byte of every file against its checksum, and decodes every record. `on_bytes` is told how many bytes of shards are done.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn verify(&self, on_bytes: &mut dyn FnMut(u64)) -> Result<(), Error> {
        self.head()?;
        let mut done = 0;
        for shard in &self.shards {
            shard::check_whole(shard.map.bytes()).map_err(|detail| Error::damaged(&shard.path, detail))?;
            done += shard.map.bytes().len() as u64;
            on_bytes(done);
        }
        for id in self.ids() {
            self.record(id)?.rows()?;
        }
        Ok(())
    }

    /// The file of the teacher's head, of a cache of hidden states.
    ///
    /// # Errors
    /// [`Error::Damaged`] where it is not the one that the header names; what mapping it fails by.
    pub fn head(&self) -> Result<Option<PathBuf>, Error> {
        let Contents::Hidden { head, .. } = &self.header.contents else { return Ok(None) };
        let path = self.path.join(HEAD);
        let digest = Sha256::digest(MappedFile::open(&path)?.bytes());
        if hexadecimal(&digest) != *head {
            return Err(Error::damaged(&path, "it is not the head that cache.json names"));
        }
        Ok(Some(path))
    }
}

impl<'a> Record<'a> {
    /// How many rows it has.
    pub fn targets(&self) -> usize {
        self.frame.targets as usize
    }

    /// The [`content_check`](super::content_check) of its piece.
    pub fn check(&self) -> u32 {
        self.frame.check
    }

    /// Bytes of its rows.
    pub fn bytes(&self) -> usize {
        self.frame.payload.len()
    }

    /// Its rows.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn rows(&self) -> Result<Rows<'a>, Error> {
        let payload = &self.shard.map.bytes()[self.frame.payload.clone()];
        let damaged =
            |detail: &str| Error::damaged(&self.shard.path, format!("{detail} ({})", self.frame.id));
        decode(self.header, self.frame.targets, payload).map_err(damaged)
    }
}

/// Which parts did not end, in words; there is at least one.
fn unfinished(missing: &[u32], of: u32) -> String {
    const LISTED: usize = 12;
    if of == 1 {
        return "its capture did not end: run `aludel cache capture` again to go on".to_owned();
    }
    if let [number] = missing {
        return format!(
            "part {number} of {of} did not end: run its capture again, with `--part {number}/{of}`"
        );
    }
    let listed: Vec<String> = missing.iter().take(LISTED).map(u32::to_string).collect();
    let more = match missing.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "parts {}{more} of {of} did not end: run the capture of each again, with `--part {}/{of}` and so on",
        listed.join(", "),
        missing[0]
    )
}

/// Whether a file of a cache may be one: names that a cache has none of are not fetched from anywhere.
pub fn is_file_of_cache(name: &str) -> bool {
    name == HEADER
        || name == HEAD
        || (name.starts_with("part-") && name.ends_with(".shard") && !name.contains(['/', '\\']))
}

/// Holds a complete shard's whole content against its checksum.
///
/// # Errors
/// [`Error::Damaged`]; what mapping it fails by.
pub fn check_shard(path: &Path) -> Result<(), Error> {
    let map = MappedFile::open(path)?;
    shard::check_whole(map.bytes()).map_err(|detail| Error::damaged(path, detail))
}

/// The rows of a payload.
pub(crate) fn decode<'a>(header: &Header, targets: u32, payload: &'a [u8]) -> Result<Rows<'a>, &'static str> {
    if targets > MOST_ROWS {
        return Err("it has more rows than any sequence");
    }
    let count = targets as usize;
    let of_length = |row: usize| match count.checked_mul(row) {
        Some(bytes) if bytes == payload.len() => Ok(()),
        _ => Err("its bytes are not those of its rows"),
    };
    match header.contents {
        Contents::TopK { .. } | Contents::Sampled { .. } => {
            Ok(Rows::Sparse(sparse::decode(header, payload, count)?))
        }
        Contents::Int8 {} | Contents::Int4 {} => {
            let bits = if header.contents == (Contents::Int8 {}) { 8 } else { 4 };
            let columns = header.vocabulary as usize;
            of_length(dense::logit_row_bytes(columns, bits))?;
            Ok(Rows::Logits(LogitRows { stored: Stored::Joined(payload), columns, bits }))
        }
        Contents::Hidden { width, .. } => {
            of_length(dense::hidden_row_bytes(width as usize))?;
            Ok(Rows::Hidden(dense::hidden_rows(payload, width as usize)))
        }
    }
}

fn read_header(path: &Path) -> Result<(Header, [u8; 32]), Error> {
    let file = path.join(HEADER);
    let not_a_cache = |detail: String| Error::NotACache { path: path.to_path_buf(), detail };
    let length = match fs::metadata(&file) {
        Ok(metadata) => metadata.len(),
        Err(_) => return Err(not_a_cache(format!("it has no {HEADER}; make one by `aludel cache capture`"))),
    };
    if length > LONGEST_HEADER {
        return Err(Error::damaged(&file, "it is longer than any header"));
    }
    let bytes = fs::read(&file).map_err(Error::io("read", &file))?;
    let header = Header::parse(&bytes).map_err(|detail| Error::damaged(&file, detail))?;
    Ok((header, Sha256::digest(&bytes).into()))
}
