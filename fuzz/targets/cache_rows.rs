//! Feeds the target `cache_rows`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (aludel_fuzz::target("cache_rows").run)(bytes));
