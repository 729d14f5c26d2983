//! rvm-vmm.
fn main() {}
