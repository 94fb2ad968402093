//! Plays `fuzz_targets::message` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz_targets::message(input));
