//! Feeds the target `run`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (aludel_fuzz::target("run").run)(bytes));
