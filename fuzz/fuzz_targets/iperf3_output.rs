//! Plays `fuzz_targets::iperf3_output` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz_targets::iperf3_output(input));
