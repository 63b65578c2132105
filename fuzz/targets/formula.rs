//! Feeds the target `formula`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (aludel_fuzz::target("formula").run)(bytes));
