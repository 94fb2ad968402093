//! Plays `fuzz_targets::config` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz_targets::config(input));
