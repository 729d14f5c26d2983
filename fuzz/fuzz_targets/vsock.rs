#![no_main]

rvm_fuzz::target!(rvm_vmm::fuzzing::vsock);
