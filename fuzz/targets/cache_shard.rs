//! Feeds the target `cache_shard`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (aludel_fuzz::target("cache_shard").run)(bytes));
