//! Feeds the target `experts`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (aludel_fuzz::target("experts").run)(bytes));
