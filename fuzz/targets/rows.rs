//! Feeds the target `rows`.
#![no_main]

// What a library panics at is caught by its caller: the hook would end the process before.
libfuzzer_sys::fuzz_target!(init: std::panic::set_hook(Box::new(|_| {})), |bytes: &[u8]| (aludel_fuzz::target("rows").run)(bytes));
