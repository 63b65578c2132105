//! Feeds the target `cache_header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (aludel_fuzz::target("cache_header").run)(bytes));
