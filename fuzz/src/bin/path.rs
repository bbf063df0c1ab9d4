//! One target of the fuzzing. Its invariant is that of `fuzzing::path`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tombolo_gateway::fuzzing::path(bytes));
