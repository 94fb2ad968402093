//! Plays `fuzz_targets::frame` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz_targets::frame(input));
