//! Damages caches of every kind in ways that are drawn at random: under checksums that are wrong each change is found, under checksums that
//! are right nothing is worse than an error, and memory stays in proportion to the files.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{header, id, rows, top_k};
use aludel_cache::{
    Cache, Contents, Error, HiddenRows, LogitBuffer, Rows, SparseRows, Writer, WriterOptions,
};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

/// The most bytes that this thread held at once while `work` ran, over those held before.
fn most_held<T>(work: impl FnOnce() -> T) -> (T, i64) {
    let mut result = None;
    let held = allocation_counter::measure(|| result = Some(work()));
    (result.unwrap(), held.bytes_max as i64)
}

fn contents(kind: usize) -> Contents {
    match kind {
        0 => top_k(),
        1 => Contents::Sampled { draws: 12, seed: 3 },
        2 => Contents::Int8 {},
        3 => Contents::Int4 {},
        _ => {
            let head = aludel_checkpoint::hexadecimal(&Sha256::digest(HEAD));
            Contents::Hidden { width: 3, scale: 1.0, soft_cap: None, head }
        }
    }
}

/// The file of a head, which is bytes to a cache.
const HEAD: &[u8] = b"some head";

/// A sound cache of two records.
fn write(folder: &Path, kind: usize) {
    let options = WriterOptions { sync: false, ..WriterOptions::default() };
    let mut writer = Writer::open(folder, &header(contents(kind)), Some(HEAD), options).unwrap();
    let share = |draws: f64| (draws / 12.0).ln() as f32;
    let drawn = SparseRows {
        ends: vec![3, 4],
        ids: vec![1, 7, 400, 2],
        log_p: [3.0, 1.0, 8.0, 12.0].map(share).to_vec(),
        entropies: vec![1.5, 0.25],
        ..SparseRows::default()
    };
    let levels: Vec<u8> = (0..500 / if kind == 3 { 2 } else { 1 }).map(|at| at as u8).collect();
    let mut buffer = LogitBuffer::new(500, kind == 2);
    if matches!(kind, 2 | 3) {
        buffer.push([4.0, 0.5, -30.0], levels).unwrap();
    }
    for row in 0..2 {
        let rows = match kind {
            0 => Rows::Sparse(rows(row, 5)),
            1 => Rows::Sparse(drawn.clone()),
            2 | 3 => Rows::Logits(buffer.rows()),
            _ => Rows::Hidden(HiddenRows { width: 3, values: vec![1.0, -2.0, 0.5, 0.0, 0.25, 9.0] }),
        };
        writer.append(id(row, 0), row as u32, &rows).unwrap();
    }
    writer.finish().unwrap();
}

/// Opens a cache and does with it what its readers do.
fn read_all(folder: &Path) -> Result<(), Error> {
    let cache = Cache::open(folder)?;
    cache.verify(&mut |_| {})?;
    let mut logits = vec![0.0; 500];
    for id in cache.ids() {
        match cache.record(id)?.rows()? {
            Rows::Sparse(rows) => assert!(rows.log_p.iter().all(|x| x.is_finite())),
            Rows::Logits(rows) if rows.columns() == logits.len() => {
                (0..rows.len()).for_each(|row| rows.row(row, &mut logits));
            }
            _ => {}
        }
    }
    Ok(())
}

fn shard(folder: &Path) -> PathBuf {
    folder.join("part-0001-of-0001-000000.shard")
}

/// Gives a shard the digest of its header and checksums that are right, of every record too that is where it was.
fn sign(folder: &Path) {
    let digest = Sha256::digest(fs::read(folder.join("cache.json")).unwrap());
    let mut bytes = fs::read(shard(folder)).unwrap();
    let put = |bytes: &mut [u8], at: usize, crc: u32| bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    let number = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    bytes[24..56].copy_from_slice(&digest);
    let crc = crc32c::crc32c(&bytes[..56]);
    put(&mut bytes, 56, crc);
    let (end, mut at) = (bytes.len() - 40, 60);
    let index = number(&bytes, end + 16).min(end);
    while at + 32 <= index {
        let after = at.saturating_add(32 + number(&bytes, at + 24));
        if after > index {
            break;
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[at..at + 28]), &bytes[at + 32..after]);
        put(&mut bytes, at + 28, crc);
        at = after;
    }
    let crc = crc32c::crc32c(&bytes[index..end + 28]);
    put(&mut bytes, end + 28, crc);
    let crc = crc32c::crc32c(&bytes[..end + 32]);
    put(&mut bytes, end + 32, crc);
    fs::write(shard(folder), bytes).unwrap();
}

/// A change: a place as a share of the length, and what is done there.
type Change = (u16, u8, u8);

fn changed(bytes: &mut Vec<u8>, changes: &[Change], keeps_length: bool) {
    for &(place, what, value) in changes {
        let at = usize::from(place) * bytes.len() / (1 << 16);
        match what % if keeps_length { 3 } else { 6 } {
            0 => bytes[at] ^= 1 << (value % 8),
            1 => bytes[at] = value,
            2 => {
                let end = bytes.len().min(at + 4);
                bytes[at..end].fill(if value % 2 == 0 { 0xff } else { 0 });
            }
            3 => bytes.insert(at, value),
            4 => {
                let end = bytes.len().min(at + usize::from(value));
                bytes.extend_from_within(at..end);
            }
            _ => bytes.truncate(at + 1),
        }
    }
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    prop::collection::vec(any::<Change>(), 1..6)
}

/// Beside what a few hundred bytes can justify, the names of parts and the text of an error.
const LIMIT: i64 = 1 << 20;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_change_is_found(kind in 0usize..5, changes in changes(), file in 0..3) {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), kind);
        let file = match (file, kind) {
            (0, _) => folder.path().join("cache.json"),
            (1, 4) => folder.path().join("head.safetensors"),
            _ => shard(folder.path()),
        };
        let sound = fs::read(&file).unwrap();
        let mut bytes = sound.clone();
        changed(&mut bytes, &changes, false);
        prop_assume!(bytes != sound);
        fs::write(&file, bytes).unwrap();
        let (result, most) = most_held(|| read_all(folder.path()));
        prop_assert!(result.is_err());
        prop_assert!(most < LIMIT, "{} bytes were held", most);
    }

    #[test]
    fn what_is_signed_is_no_worse_than_an_error(kind in 0usize..5, changes in changes(), in_header in any::<bool>()) {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), kind);
        let file = if in_header { folder.path().join("cache.json") } else { shard(folder.path()) };
        let mut bytes = fs::read(&file).unwrap();
        changed(&mut bytes, &changes, !in_header);
        fs::write(&file, bytes).unwrap();
        sign(folder.path());
        let (_, most) = most_held(|| read_all(folder.path()));
        prop_assert!(most < LIMIT, "{} bytes were held", most);
    }

    #[test]
    fn a_payload_that_was_changed_is_no_worse_than_an_error(
        kind in 0usize..5,
        changes in changes(),
        targets in prop_oneof![0u32..8, any::<u32>()],
    ) {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(from.path(), kind);
        let bytes = fs::read(shard(from.path())).unwrap();
        let length = u32::from_le_bytes(bytes[84..88].try_into().unwrap()) as usize;
        let mut payload = bytes[92..92 + length].to_vec();
        changed(&mut payload, &changes, false);
        let options = WriterOptions { sync: false, ..WriterOptions::default() };
        let mut writer = Writer::open(to.path(), &header(contents(kind)), Some(HEAD), options).unwrap();
        writer.append_unchecked(id(0, 0), 0, targets, &payload).unwrap();
        writer.finish().unwrap();
        let (_, most) = most_held(|| read_all(to.path()));
        prop_assert!(most < LIMIT, "{} bytes were held", most);
    }
}

/// Rows that are alike take a fraction of a bit each: what they come to is bounded, not by the bytes alone.
#[test]
fn rows_of_next_to_no_bytes_are_refused_before_they_are_held() {
    let folder = tempfile::tempdir().unwrap();
    let contents = Contents::TopK { k: 500, resolution: 352 };
    let options = WriterOptions { sync: false, ..WriterOptions::default() };
    let mut writer = Writer::open(folder.path(), &header(contents), None, options).unwrap();
    let alike = |count: usize| SparseRows {
        ends: (1..=count).map(|row| 500 * row).collect(),
        ids: (0..count).flat_map(|_| 0..500).collect(),
        log_p: vec![-(500f32.ln()); 500 * count],
        tails: vec![1e-7; 2 * count],
        log_sums: vec![1.0; count],
        ..SparseRows::default()
    };
    writer.append(id(0, 0), 0, &Rows::Sparse(alike(2000))).unwrap();
    let error = writer.append(id(1, 0), 0, &Rows::Sparse(alike(34_000))).unwrap_err().to_string();
    assert!(error.contains("more than 16777216 columns in one record"), "{error}");
    writer.finish().unwrap();
    let bytes = fs::read(shard(folder.path())).unwrap();
    let length = u32::from_le_bytes(bytes[84..88].try_into().unwrap()) as usize;
    assert!(length < 20_000, "{length} bytes for a million columns");
    read_all(folder.path()).unwrap();
}
