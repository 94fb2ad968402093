//! Plays `fuzz_targets::audit_verify` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz_targets::audit_verify(input));
