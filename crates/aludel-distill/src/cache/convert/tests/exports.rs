//! Writes small caches of every kind as rows, and holds each value of the rows against the cache's.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use aludel_cache::{
    Cache, Contents, Header, HiddenRows, LogitBuffer, RecordId, Rows, Set, SparseRows, Teacher,
    TokenizerPrint, Writer, WriterOptions,
};
use aludel_kernels::loss::{LevelBits, quantise};
use indexmap::IndexMap;
use sha2::{Digest, Sha256};

use super::super::columns::{Numbers, Table};
use super::super::export::{Export, Exported, Layout, export, whole};
use super::super::restore::{Restore, header_of, restore};
use crate::error::Error;

fn header(contents: Contents) -> Header {
    let is_top = matches!(contents, Contents::TopK { .. });
    Header {
        version: aludel_cache::header::VERSION,
        contents,
        vocabulary: 41,
        temperatures: if is_top { vec![1.0, 2.0] } else { vec![1.0] },
        logits: is_top,
        tokenizer: TokenizerPrint { vocabulary: "v".into(), rules: "r".into() },
        data: IndexMap::from([("files".to_owned(), "f".into())]),
        teacher: Teacher { name: "t".into(), weights: Vec::new(), url: None },
        shift: 1,
        positions: "restart".into(),
        parts: 1,
        tool: "test".into(),
    }
}

fn ids() -> Vec<RecordId> {
    let id = |set, row, start| RecordId { set, row, start };
    vec![id(Set::Train, 0, 0), id(Set::Train, 3, 64), id(Set::Validation, 1, 0)]
}

fn write(folder: &Path, header: &Header, head: Option<&[u8]>, rows: &[Rows<'_>]) -> Cache {
    let options = WriterOptions { sync: false, ..WriterOptions::default() };
    let mut writer = Writer::open(folder, header, head, options).unwrap();
    for (at, (id, rows)) in ids().into_iter().zip(rows).enumerate() {
        writer.append(id, u32::MAX - at as u32, rows).unwrap();
    }
    writer.finish().unwrap();
    Cache::open(folder).unwrap()
}

fn to_rows(cache: &Path, file: &Path, layout: Layout) -> Result<Exported, Error> {
    let cancel = AtomicBool::new(false);
    export(&Export {
        cache,
        file,
        layout,
        run: None,
        sync: false,
        cancel: &cancel,
        on_record: &|_, _, _, _| {},
    })
}

fn back(file: &Path, folder: &Path) -> Result<Cache, Error> {
    let cancel = AtomicBool::new(false);
    let header = header_of(file)?.unwrap();
    let options = WriterOptions { sync: false, ..WriterOptions::default() };
    restore(&Restore { file, header, folder, options, cancel: &cancel, on_record: &|_, _, _, _| {} })?;
    Ok(Cache::open(folder)?)
}

/// A column by its name, with the values of each row and where their lists end.
type Named = (&'static str, Vec<(Numbers, Vec<usize>)>);

fn columns(file: &Path, header: &Header) -> Vec<Named> {
    let mut table = Table::open(file).unwrap();
    let shapes = whole(header, false);
    for shape in &shapes {
        table.column(shape.name, shape.depth).unwrap();
    }
    let mut columns: Vec<Named> = shapes.iter().map(|shape| (shape.name, Vec::new())).collect();
    while table.advance().unwrap() {
        for (at, (_, rows)) in columns.iter_mut().enumerate() {
            let lists = table.read(at).unwrap();
            rows.push((lists.numbers, lists.ends));
        }
    }
    columns
}

fn real(values: &[f32]) -> Numbers {
    Numbers::Real(values.iter().map(|value| f64::from(*value)).collect())
}

fn whole_numbers(values: &[u32]) -> Numbers {
    Numbers::Whole(values.iter().map(|value| i64::from(*value)).collect())
}

/// Rows of two, none and one token.
fn likeliest() -> Vec<SparseRows> {
    let log = |p: f32| p.ln();
    vec![
        SparseRows {
            ends: vec![2, 5],
            ids: vec![3, 40, 0, 7, 9],
            log_p: [0.5, 0.25, 0.7, 0.1, 0.05].map(log).to_vec(),
            tails: vec![0.25, 0.5, 0.15, 0.3],
            log_sums: vec![12.5, -3.25],
            entropies: Vec::new(),
        },
        SparseRows::default(),
        SparseRows {
            ends: vec![1],
            ids: vec![40],
            log_p: vec![0.0],
            tails: vec![0.0, 0.125],
            log_sums: vec![1e4],
            entropies: Vec::new(),
        },
    ]
}

#[test]
fn the_likeliest_are_written_value_for_value_and_come_back_within_a_level() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, file, again) =
        (folder.path().join("a"), folder.path().join("a.parquet"), folder.path().join("b"));
    let header = header(Contents::TopK { k: 3, resolution: 352 });
    let rows: Vec<Rows<'_>> = likeliest().into_iter().map(Rows::Sparse).collect();
    let cache = write(&cache, &header, None, &rows);
    let exported = to_rows(cache.path(), &file, Layout::Whole).unwrap();
    assert_eq!((exported.records, exported.targets), (3, 3));
    assert_eq!(exported.bytes, file.metadata().unwrap().len());
    let columns = columns(&file, &header);
    let of = |name: &str| &columns.iter().find(|(own, _)| *own == name).unwrap().1;
    for (at, id) in cache.ids().enumerate() {
        let Rows::Sparse(rows) = cache.record(id).unwrap().rows().unwrap() else { panic!() };
        let set = if id.set == Set::Train { "train" } else { "validation" };
        assert_eq!(of("set")[at].0, Numbers::Bytes(vec![set.into()]));
        assert_eq!(of("row")[at].0, Numbers::Whole(vec![id.row as i64]));
        assert_eq!(of("start")[at].0, whole_numbers(&[id.start]));
        assert_eq!(of("check")[at].0, whole_numbers(&[u32::MAX - at as u32]));
        assert_eq!(of("token_ids")[at], (whole_numbers(&rows.ids), rows.ends.clone()));
        assert_eq!(of("log_probs")[at], (real(&rows.log_p), rows.ends.clone()));
        assert_eq!(of("tails")[at].0, real(&rows.tails));
        assert_eq!(of("log_sums")[at].0, real(&rows.log_sums));
    }
    let again = back(&file, &again).unwrap();
    assert_eq!(again.header(), cache.header());
    assert!(again.ids().eq(cache.ids()));
    for id in cache.ids() {
        let (one, other) = (cache.record(id).unwrap(), again.record(id).unwrap());
        assert_eq!(one.check(), other.check());
        let (Rows::Sparse(one), Rows::Sparse(other)) = (one.rows().unwrap(), other.rows().unwrap()) else {
            panic!()
        };
        assert_eq!((&one.ids, &one.ends, &one.log_sums), (&other.ids, &other.ends, &other.log_sums));
        let root = |log_p: &f32| (log_p / 2.0).exp();
        let near = |(x, y): (&f32, &f32)| (root(x) - root(y)).abs() < 1.1 / 352.0;
        assert!(one.log_p.iter().zip(&other.log_p).all(near));
        assert!(one.tails.iter().zip(&other.tails).all(|(x, y)| (x - y).abs() < 0.01));
    }
}

#[test]
fn draws_and_quantised_logits_come_back_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let share = |count: f64| (count / 4.0).ln() as f32;
    let drawn = SparseRows {
        ends: vec![1, 4],
        ids: vec![9, 0, 1, 40],
        log_p: vec![share(4.0), share(1.0), share(2.0), share(1.0)],
        entropies: vec![0.25, 3.0],
        ..SparseRows::default()
    };
    let logits: Vec<f32> = (0..41).map(|at| (at as f32 * 0.9).sin() * 6.0).collect();
    let buffers: Vec<LogitBuffer> = [true, false]
        .into_iter()
        .map(|in_eight| {
            let mut buffer = LogitBuffer::new(41, in_eight);
            for factor in [1.0, 9.0] {
                let logits: Vec<f32> = logits.iter().map(|x| x * factor).collect();
                let bits = if in_eight { LevelBits::Eight } else { LevelBits::Four };
                let row = quantise(&logits, bits).unwrap();
                buffer.push([row.top, row.step, row.floor], row.levels).unwrap();
            }
            buffer
        })
        .collect();
    for (name, contents, rows) in [
        ("sampled", Contents::Sampled { draws: 4, seed: 1 }, Rows::Sparse(drawn)),
        ("int8", Contents::Int8 {}, Rows::Logits(buffers[0].rows())),
        ("int4", Contents::Int4 {}, Rows::Logits(buffers[1].rows())),
    ] {
        let header = header(contents);
        let file = folder.path().join(format!("{name}.parquet"));
        let cache = write(&folder.path().join(name), &header, None, &[rows.clone(), rows.clone(), rows]);
        to_rows(cache.path(), &file, Layout::Whole).unwrap();
        let again = back(&file, &folder.path().join(format!("{name}-again"))).unwrap();
        assert!(again.ids().eq(cache.ids()));
        for id in cache.ids() {
            let (one, other) = (cache.record(id).unwrap(), again.record(id).unwrap());
            assert_eq!(one.check(), other.check());
            assert_eq!(one.rows().unwrap(), other.rows().unwrap(), "{name}");
        }
    }
}

#[test]
fn hidden_states_are_written_and_do_not_come_back_without_their_head() {
    let folder = tempfile::tempdir().unwrap();
    let digest: String = Sha256::digest(b"head").iter().map(|byte| format!("{byte:02x}")).collect();
    let header = header(Contents::Hidden { width: 3, scale: 1.0, soft_cap: None, head: digest });
    let rows = Rows::Hidden(HiddenRows { width: 3, values: vec![1.0, -2.0, 0.5, 0.0, 0.0, 0.0] });
    let cache = write(&folder.path().join("a"), &header, Some(b"head"), &[rows]);
    let file = folder.path().join("a.parquet");
    to_rows(cache.path(), &file, Layout::Whole).unwrap();
    let columns = columns(&file, &header);
    let (name, values) = columns.last().unwrap();
    assert_eq!((*name, values.len()), ("hidden", 1));
    assert_eq!(values[0], (real(&[1.0, -2.0, 0.5, 0.0, 0.0, 0.0]), vec![3, 6]));
    let said = back(&file, &folder.path().join("b")).unwrap_err().to_string();
    assert!(said.contains("hidden states mean nothing without the head"), "{said}");
}

#[test]
fn what_distillkit_cannot_read_is_refused_before_a_file_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let header = header(Contents::TopK { k: 3, resolution: 352 });
    let cache = write(&folder.path().join("a"), &header, None, &[Rows::Sparse(SparseRows::default())]);
    let file = folder.path().join("a.parquet");
    let said = to_rows(cache.path(), &file, Layout::DistillKit { k: 3 }).unwrap_err();
    assert!(said.to_string().contains("a cache has no tokens"), "{said}");
    assert_eq!(folder.path().read_dir().unwrap().count(), 1);
}

/// Exported files that were changed give other rows or an error, and nothing else.
#[test]
fn no_change_of_an_exported_byte_is_worse_than_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let header = header(Contents::TopK { k: 3, resolution: 352 });
    let rows: Vec<Rows<'_>> = likeliest().into_iter().map(Rows::Sparse).collect();
    let cache = write(&folder.path().join("a"), &header, None, &rows);
    let file = folder.path().join("a.parquet");
    to_rows(cache.path(), &file, Layout::Whole).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let mut errors = 0;
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        std::fs::write(&file, &changed).unwrap();
        let again = folder.path().join("again");
        let made = match header_of(&file) {
            Ok(Some(_)) => back(&file, &again).is_ok(),
            _ => false,
        };
        errors += usize::from(!made);
        let _ = std::fs::remove_dir_all(again);
    }
    assert!(errors > bytes.len() / 4, "{errors} of {}", bytes.len());
}
