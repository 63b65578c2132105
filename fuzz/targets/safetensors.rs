//! Feeds the target `safetensors`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (aludel_fuzz::target("safetensors").run)(bytes));
