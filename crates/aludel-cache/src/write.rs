//! Writes one part of a cache, record by record, and goes on where an earlier writer was killed.
//!
//! In: records in ascending order of their names. Out: shards, each on its [`Shelf`] only when it is complete. The shard that grows
//! is a `.partial` file of frames with checksums: after a kill, all frames but a torn last one are kept, so no row is computed
//! twice and none is lost. Parts have files of their own and share nothing but `cache.json`.

use std::borrow::Cow;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::error::Error;
use super::header::{Contents, Header};
use super::read::{HEAD, HEADER, LONGEST_HEADER, shard_name};
use super::rows::{RecordId, Rows};
use super::shard::{self, End, START_BYTES, Start};
use super::shelf::{Folder, Shelf};
use super::{dense, sparse};

/// One of the parts that the rows of the data are divided into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// From 1.
    pub number: u32,
    /// How many there are.
    pub of: u32,
}

impl Part {
    /// All of it.
    pub const WHOLE: Self = Self { number: 1, of: 1 };

    /// This part's share of so many rows.
    pub fn share(self, rows: u64) -> std::ops::Range<u64> {
        let bound = |number: u32| (u128::from(rows) * u128::from(number) / u128::from(self.of)) as u64;
        bound(self.number - 1)..bound(self.number)
    }
}

/// How a part is written; none of it changes a row.
#[derive(Clone, Copy, Debug)]
pub struct WriterOptions {
    /// Which.
    pub part: Part,
    /// Bytes after which a shard is complete.
    pub shard_bytes: u64,
    /// Whether a complete shard waits for the disk.
    pub sync: bool,
}

/// Pieces of a record go into the file so many bytes at a time, or larger.
const GATHERED: usize = 1 << 16;

/// Shards are about this long.
pub const SHARD_BYTES: u64 = 64 << 20;

impl Default for WriterOptions {
    fn default() -> Self {
        Self { part: Part::WHOLE, shard_bytes: SHARD_BYTES, sync: true }
    }
}

/// A part that is being written.
#[derive(Debug)]
pub struct Writer {
    shelf: Arc<dyn Shelf>,
    /// Where the shard at hand grows.
    folder: PathBuf,
    header: Header,
    options: WriterOptions,
    cache: [u8; 32],
    last: Option<RecordId>,
    records: u64,
    targets: u64,
    is_complete: bool,
    growing: Growing,
    /// Holds the lock while it is open.
    _lock: File,
}

/// The shard at hand.
#[derive(Debug)]
struct Growing {
    sequence: u32,
    /// `None` until the first record.
    file: Option<File>,
    length: u64,
    crc: u32,
    targets: u64,
    entries: Vec<(RecordId, u64)>,
}

impl Writer {
    /// Opens a part: begins the cache where there is none, goes on with the part where there is something of it. `head` is the
    /// file of the teacher's head, needed with [`Contents::Hidden`].
    ///
    /// # Errors
    /// [`Error::Differs`] where the folder is a cache of something else; [`Error::Busy`]; [`Error::Damaged`]; [`Error::Io`].
    pub fn open(
        folder: &Path,
        header: &Header,
        head: Option<&[u8]>,
        options: WriterOptions,
    ) -> Result<Self, Error> {
        Self::open_on(Arc::new(Folder::new(folder, options.sync)), folder, header, head, options)
    }

    /// The same with complete files on a shelf, and the one that grows in a folder, which is for this cache alone.
    ///
    /// # Errors
    /// As [`Writer::open`]; what the shelf fails by.
    pub fn open_on(
        shelf: Arc<dyn Shelf>,
        folder: &Path,
        header: &Header,
        head: Option<&[u8]>,
        options: WriterOptions,
    ) -> Result<Self, Error> {
        header.check().map_err(Error::unstorable)?;
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let lock = lock(folder, options.part)?;
        if let (Contents::Hidden { .. }, Some(head)) = (&header.contents, head) {
            shelf.create(HEAD, head)?;
        }
        let bytes = header.bytes().map_err(|error| Error::unstorable(error.to_string()))?;
        shelf.create(HEADER, &bytes)?;
        let path = shelf.place(HEADER);
        let length = shelf.length(HEADER)?.filter(|length| *length <= LONGEST_HEADER);
        let length = length.ok_or_else(|| Error::damaged(&path, "it is longer than any header"))?;
        let found = shelf.range(HEADER, 0..length)?;
        // Of what is already there every byte counts: shards name it by its digest.
        let header = match Header::parse(&found) {
            _ if found == bytes => header.clone(),
            Ok(begun) if begun.continues(header) => begun,
            _ => return Err(differs(&path, &found, header)),
        };
        let mut writer = Self {
            shelf,
            folder: folder.to_path_buf(),
            header,
            options,
            cache: Sha256::digest(&found).into(),
            last: None,
            records: 0,
            targets: 0,
            is_complete: false,
            growing: Growing::new(0),
            _lock: lock,
        };
        writer.take_up()?;
        Ok(writer)
    }

    /// What the cache is of.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The last record that is there: what comes after it is still to be written.
    pub fn last(&self) -> Option<RecordId> {
        self.last
    }

    /// Whether the part was finished.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Records that are there.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Rows that are there.
    pub fn targets(&self) -> u64 {
        self.targets
    }

    /// Writes a record. `check` is the [`content_check`](super::content_check) of its piece.
    ///
    /// # Errors
    /// [`Error::Unstorable`] for rows that are not of the header's kind, have NaN, or come out of order; [`Error::Io`].
    pub fn append(&mut self, id: RecordId, check: u32, rows: &Rows<'_>) -> Result<(), Error> {
        let (targets, payload) = encode(&self.header, rows)?;
        self.append_pieces(id, check, targets, &payload)
    }

    /// Writes a record whose payload is encoded already: of a fuzzer, or copied from another cache of the same header. What is wrong
    /// with it shows when it is read.
    ///
    /// # Errors
    /// As [`Writer::append`].
    pub fn append_unchecked(
        &mut self,
        id: RecordId,
        check: u32,
        targets: u32,
        payload: &[u8],
    ) -> Result<(), Error> {
        self.append_pieces(id, check, targets, &[Cow::Borrowed(payload)])
    }

    fn append_pieces(
        &mut self,
        id: RecordId,
        check: u32,
        targets: u32,
        payload: &[Cow<'_, [u8]>],
    ) -> Result<(), Error> {
        if self.is_complete || self.last.is_some_and(|last| last >= id) {
            return Err(Error::unstorable(format!("{id} comes after the last record")));
        }
        let length = payload.iter().map(|piece| piece.len()).sum();
        let of_payload = payload.iter().fold(0, |crc, piece| crc32c::crc32c_append(crc, piece));
        let head = shard::frame_head(id, targets, check, (length, of_payload))
            .ok_or_else(|| Error::unstorable(format!("{id} takes more than 4 GiB; use shorter sequences")))?;
        self.begin_shard()?;
        let path = self.partial();
        let growing = &mut self.growing;
        if let Some(file) = &mut growing.file {
            let mut file = BufWriter::with_capacity(GATHERED, file);
            file.write_all(&head)
                .and_then(|()| payload.iter().try_for_each(|piece| file.write_all(piece)))
                .and_then(|()| file.flush())
                .map_err(Error::io("write", &path))?;
        }
        growing.entries.push((id, growing.length));
        growing.length += (head.len() + length) as u64;
        growing.crc = crc32c::crc32c_append(growing.crc, &head);
        growing.crc = crc32c::crc32c_combine(growing.crc, of_payload, length);
        growing.targets += u64::from(targets);
        self.last = Some(id);
        self.records += 1;
        self.targets += u64::from(targets);
        if self.growing.length >= self.options.shard_bytes {
            self.commit(false)?;
        }
        Ok(())
    }

    /// Says that the part has no more records.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(mut self) -> Result<(), Error> {
        if !self.is_complete {
            self.begin_shard()?;
            self.commit(true)?;
        }
        let lock = self.folder.join(lock_name(self.options.part));
        let _ = fs::remove_file(lock); // It is in nobody's way.
        Ok(())
    }

    fn partial(&self) -> PathBuf {
        self.folder.join(shard_name(self.options.part, self.growing.sequence)).with_extension("partial")
    }

    fn start(&self) -> Start {
        let Part { number: part, of: parts } = self.options.part;
        Start { part, parts, sequence: self.growing.sequence, cache: self.cache }
    }

    fn begin_shard(&mut self) -> Result<(), Error> {
        if self.growing.file.is_some() {
            return Ok(());
        }
        let (path, start) = (self.partial(), self.start().bytes());
        let mut file = File::create(&path).map_err(Error::io("create", &path))?;
        file.write_all(&start).map_err(Error::io("write", &path))?;
        self.growing.crc = crc32c::crc32c(&start);
        self.growing.length = START_BYTES as u64;
        self.growing.file = Some(file);
        Ok(())
    }

    /// Ends the shard at hand and gives it its name.
    fn commit(&mut self, is_last: bool) -> Result<(), Error> {
        let path = self.partial();
        let growing = &mut self.growing;
        let end = End {
            records: growing.entries.len() as u64,
            targets: growing.targets,
            index: growing.length,
            is_last,
        };
        let tail = shard::index_and_end(&growing.entries, end, growing.crc);
        if let Some(mut file) = growing.file.take() {
            file.write_all(&tail).map_err(Error::io("write", &path))?;
            if self.options.sync {
                file.sync_all().map_err(Error::io("sync", &path))?;
            }
        }
        self.shelf.take(&path, &shard_name(self.options.part, growing.sequence))?;
        self.growing = Growing::new(self.growing.sequence + 1);
        self.is_complete = is_last;
        Ok(())
    }

    /// Finds what an earlier writer left.
    fn take_up(&mut self) -> Result<(), Error> {
        loop {
            let name = shard_name(self.options.part, self.growing.sequence);
            let Some(length) = self.shelf.length(&name)? else { break };
            let path = self.shelf.place(&name);
            let damaged = |detail: &str| Error::damaged(&path, detail);
            let last = shard::end_range(length).ok_or_else(|| damaged("it is cut short"))?;
            let start = self.shelf.range(&name, 0..START_BYTES as u64)?;
            if Start::parse(&start).map_err(damaged)? != self.start() {
                return Err(damaged("it is of another cache or part"));
            }
            let end = End::parse(&self.shelf.range(&name, last.clone())?, last.start).map_err(damaged)?;
            let tail = self.shelf.range(&name, end.index..length)?;
            let entries = shard::parse_index(&end, &tail).map_err(damaged)?;
            self.last = entries.last().map(|(id, _)| *id).or(self.last);
            self.records += end.records;
            self.targets += end.targets;
            self.growing = Growing::new(self.growing.sequence + 1);
            if end.is_last {
                self.is_complete = true;
                return Ok(());
            }
        }
        self.take_up_partial()
    }

    /// Keeps the sound frames of the shard that was growing.
    fn take_up_partial(&mut self) -> Result<(), Error> {
        let path = self.partial();
        let Ok(mut file) = OpenOptions::new().read(true).write(true).open(&path) else { return Ok(()) };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(Error::io("read", &path))?;
        if Start::parse(&bytes) != Ok(self.start()) {
            return Ok(()); // Torn before its first record; it is begun anew.
        }
        let mut at = START_BYTES;
        while let Ok(frame) = shard::frame_at(&bytes, at) {
            if self.last.is_some_and(|last| last >= frame.id) {
                break;
            }
            self.growing.entries.push((frame.id, at as u64));
            self.growing.targets += u64::from(frame.targets);
            self.last = Some(frame.id);
            self.records += 1;
            at = frame.payload.end;
        }
        self.targets += self.growing.targets;
        self.growing.crc = crc32c::crc32c(&bytes[..at]);
        self.growing.length = at as u64;
        file.set_len(at as u64).map_err(Error::io("shorten", &path))?;
        file.seek(SeekFrom::End(0)).map_err(Error::io("write", &path))?;
        self.growing.file = Some(file);
        Ok(())
    }
}

impl Growing {
    fn new(sequence: u32) -> Self {
        Self { sequence, file: None, length: 0, crc: 0, targets: 0, entries: Vec::new() }
    }
}

/// The bytes of a payload, in the order of the pieces.
type Pieces<'a> = Vec<Cow<'a, [u8]>>;

/// How many rows, and their bytes.
fn encode<'a>(header: &Header, rows: &Rows<'a>) -> Result<(u32, Pieces<'a>), Error> {
    let (count, payload) = match (rows, &header.contents) {
        (Rows::Sparse(rows), _) => (rows.len(), vec![Cow::Owned(sparse::encode(header, rows)?)]),
        (Rows::Logits(rows), Contents::Int8 {} | Contents::Int4 {}) => {
            let bits = if header.contents == (Contents::Int8 {}) { 8 } else { 4 };
            if rows.columns != header.vocabulary as usize || rows.bits != bits {
                return Err(Error::unstorable("logits of another vocabulary or number of bits"));
            }
            (rows.len(), rows.pieces().into_iter().map(Cow::Borrowed).collect())
        }
        (Rows::Hidden(rows), Contents::Hidden { width, .. }) if rows.width == *width as usize => {
            let mut bytes = Vec::with_capacity(2 * rows.values.len());
            for row in rows.values.chunks_exact(rows.width) {
                dense::push_hidden(row, &mut bytes)?;
            }
            (rows.values.len() / rows.width, vec![Cow::Owned(bytes)])
        }
        _ => return Err(Error::unstorable("rows of another kind than the header says")),
    };
    let count = u32::try_from(count).map_err(|_| Error::unstorable("too many rows in one record"))?;
    Ok((count, payload))
}

/// The reasons why a folder's header is not the one that was to be written.
fn differs(path: &Path, found: &[u8], wanted: &Header) -> Error {
    let found = match Header::parse(found) {
        Ok(found) => found,
        Err(detail) => return Error::damaged(path, detail),
    };
    let mut reasons = found.misfits(&wanted.tokenizer, &wanted.data);
    if found.teacher != wanted.teacher {
        reasons.push(format!("its teacher is {}, with other weights or another name", found.teacher.name));
    }
    if found.contents != wanted.contents || found.temperatures != wanted.temperatures {
        let show =
            |header: &Header| format!("{:?} at temperatures {:?}", header.contents, header.temperatures);
        reasons.push(format!("it holds {}, and {} is asked for", show(&found), show(wanted)));
    }
    if found.parts != wanted.parts {
        reasons.push(format!("it is divided into {} parts, not {}", found.parts, wanted.parts));
    }
    if reasons.is_empty() {
        reasons
            .push("its header differs: it was begun by another version, or of another vocabulary".to_owned());
    }
    Error::Differs { path: path.parent().unwrap_or(path).to_path_buf(), reasons }
}

/// A file that is to be given its name when it is complete, with the permissions of any other new file: temporary ones are their owner's alone.
///
/// # Errors
/// The operating system's.
pub fn nameless(folder: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

fn lock_name(part: Part) -> String {
    format!(".part-{:04}-of-{:04}.lock", part.number, part.of)
}

fn lock(folder: &Path, part: Part) -> Result<File, Error> {
    let path = folder.join(lock_name(part));
    let file = File::create(&path).map_err(Error::io("create", &path))?;
    // Some network file systems have no locks; there nobody is kept out.
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Error::Busy { path: folder.to_path_buf(), part: part.number }),
        _ => Ok(file),
    }
}
