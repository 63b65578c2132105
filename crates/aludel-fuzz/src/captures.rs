//! What other tools stored of a teacher, and what a cache was exported to.

use std::fs;
use std::sync::atomic::AtomicBool;

use aludel_cache::WriterOptions;
use aludel_distill::cache::convert::{Export, Layout, Restore, export, header_of, read_source, restore};

use crate::scratch::{fixture, folder};
use crate::stored;

/// Rows as DistillKit or others store them, Parquet where they begin as that does: two bytes for the length of the configuration, the
/// configuration, the rows.
pub(crate) fn capture(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return };
    let (configuration, rows) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
    let name = if rows.starts_with(b"PAR1") { "rows.parquet" } else { "rows.jsonl" };
    let path = folder(&[(name, rows), ("how.yaml", configuration)]);
    let how = path.join("how.yaml");
    drop(read_source(&path.join(name), Some(how.as_path()).filter(|_| !configuration.is_empty())));
}

pub(crate) fn capture_seeds() -> Vec<Vec<u8>> {
    let seed = |configuration: &[u8], rows: &[u8]| {
        [&(configuration.len() as u16).to_le_bytes()[..], configuration, rows].concat()
    };
    let golden = |name: &str, file: &str| fixture(&format!("tests/golden/distillkit/{name}/{file}"));
    let packed = ["bins", "deltas", "fitted", "normalized"]
        .map(|name| seed(&golden(name, "compression_config.yaml"), &golden(name, "data_1.parquet")));
    let lines = br#"{"input_ids": [1, 2], "token_ids": [[3, 4], [5]], "log_probs": [[-0.5, -1.5], [null]]}
{"input_ids": [1], "token_ids": [[0]], "top_values": [[0.0]]}
"#;
    packed.into_iter().chain([seed(b"", &golden("plain", "data_1.parquet")), seed(b"", lines)]).collect()
}

/// An exported cache.
pub(crate) fn exported(bytes: &[u8]) {
    let path = folder(&[("rows.parquet", bytes)]);
    let file = path.join("rows.parquet");
    let Ok(Some(header)) = header_of(&file) else { return };
    let settings = Restore {
        file: &file,
        header,
        folder: &path.join("cache"),
        options: WriterOptions { sync: false, ..WriterOptions::default() },
        cancel: &AtomicBool::new(false),
        on_record: &|_, _, _, _| {},
    };
    if restore(&settings).is_ok() {
        stored::read(&path.join("cache"));
    }
}

pub(crate) fn exported_seeds() -> Vec<Vec<u8>> {
    let cache = stored::written(0, 2, &stored::payload());
    let file = cache.with_file_name("rows.parquet");
    let settings = Export {
        cache: &cache,
        file: &file,
        layout: Layout::Whole,
        run: None,
        sync: false,
        cancel: &AtomicBool::new(false),
        on_record: &|_, _, _, _| {},
    };
    export(&settings).expect("rows");
    vec![fs::read(&file).expect("rows")]
}
