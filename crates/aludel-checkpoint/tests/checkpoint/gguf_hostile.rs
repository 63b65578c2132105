//! Damages the GGUF fixtures in every way that fits in a loop: each file is converted or refused, without a panic and
//! without more memory than a small multiple of its size.

use std::path::{Path, PathBuf};

use aludel_checkpoint::gguf::{Conversion, ConvertOptions, Header};
use aludel_checkpoint::{Error, OutputFolder};

/// The most bytes that this thread held at once while `work` ran, over those held before.
fn most_held<T>(work: impl FnOnce() -> T) -> (T, i64) {
    let mut result = None;
    let held = allocation_counter::measure(|| result = Some(work()));
    (result.unwrap(), held.bytes_max as i64)
}

fn fixture(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf");
    std::fs::read(folder.join(name)).unwrap()
}

/// A file that is written anew for every case.
struct Bench {
    home: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap() }
    }

    fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.home.path().join("model.gguf");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Plans the file and, when that succeeds, writes the folder.
    fn convert(&self, bytes: &[u8]) -> Result<(), Error> {
        let path = self.file(bytes);
        let plan = Conversion::plan(&path, &OPTIONS)?;
        let mut folder = OutputFolder::create(&self.home.path().join("out"), true)?;
        folder.skip_sync();
        plan.write(&folder, &mut |_| {}).map(drop)
    }

    fn read_header(&self, bytes: &[u8]) -> Result<Header, Error> {
        read_header(&self.file(bytes))
    }
}

/// Reads a header and holds what that took against the file's length.
fn read_header(path: &Path) -> Result<Header, Error> {
    let file_bytes = path.metadata().unwrap().len() as i64;
    let (header, most) = most_held(|| Header::read(path));
    assert!(most <= 2 * file_bytes + FIXED, "{most} bytes were held for a file of {file_bytes}");
    header
}

const OPTIONS: ConvertOptions = ConvertOptions { dtype: None, shard_bytes: u64::MAX };

/// Paths, messages and the read-ahead.
const FIXED: i64 = 80 << 10;

/// Where the tensors' data begins in a fixture: after it, bytes are values and cannot be wrong.
fn header_bytes(bytes: &[u8]) -> usize {
    let bench = Bench::new();
    let header = Header::read(&bench.file(bytes)).unwrap();
    header.tensors().iter().map(|tensor| tensor.offset).min().unwrap() as usize
}

/// A repeatable source of numbers (splitmix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bench = Bench::new();
    for name in ["byte_level.gguf", "sentence_piece.gguf", "blocks.gguf"] {
        let whole = fixture(name);
        let header = header_bytes(&whole);
        let path = bench.file(&whole);
        read_header(&path).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        // Every byte of the header; of the data, which only lacks its end, some.
        for length in (header..whole.len() - 32).step_by(509).rev().chain((0..header).rev()) {
            file.set_len(length as u64).unwrap();
            assert!(read_header(&path).is_err(), "{name} cut to {length} bytes was read");
        }
    }
}

#[test]
fn changed_bytes_of_a_header_never_panic() {
    let bench = Bench::new();
    let mut chance = Chance(20_240_229);
    let (mut converted, mut refused) = (0, 0);
    for name in ["byte_level.gguf", "sentence_piece.gguf", "blocks.gguf"] {
        let whole = fixture(name);
        let header = header_bytes(&whole);
        for _ in 0..700 {
            let mut bytes = whole.clone();
            for _ in 0..=chance.below(3) {
                let at = chance.below(header);
                bytes[at] =
                    [0, 1, 0x7f, 0x80, 0xff, bytes[at] ^ 1, bytes[at].wrapping_add(1)][chance.below(7)];
            }
            match bench.convert(&bytes) {
                Ok(()) => converted += 1,
                Err(_) => refused += 1,
            }
        }
    }
    // Most bytes are letters of tokens, many are lengths: both outcomes must occur, or the test changes nothing.
    assert!(converted > 100 && refused > 100, "{converted} converted, {refused} refused");
}

/// Builds a file from parts, for claims that no damage to a real file would make.
#[derive(Default)]
struct Forged {
    entries: Vec<u8>,
    entry_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
}

fn text(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat()
}

impl Forged {
    fn entry(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.entries.extend([&text(key.as_bytes())[..], &kind.to_le_bytes(), value].concat());
        self.entry_count += 1;
        self
    }

    fn tensor(mut self, name: &str, sides: &[u64], kind: u32, offset: u64) -> Self {
        self.tensors.extend(text(name.as_bytes()));
        self.tensors.extend((sides.len() as u32).to_le_bytes());
        self.tensors.extend(sides.iter().flat_map(|side| side.to_le_bytes()));
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.tensor_count += 1;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(self.tensor_count.to_le_bytes());
        bytes.extend(self.entry_count.to_le_bytes());
        bytes.extend(&self.entries);
        bytes.extend(&self.tensors);
        bytes.resize(bytes.len().next_multiple_of(32) + 256, 0);
        bytes
    }
}

fn message(forged: &Forged) -> String {
    Bench::new().read_header(&forged.bytes()).unwrap_err().to_string()
}

#[test]
fn lengths_beyond_the_file_allocate_nothing() {
    let huge = u64::MAX.to_le_bytes();
    for (kind, value) in [
        (TEXT, huge.to_vec()),
        (ARRAY, [&TEXT.to_le_bytes()[..], &huge].concat()),
        (ARRAY, [&0u32.to_le_bytes()[..], &(1u64 << 40).to_le_bytes()].concat()),
        (ARRAY, [&12u32.to_le_bytes()[..], &huge].concat()),
        (ARRAY, [&ARRAY.to_le_bytes()[..], &huge].concat()),
    ] {
        let message = message(&Forged::default().entry("key", kind, &value));
        assert!(message.contains("is damaged"), "{message}");
    }
    for count in [
        &mut Forged { tensor_count: 1 << 60, ..Forged::default() },
        &mut Forged { entry_count: 60_000, ..Forged::default() },
    ] {
        assert!(message(count).contains("is damaged"));
    }
}

#[test]
fn arrays_of_arrays_are_followed_a_few_levels_only() {
    let mut value = [&0u32.to_le_bytes()[..], &0u64.to_le_bytes()].concat();
    for _ in 0..100_000 {
        value = [&ARRAY.to_le_bytes()[..], &1u64.to_le_bytes(), &value[..value.len().min(1200)]].concat();
    }
    let message = message(&Forged::default().entry("deep", ARRAY, &value));
    assert!(message.contains("nested deeper than 4"), "{message}");
}

#[test]
fn tensors_that_contradict_the_file_are_named() {
    let one = |sides: &[u64], kind, offset| message(&Forged::default().tensor("a", sides, kind, offset));
    for (found, expected) in [
        (one(&[1 << 40, 1 << 40], 0, 0), "overflows"),
        (one(&[65], 0, 0), "leave the file"),
        (one(&[8], 0, 256), "leave the file"),
        (one(&[8], 0, u64::MAX - 31), "its offset overflows"),
        (one(&[8], 0, 4), "not aligned"),
        (one(&[48], 2, 0), "no whole number of Q4_0 blocks"),
        (one(&[0, 4], 0, 0), "empty side"),
        (one(&[], 0, 0), "has 0 sides"),
        (one(&[1; 5], 0, 0), "has 5 sides"),
        (one(&[256], 23, 0), "IQ4_XS"),
        (one(&[256], 7777, 0), "type 7777"),
    ] {
        assert!(found.contains(expected) && found.contains("model.gguf"), "{found} should say {expected}");
    }
    let overlap = Forged::default().tensor("a", &[16], 0, 0).tensor("b", &[16], 0, 32);
    assert!(message(&overlap).contains("overlap"));
    let twins = Forged::default().tensor("a", &[8], 0, 0).tensor("a", &[8], 0, 32);
    assert!(message(&twins).contains("two tensors are named"));
}

#[test]
fn metadata_that_contradicts_itself_is_named() {
    let twice = Forged::default().entry("k", 0, &[1]).entry("k", 0, &[2]);
    assert!(message(&twice).contains("\"k\" is there twice"));
    let split = Forged::default().entry("split.count", 2, &[3, 0]);
    assert!(message(&split).contains("one of 3 parts"));
    let alignment = Forged::default().entry("general.alignment", 4, &[3, 0, 0, 0]);
    assert!(message(&alignment).contains("general.alignment is 3"));
    let kind = Forged::default().entry("k", 13, &[]);
    assert!(message(&kind).contains("type 13 does not exist"));
}

#[test]
fn versions_that_are_not_read_say_so() {
    let mut bytes = Forged::default().bytes();
    for (version, expected) in [(1u32, "version 1"), (3 << 24, "big-endian"), (4, "version 4")] {
        bytes[4..8].copy_from_slice(&version.to_le_bytes());
        let message = Bench::new().read_header(&bytes).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_vocabulary_that_would_explode_is_refused() {
    // Tokens a, aa, aaa, ...: every one of them splits in as many ways as it is long.
    let count = 900u64;
    let tokens: Vec<u8> = (1..=count as usize).flat_map(|length| text(&vec![b'a'; length])).collect();
    let tokens = [&TEXT.to_le_bytes()[..], &count.to_le_bytes(), &tokens].concat();
    let scores = [&6u32.to_le_bytes()[..], &count.to_le_bytes(), &vec![0; 4 * count as usize]].concat();
    let mut forged = Forged::default()
        .entry("general.architecture", TEXT, &text(b"llama"))
        .entry("tokenizer.ggml.model", TEXT, &text(b"llama"))
        .entry("tokenizer.ggml.tokens", ARRAY, &tokens)
        .entry("tokenizer.ggml.scores", ARRAY, &scores)
        .entry("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes());
    for key in
        ["block_count", "embedding_length", "attention.head_count", "feed_forward_length", "context_length"]
    {
        let one = if key == "embedding_length" { 2u32 } else { 1 };
        forged = forged.entry(&format!("llama.{key}"), 4, &one.to_le_bytes());
    }
    let embedding = 2 * 4 * count;
    forged = forged
        .tensor("token_embd.weight", &[2, count], 0, 0)
        .tensor("output_norm.weight", &[2], 0, embedding.next_multiple_of(32))
        .tensor("blk.0.attn_q.weight", &[2, 2], 0, embedding.next_multiple_of(32) + 32);
    let mut bytes = forged.bytes();
    bytes.resize(bytes.len() + embedding as usize + 64, 0);
    let bench = Bench::new();
    let path = bench.file(&bytes);
    let (result, most) = most_held(|| Conversion::plan(&path, &OPTIONS));
    let message = result.unwrap_err().to_string();
    assert!(message.contains("split in too many ways"), "{message}");
    assert!(most <= 16 * bytes.len() as i64, "{most} bytes were held for a file of {}", bytes.len());
}

#[test]
fn what_a_real_header_costs_is_a_small_multiple_of_it() {
    for name in ["byte_level.gguf", "sentence_piece.gguf"] {
        let bytes = fixture(name);
        let bench = Bench::new();
        let path = bench.file(&bytes);
        let (plan, most) = most_held(|| Conversion::plan(&path, &OPTIONS));
        plan.unwrap();
        assert!(
            most <= 16 * bytes.len() as i64 + FIXED,
            "{most} bytes were held for a file of {}",
            bytes.len()
        );
    }
}

const TEXT: u32 = 8;
const ARRAY: u32 = 9;
