//! Feeds the target `delta`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (aludel_fuzz::target("delta").run)(bytes));
