//! Plays `fuzz_targets::pairing_code` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz_targets::pairing_code(input));
