//! Plays `fuzz_targets::appliance_config` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz_targets::appliance_config(input));
