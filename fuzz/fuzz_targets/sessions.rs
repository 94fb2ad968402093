//! Plays `fuzz_targets::sessions` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz_targets::sessions(input));
