//! `aludel cache info`: says what a cache is of.

use aludel_cache::{Cache, Contents, Header, Teacher};
use serde::Serialize;

use crate::args::CacheInfoArguments;
use crate::commands::cache::verify::refused;
use crate::commands::listing::listing;
use crate::printer::Printer;
use crate::storage;
use aludel_merge::plan::Bytes;

/// What a cache is of, and how large.
#[derive(Serialize)]
struct Info<'a> {
    header: &'a Header,
    records: usize,
    tokens: u64,
    shards: usize,
    bytes: u64,
    bytes_per_token: f64,
}

/// Opens the cache and prints what it says of itself.
pub(super) fn run(arguments: &CacheInfoArguments, printer: &Printer) -> anyhow::Result<()> {
    let cache = Cache::open(&storage::local(&arguments.cache, printer)?).map_err(refused)?;
    let info = Info {
        header: cache.header(),
        records: cache.len(),
        tokens: cache.targets(),
        shards: cache.shards(),
        bytes: cache.bytes(),
        bytes_per_token: cache.bytes() as f64 / cache.targets().max(1) as f64,
    };
    if printer.talk().json { printer.json(&info) } else { Ok(printer.data(&table(&info))?) }
}

fn table(info: &Info<'_>) -> String {
    let header = info.header;
    let temperatures: Vec<String> = header.temperatures.iter().map(ToString::to_string).collect();
    let rows = [
        ("contents", contents(&header.contents)),
        ("tokens", format!("{} in {} records", info.tokens, info.records)),
        (
            "size",
            format!(
                "{} in {} files, {:.1} bytes a token",
                Bytes(info.bytes),
                info.shards,
                info.bytes_per_token
            ),
        ),
        ("vocabulary", header.vocabulary.to_string()),
        ("temperatures", temperatures.join(", ")),
        ("teacher", teacher(&header.teacher)),
        ("parts", header.parts.to_string()),
        ("written by", header.tool.clone()),
    ];
    let settings = header.data.iter().map(|(name, value)| (name.as_str(), value.to_string()));
    let rows: Vec<(&str, String)> = rows.into_iter().chain(settings).collect();
    listing(&rows)
}

fn teacher(teacher: &Teacher) -> String {
    match &teacher.url {
        Some(url) => format!("{}, served at {url}; its weights are not known", teacher.name),
        None => teacher.name.clone(),
    }
}

fn contents(contents: &Contents) -> String {
    match contents {
        Contents::TopK { k, .. } => format!("the {k} likeliest tokens (top_k)"),
        Contents::Sampled { draws, .. } => format!("{draws} draws (sampled)"),
        Contents::Int8 {} => "logits in 8 bits (int8)".to_owned(),
        Contents::Int4 {} => "logits in 4 bits (int4)".to_owned(),
        Contents::Hidden { width, .. } => format!("hidden states of width {width} (hidden)"),
    }
}
