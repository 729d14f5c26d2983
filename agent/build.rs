//! Links the agent at a fixed address.
//!
//! A static program that can lie anywhere relocates itself whenever it is executed: ten thousand
//! words in the agent's case, in about fifty pages that are copied for it, some 0.75 million
//! instructions. That is a third of what the agent does to start a container, for which it executes
//! itself anew. What the random address would make harder is an attack on the agent's own memory
//! safety from its one channel, and at the other end of that is the host.

fn main() {
    // Later than rustc's own -static-pie, which they override.
    println!("cargo::rustc-link-arg-bins=-no-pie");
    println!("cargo::rustc-link-arg-bins=-static");
    println!("cargo::rerun-if-changed=build.rs");
}
