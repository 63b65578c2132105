//! Holds the format to its promises: what was written is read, any changed byte is found, any bytes are read without a panic, and
//! the example of the specification is what is written.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod hostile;
mod support;

use std::fs;
use std::path::{Path, PathBuf};

use aludel_cache::{
    Cache, Contents, Error, HiddenRows, LogitBuffer, Part, RecordId, Rows, Set, SparseRows, Writer,
    WriterOptions,
};
use proptest::prelude::*;
use support::{header, id, rows, top_k};

fn write(folder: &Path, contents: Contents, records: &[(RecordId, Rows<'_>)], shard_bytes: u64) {
    let options = WriterOptions { shard_bytes, sync: false, ..WriterOptions::default() };
    let mut writer = Writer::open(folder, &header(contents), None, options).unwrap();
    for (at, (id, rows)) in records.iter().enumerate() {
        writer.append(*id, at as u32, rows).unwrap();
    }
    writer.finish().unwrap();
}

/// Opens a cache and reads everything in it, as verify does.
fn read_all(folder: &Path) -> Result<Vec<SparseRows>, Error> {
    let cache = Cache::open(folder)?;
    cache.verify(&mut |_| {})?;
    let ids: Vec<RecordId> = cache.ids().collect();
    let rows = |id| match cache.record(id)?.rows()? {
        Rows::Sparse(rows) => Ok(rows),
        other => panic!("{other:?}"),
    };
    ids.into_iter().map(rows).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Probabilities within what a level is wide, sums of 1.
fn assert_near(written: &SparseRows, read: &SparseRows) {
    assert_eq!((&written.ends, &written.ids), (&read.ends, &read.ids));
    for (x, y) in written.log_p.iter().zip(&read.log_p) {
        let step = (2.0 / 352.0 / f64::from(*x / 2.0).exp()).min(0.5);
        assert!(f64::from((x - y).abs()) <= 0.52 * step + 0.02, "{x} {y}");
    }
    for row in 0..read.len() {
        let sum: f64 = read.log_p[read.range(row)].iter().map(|x| f64::from(*x).exp()).sum();
        assert!((sum + f64::from(read.tails[2 * row]) - 1.0).abs() < 1e-5);
    }
    assert!(written.tails.iter().zip(&read.tails).all(|(x, y)| (x - y).abs() < 0.01));
    assert!(written.log_sums.iter().zip(&read.log_sums).all(|(x, y)| (x - y).abs() < 1e-3));
}

#[test]
fn what_was_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let written: Vec<SparseRows> = (0..7).map(|at| rows(at, 5 * at as usize)).collect();
    let mut records: Vec<_> = written
        .iter()
        .enumerate()
        .map(|(at, rows)| (id(at as u64 / 2, at as u32 % 2 * 64), Rows::Sparse(rows.clone())))
        .collect();
    records[6].0.set = Set::Validation;
    write(folder.path(), top_k(), &records, 300);
    assert!(files(folder.path()).len() > 3, "several shards");
    let read = read_all(folder.path()).unwrap();
    written.iter().zip(&read).for_each(|(written, read)| assert_near(written, read));
    let cache = Cache::open(folder.path()).unwrap();
    assert_eq!((cache.len(), cache.targets()), (7, 105));
    assert_eq!(cache.record(id(1, 64)).unwrap().check(), 3);
    assert!(matches!(cache.record(id(9, 0)), Err(Error::NoRecord { .. })));
}

#[test]
fn draws_come_back_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let shares = [3.0f64, 1.0, 8.0, 12.0].map(|count| (count / 12.0).ln() as f32);
    let rows = SparseRows {
        ends: vec![3, 4],
        ids: vec![1, 7, 400, 2],
        log_p: shares.to_vec(),
        entropies: vec![1.5, 0.25],
        ..SparseRows::default()
    };
    write(
        folder.path(),
        Contents::Sampled { draws: 12, seed: 3 },
        &[(id(0, 0), Rows::Sparse(rows.clone()))],
        1000,
    );
    assert_eq!(read_all(folder.path()).unwrap(), [rows]);
}

#[test]
fn logits_and_hidden_states_are_read_in_place() {
    for in_eight in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let (mut buffer, most) = (LogitBuffer::new(500, in_eight), if in_eight { 255 } else { 15 });
        let levels: Vec<u8> = (0..500).map(|at| (at * 7 % (most + 1)) as u8).collect();
        let packed: Vec<u8> = levels.chunks(2).map(|pair| pair[0] | pair[1] << 4).collect();
        assert!(buffer.push([4.0, 0.5, -99.0], levels[1..].to_vec()).is_err(), "a column too few");
        buffer.push([4.0, 0.5, -99.0], if in_eight { levels.clone() } else { packed }).unwrap();
        let contents = if in_eight { Contents::Int8 {} } else { Contents::Int4 {} };
        write(folder.path(), contents, &[(id(0, 0), Rows::Logits(buffer.rows()))], 1000);
        let cache = Cache::open(folder.path()).unwrap();
        let Rows::Logits(rows) = cache.record(id(0, 0)).unwrap().rows().unwrap() else { panic!() };
        let mut got = vec![0.0; 500];
        rows.row(0, &mut got);
        let logit = |q: u8| if q == 0 { -99.0 } else { 4.0 - (most - i32::from(q)) as f32 * 0.5 };
        assert!(got.iter().zip(&levels).all(|(x, q)| *x == logit(*q)));
    }
    let folder = tempfile::tempdir().unwrap();
    let hidden = Contents::Hidden { width: 3, scale: 1.0, soft_cap: None, head: "00".repeat(32) };
    let rows = HiddenRows { width: 3, values: vec![1.0, -2.0, 0.5, 0.0, 0.0, 0.0] };
    write(folder.path(), hidden, &[(id(0, 0), Rows::Hidden(rows.clone()))], 1000);
    let cache = Cache::open(folder.path()).unwrap();
    assert_eq!(cache.record(id(0, 0)).unwrap().rows().unwrap(), Rows::Hidden(rows));
    assert!(cache.head().is_err(), "there is no head");
}

#[test]
fn an_unfinished_or_foreign_cache_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut header = header(top_k());
    header.parts = 2;
    let part =
        |number| WriterOptions { part: Part { number, of: 2 }, sync: false, ..WriterOptions::default() };
    let first = Writer::open(folder.path(), &header, None, part(1)).unwrap();
    let busy = Writer::open(folder.path(), &header, None, part(1)).unwrap_err();
    assert!(matches!(busy, Error::Busy { part: 1, .. }), "{busy}");
    first.finish().unwrap();
    let text = Cache::open(folder.path()).unwrap_err().to_string();
    assert!(text.contains("part 2 of 2 did not end") && text.contains("--part 2/2"), "{text}");
    let mut other = header.clone();
    other.tokenizer.rules = "ef".repeat(32);
    other.data.insert("sequence_length".into(), 128.into());
    let text = Writer::open(folder.path(), &other, None, part(2)).unwrap_err().to_string();
    assert!(text.contains("cuts text differently") && text.contains("`sequence_length` is 64"), "{text}");
    Writer::open(folder.path(), &header, None, part(2)).unwrap().finish().unwrap();
    assert_eq!(Cache::open(folder.path()).unwrap().len(), 0);
    let text = Cache::open(&folder.path().join("nowhere")).unwrap_err().to_string();
    assert!(text.contains("is not a teacher cache"), "{text}");
}

#[test]
fn a_record_is_written_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(folder.path(), &header(top_k()), None, WriterOptions::default()).unwrap();
    writer.append(id(3, 0), 0, &Rows::Sparse(rows(1, 4))).unwrap();
    for again in [id(3, 0), id(2, 0)] {
        assert!(writer.append(again, 0, &Rows::Sparse(rows(1, 4))).is_err());
    }
    let mut wrong = rows(1, 1);
    wrong.log_p[0] = f32::NAN;
    let text = writer.append(id(4, 0), 0, &Rows::Sparse(wrong)).unwrap_err().to_string();
    assert!(text.contains("NaN"), "{text}");
}

/// A small cache whose every byte counts.
fn small(folder: &Path) {
    let records = [(id(0, 0), Rows::Sparse(rows(1, 6))), (id(2, 64), Rows::Sparse(rows(2, 3)))];
    write(folder, top_k(), &records, 90);
}

#[test]
fn any_byte_that_changes_is_found() {
    let folder = tempfile::tempdir().unwrap();
    small(folder.path());
    let sound = read_all(folder.path()).unwrap();
    for file in files(folder.path()) {
        let bytes = fs::read(&file).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x81;
            fs::write(&file, &damaged).unwrap();
            assert!(read_all(folder.path()).is_err(), "byte {at} of {}", file.display());
        }
        for length in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            fs::write(&file, &bytes[..length]).unwrap();
            assert!(read_all(folder.path()).is_err(), "{length} bytes of {}", file.display());
        }
        fs::write(&file, &bytes).unwrap();
    }
    assert_eq!(read_all(folder.path()).unwrap(), sound);
}

#[test]
fn a_writer_goes_on_after_any_byte() {
    let whole = tempfile::tempdir().unwrap();
    let records: Vec<_> = (0..6).map(|at| (id(at, 0), Rows::Sparse(rows(at, 4)))).collect();
    write(whole.path(), top_k(), &records, 1 << 20);
    let shard = files(whole.path()).pop().unwrap();
    let bytes = fs::read(&shard).unwrap();
    for length in 0..bytes.len() {
        // What a kill leaves: the beginning of the shard under its temporary name.
        let folder = tempfile::tempdir().unwrap();
        fs::copy(whole.path().join("cache.json"), folder.path().join("cache.json")).unwrap();
        let name = folder.path().join(shard.file_name().unwrap()).with_extension("partial");
        fs::write(name, &bytes[..length]).unwrap();
        let options = WriterOptions { sync: false, ..WriterOptions::default() };
        let mut writer = Writer::open(folder.path(), &header(top_k()), None, options).unwrap();
        let next = writer.last().map_or(0, |last| last.row + 1);
        assert_eq!(writer.records(), next);
        for (at, (id, rows)) in records.iter().enumerate().skip(next as usize) {
            writer.append(*id, at as u32, rows).unwrap();
        }
        writer.finish().unwrap();
        assert_eq!(fs::read(folder.path().join(shard.file_name().unwrap())).unwrap(), bytes, "{length}");
        assert_eq!(files(folder.path()).len(), 2, "{length}");
    }
}

/// The bytes of the example in `docs/teacher-cache.md`.
#[test]
fn the_specification_has_the_bytes_that_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let rows = SparseRows {
        ends: vec![2, 5],
        ids: vec![5, 17, 5, 17, 300],
        log_p: [0.75f32, 0.125, 0.5, 0.25, 0.0625].map(f32::ln).to_vec(),
        tails: vec![0.125, 0.4, 0.1875, 0.5],
        log_sums: vec![10.0, 12.5],
        ..SparseRows::default()
    };
    write(folder.path(), top_k(), &[(id(3, 64), Rows::Sparse(rows))], 1 << 20);
    let specification = include_str!("../../../../docs/teacher-cache.md");
    let block = |name: &str| -> String {
        let after = specification.split(&format!("<!-- {name} -->")).nth(1).unwrap_or_default();
        after
            .split("```")
            .nth(1)
            .unwrap_or_default()
            .trim_start_matches(['a', 'j', 's', 'o', 'n', 't', 'e', 'x'])
            .trim()
            .to_owned()
    };
    let bytes = fs::read(files(folder.path()).pop().unwrap()).unwrap();
    let lines: Vec<String> = bytes
        .chunks(16)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "))
        .collect();
    let text = fs::read_to_string(folder.path().join("cache.json")).unwrap();
    assert_eq!((block("header"), block("shard")), (text.trim().to_owned(), lines.join("\n")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Bytes that nobody wrote, under checksums that are right: what remains is the decoder's own care.
    #[test]
    fn any_bytes_are_read_without_a_panic(
        payload in prop::collection::vec(any::<u8>(), 0..200),
        targets in prop_oneof![0u32..20, any::<u32>()],
        contents in prop_oneof![
            Just(top_k()),
            Just(Contents::Sampled { draws: 5, seed: 0 }),
            Just(Contents::Int8 {}),
            Just(Contents::Int4 {}),
            Just(Contents::Hidden { width: 3, scale: 1.0, soft_cap: None, head: String::new() }),
        ],
    ) {
        let folder = tempfile::tempdir().unwrap();
        let options = WriterOptions { sync: false, ..WriterOptions::default() };
        let mut writer = Writer::open(folder.path(), &header(contents), None, options).unwrap();
        writer.append_unchecked(id(0, 0), 0, targets, &payload).unwrap();
        writer.finish().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        if let Ok(Rows::Sparse(rows)) = cache.record(id(0, 0)).unwrap().rows() {
            prop_assert!(rows.log_p.iter().all(|x| x.is_finite()));
            prop_assert_eq!(rows.len(), targets as usize);
        }
    }

    /// A file of any bytes in a shard's place.
    #[test]
    fn any_file_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), keep in 0usize..200) {
        let folder = tempfile::tempdir().unwrap();
        small(folder.path());
        let file = files(folder.path()).pop().unwrap();
        let whole = fs::read(&file).unwrap();
        let spliced = [&whole[..keep.min(whole.len())], &bytes].concat();
        prop_assume!(spliced != whole);
        fs::write(&file, spliced).unwrap();
        prop_assert!(read_all(folder.path()).is_err());
    }

    #[test]
    fn rows_come_back(seed in any::<u64>(), count in 0usize..60) {
        let folder = tempfile::tempdir().unwrap();
        let written = rows(seed, count);
        write(folder.path(), top_k(), &[(id(0, 0), Rows::Sparse(written.clone()))], 1 << 20);
        assert_near(&written, &read_all(folder.path()).unwrap()[0]);
    }
}
