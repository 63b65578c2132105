//! Feeds the target `config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (aludel_fuzz::target("config").run)(bytes));
