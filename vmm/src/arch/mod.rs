//! What depends on the processor architecture. x86-64 is the only one so far.

pub mod x86_64;
