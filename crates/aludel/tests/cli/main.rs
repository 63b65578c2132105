//! Tests of the program as its users meet it: arguments in; exit codes, both streams and files out.
//!
//! Expected texts are recorded in the tests; `SNAPSHOTS=overwrite cargo test -p aludel` records them anew.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions too")]

mod aligned;
#[path = "../../../aludel-storage/tests/storage/server.rs"]
mod bucket;
mod cache;
mod cache_convert;
mod combine;
mod convert;
mod cuda;
mod delta;
mod determinism;
mod diff;
mod distill;
mod elsewhere;
mod extract;
mod fp8;
mod gpu;
mod help;
mod hub;
mod inspect;
mod layershuffle;
mod memory;
mod merge;
mod mergekit;
mod methods;
mod moe;
mod parts;
mod plan;
mod processes;
mod refusals;
mod resume;
mod sandbox;
mod search;
mod served;
#[cfg(unix)]
mod signals;
mod stages;
mod statistics;
mod storage;
mod teacher_server;
#[cfg(unix)]
mod terminal;
mod text;
mod tokensurgeon;
mod uld;
mod weights;
