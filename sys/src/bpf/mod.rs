//! eBPF programs: an assembler with labels, and bpf(2) to load and attach what it makes.
//!
//! The instruction set is the kernel's Documentation/bpf/standardization/instruction-set.rst.

mod assembler;
mod kernel;

pub use assembler::{Assembler, AssemblyError, Instruction, Label, Program, Register, opcode};
pub use kernel::{AttachPoint, Link, LoadedProgram, SocketMap};
