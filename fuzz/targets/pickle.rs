//! Feeds the target `pickle`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (aludel_fuzz::target("pickle").run)(bytes));
