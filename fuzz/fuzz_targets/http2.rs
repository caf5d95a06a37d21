#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| weft_promises::http2(bytes));
