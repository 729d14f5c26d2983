#![no_main]

rvm_fuzz::target!(rvm_sandbox::fuzzing::systemd);
