//! Plays `fuzz_targets::endpoint_id` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz_targets::endpoint_id(input));
