#![no_main]

rvm_fuzz::target!(rvm_vmm::fuzzing::template_state);
