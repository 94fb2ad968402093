//! Plays `fuzz_targets::echo_datagram` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz_targets::echo_datagram(input));
