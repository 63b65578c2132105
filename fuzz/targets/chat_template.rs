//! Feeds the target `chat_template`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (aludel_fuzz::target("chat_template").run)(bytes));
