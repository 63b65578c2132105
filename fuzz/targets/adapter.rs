//! Feeds the target `adapter`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (aludel_fuzz::target("adapter").run)(bytes));
