//! Plays `fuzz_targets::key_file` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz_targets::key_file(input));
