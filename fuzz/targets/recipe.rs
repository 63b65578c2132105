//! Feeds the target `recipe`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (aludel_fuzz::target("recipe").run)(bytes));
