#![no_main]

rvm_fuzz::target!(rvm_agent::fuzzing::guest_config);
