//! Feeds the target `index`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (aludel_fuzz::target("index").run)(bytes));
