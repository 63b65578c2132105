//! Feeds the target `torch`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (aludel_fuzz::target("torch").run)(bytes));
