//! What the program itself writes and reads again, and rows of data: others may have had a hand in them.

use std::fs;
use std::path::{Path, PathBuf};

use aludel_cache::{
    Cache, Contents, Header, RecordId, Rows, SparseRows, Teacher, TokenizerPrint, Writer, WriterOptions,
};
use aludel_checkpoint::{Dtype, OutputFolder, WrittenTensor, tensor_bytes};
use aludel_delta::{DATA_FILE, Delta, DeltaTensor, DeltaWriter, HEADER_FILE, INDEX_FILE, Values, chunk};
use aludel_distill::data::Corpus;
use aludel_distill::run::Run;
use aludel_kernels::element::Element;
use crc32c::crc32c;
use serde_json::Value;

use crate::scratch::{fixture, folder};

/// Rows of training data, Parquet where they begin as that does.
pub(crate) fn rows(bytes: &[u8]) {
    let name = if bytes.starts_with(b"PAR1") { "rows.parquet" } else { "rows.jsonl" };
    let path = folder(&[(name, bytes)]).join(name);
    let text = format!("teacher: t\nstudent: s\noutput: o\ndata: {{train: '{}'}}\n", path.display());
    let run = Run::parse(&text).expect("a run");
    let Ok(corpus) = Corpus::open(&run.data) else { return };
    for row in 0..corpus.train.len() {
        drop(corpus.train.read(row));
    }
}

pub(crate) fn rows_seeds() -> Vec<Vec<u8>> {
    ["chat.jsonl", "pairs.jsonl", "texts.jsonl", "chat.parquet", "texts.parquet"]
        .map(|name| fixture(&format!("tests/golden/data/{name}")))
        .into()
}

pub(crate) fn cache_header(bytes: &[u8]) {
    if let Ok(header) = Header::parse(bytes) {
        let written = header.bytes().expect("a header that was accepted can be written");
        assert_eq!(Header::parse(&written).as_ref(), Ok(&header), "it reads as another than it was written");
    }
}

pub(crate) fn cache_header_seeds() -> Vec<Vec<u8>> {
    CONTENTS.iter().map(|contents| header(contents.clone()).bytes().expect("a header")).collect()
}

const CONTENTS: [Contents; 4] = [
    Contents::TopK { k: 8, resolution: 352 },
    Contents::Sampled { draws: 12, seed: 1 },
    Contents::Int8 {},
    Contents::Int4 {},
];

/// A shard as it is.
pub(crate) fn cache_shard(bytes: &[u8]) {
    let header = header(CONTENTS[0].clone()).bytes().expect("a header");
    read(&folder(&[("cache.json", &header), (SHARD, bytes)]));
}

const SHARD: &str = "part-0001-of-0001-000000.shard";

/// Reads all of a cache.
pub(crate) fn read(path: &Path) {
    let Ok(cache) = Cache::open(path) else { return };
    drop(cache.verify(&mut |_| {}));
    for id in cache.ids() {
        let Ok(record) = cache.record(id) else { continue };
        if let Ok(Rows::Sparse(rows)) = record.rows() {
            assert!(rows.ids.iter().all(|&id| id < VOCABULARY), "a column beyond the vocabulary");
        }
    }
}

pub(crate) fn cache_shard_seeds() -> Vec<Vec<u8>> {
    vec![fs::read(written(0, 2, &payload()).join(SHARD)).expect("a shard")]
}

/// The payload of a record whose checksums are right: a byte that says of what kind of cache, one for the number of its rows, then all of it.
pub(crate) fn cache_rows(bytes: &[u8]) {
    let [kind, targets, payload @ ..] = bytes else { return };
    read(&written(*kind, *targets, payload));
}

pub(crate) fn cache_rows_seeds() -> Vec<Vec<u8>> {
    let payload = payload();
    (0..CONTENTS.len() as u8).map(|kind| [&[kind, 2], payload.as_slice()].concat()).collect()
}

/// A cache with one record.
pub(crate) fn written(kind: u8, targets: u8, payload: &[u8]) -> PathBuf {
    let path = folder(&[]).join("cache");
    let options = WriterOptions { sync: false, ..WriterOptions::default() };
    let contents = CONTENTS[usize::from(kind) % CONTENTS.len()].clone();
    let mut writer = Writer::open(&path, &header(contents), None, options).expect("a cache");
    writer.append_unchecked(RecordId::default(), 0, u32::from(targets), payload).expect("a record");
    writer.finish().expect("a cache");
    path
}

/// Two rows of a cache of the first kind, coded.
pub(crate) fn payload() -> Vec<u8> {
    let rows = SparseRows {
        ends: vec![2, 3],
        ids: vec![1, 7, 30],
        log_p: vec![-0.5, -1.5, -0.1],
        tails: vec![0.17, 0.1, 0.095, 0.05],
        log_sums: vec![12.5, 11.0],
        entropies: Vec::new(),
    };
    let path = folder(&[]).join("cache");
    let options = WriterOptions { sync: false, ..WriterOptions::default() };
    let mut writer = Writer::open(&path, &header(CONTENTS[0].clone()), None, options).expect("a cache");
    writer.append(RecordId::default(), 0, &Rows::Sparse(rows)).expect("rows");
    writer.finish().expect("a cache");
    let shard = fs::read(path.join(SHARD)).expect("a shard");
    // `docs/teacher-cache.md`: a start of 60 bytes, a frame's head of 32 with the payload's length at 24.
    let length = u32::from_le_bytes([shard[84], shard[85], shard[86], shard[87]]) as usize;
    shard[92..92 + length].to_vec()
}

const VOCABULARY: u32 = 40;

fn header(contents: Contents) -> Header {
    let is_sampled = matches!(contents, Contents::Sampled { .. });
    Header {
        version: 1,
        vocabulary: VOCABULARY,
        temperatures: if is_sampled { vec![2.0] } else { vec![1.0, 2.0] },
        logits: matches!(contents, Contents::TopK { .. }),
        contents,
        tokenizer: TokenizerPrint { vocabulary: "ab".repeat(32), rules: "cd".repeat(32) },
        data: [("sequence_length".to_owned(), 64.into())].into_iter().collect(),
        teacher: Teacher { name: "teacher".into(), weights: Vec::new(), url: None },
        shift: 1,
        positions: "restart".into(),
        parts: 1,
        tool: "aludel".into(),
    }
}

/// The three files of a delta, whose lengths and checksums are right: two bytes for the length of each of the first two, then all of them.
pub(crate) fn delta(bytes: &[u8]) {
    let Some((lengths, rest)) = bytes.split_first_chunk::<4>() else { return };
    let length = |at: usize| usize::from(u16::from_le_bytes([lengths[at], lengths[at + 1]]));
    let (header, rest) = rest.split_at(length(0).min(rest.len()));
    let (index, data) = rest.split_at(length(2).min(rest.len()));
    let header = with_checksums(header, index, data);
    let path = folder(&[(HEADER_FILE, &header), (INDEX_FILE, index), (DATA_FILE, data)]);
    let Ok(delta) = Delta::open(&path) else { return };
    for chunk in 0..delta.chunks().min(4) {
        let (tensor, number) = delta.place(chunk);
        let elements = delta.elements(tensor, number);
        let bytes =
            tensor_bytes(delta.header().tensors[tensor].dtype, &[(elements.end - elements.start) as usize]);
        drop(delta.apply(tensor, number, &mut vec![0; bytes.unwrap_or(0) as usize]));
    }
}

fn with_checksums(header: &[u8], index: &[u8], data: &[u8]) -> Vec<u8> {
    let Ok(Value::Object(mut header)) = serde_json::from_slice(header) else { return header.to_vec() };
    header.insert("index_crc32c".into(), crc32c(index).into());
    header.insert("data_bytes".into(), data.len().into());
    Value::Object(header).to_string().into_bytes()
}

pub(crate) fn delta_seeds() -> Vec<Vec<u8>> {
    let path = folder(&[]);
    let tensor = DeltaTensor { name: "a".into(), dtype: Dtype::BF16, shape: vec![3, 5], base_crc32c: None };
    let (base, model) = ([0x3f; 30], [[0x3f; 20].as_slice(), &[0x40; 10]].concat());
    let seed = |values, coded: &chunk::Coded| {
        let mut writer = DeltaWriter::create(&path, vec![tensor.clone()]).expect("a delta");
        writer.add(0, 0, coded).expect("a chunk");
        writer.finish("base", values, &[Some(7)]).expect("a delta");
        let [header, index, data] = [HEADER_FILE, INDEX_FILE, DATA_FILE].map(|name| {
            let bytes = fs::read(path.join(name)).expect(name);
            fs::remove_file(path.join(name)).expect(name);
            bytes
        });
        let length = |bytes: &[u8]| (bytes.len() as u16).to_le_bytes();
        [&length(&header)[..], &length(&index), &header, &index, &data].concat()
    };
    let exact = chunk::encode(&model, Some((&base, Element::BF16)));
    // The numbers of FP8 that follow a scale, whatever they are.
    let bytes = [&1f32.to_le_bytes()[..], &[0, 0x51, 0x9a, 0x33, 0x07, 0xc8, 0x44]].concat();
    let rounded = chunk::Coded { bytes, form: chunk::Form::Fp8, crc: 0 };
    vec![seed(Values::Exact, &exact), seed(Values::Fp8, &rounded)]
}

/// The journal of an output that a killed run left, given the checksum of every line.
pub(crate) fn journal(bytes: &[u8]) {
    let target = folder(&[]).join("out");
    let output = OutputFolder::create(&target, false).expect("a folder");
    drop(output.journal(IDENTITY, &[WRITTEN]).expect("a journal"));
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().map(|line| format!("{line} {:08x}\n", crc32c(line.as_bytes())));
    fs::write(output.path().join(".journal"), lines.collect::<String>()).expect("a journal");
    if output.keep().is_some() {
        drop(OutputFolder::resume(&target, false, IDENTITY, &[]));
    }
}

const IDENTITY: &str = "identity";
const WRITTEN: WrittenTensor = WrittenTensor { tensor: 3, crc: 0xdead_beef, base: Some(7) };

pub(crate) fn journal_seeds() -> Vec<Vec<u8>> {
    let output = OutputFolder::create(&folder(&[]).join("out"), false).expect("a folder");
    drop(output.journal(IDENTITY, &[WRITTEN, WRITTEN]).expect("a journal"));
    let text = fs::read_to_string(output.path().join(".journal")).expect("a journal");
    let lines = text.lines().filter_map(|line| Some(format!("{}\n", line.rsplit_once(' ')?.0)));
    vec![lines.collect::<String>().into_bytes()]
}
