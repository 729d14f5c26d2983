//! The agent's binary; see [`rvm_agent::run`].
//!
//! Rust's own start-up is left out: it opens /dev/null for standard streams that are closed and
//! aborts if it cannot, and the kernel starts init without streams when it has no console driver,
//! before there is a /dev.
#![no_main]

/// What the C library calls; it has already taken note of the arguments for `std::env`.
#[allow(unsafe_code)]
// SAFETY: no other symbol of this name is linked: `no_main` keeps Rust's away.
#[unsafe(no_mangle)]
pub extern "C" fn main() -> i32 {
    rvm_agent::run()
}
