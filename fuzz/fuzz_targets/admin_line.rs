//! Plays `fuzz_targets::admin_line` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz_targets::admin_line(input));
