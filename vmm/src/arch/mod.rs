//! What depends on the processor. There is one so far.

pub mod x86_64;
