#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rvm_vmm::fuzzing::template_state(data));
