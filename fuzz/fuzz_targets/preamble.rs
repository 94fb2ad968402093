//! Plays `fuzz_targets::preamble` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz_targets::preamble(input));
