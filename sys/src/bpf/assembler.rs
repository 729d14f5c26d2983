//! Putting a program together. A jump names a [`Label`]; [`Assembler::finish`] counts the distance.

use std::os::fd::{AsRawFd as _, BorrowedFd};

/// The operation codes that [`Assembler`] emits, for an interpreter in a test.
#[expect(missing_docs, reason = "the names of the instruction set document")]
pub mod opcode {
    pub const LOAD_WORD: u8 = 0x61;
    pub const LOAD_DOUBLE_IMMEDIATE: u8 = 0x18;
    pub const STORE_WORD: u8 = 0x63;
    pub const STORE_WORD_IMMEDIATE: u8 = 0x62;
    pub const MOVE_IMMEDIATE: u8 = 0xb7;
    pub const MOVE_REGISTER: u8 = 0xbf;
    pub const ADD_IMMEDIATE: u8 = 0x07;
    pub const AND32_IMMEDIATE: u8 = 0x54;
    pub const OR32_REGISTER: u8 = 0x4c;
    pub const SHIFT_LEFT32_IMMEDIATE: u8 = 0x64;
    pub const SHIFT_RIGHT32_IMMEDIATE: u8 = 0x74;
    pub const JUMP_IF_NOT_EQUAL32: u8 = 0x56;
    pub const JUMP_IF_EQUAL32: u8 = 0x16;
    pub const JUMP_IF_EQUAL: u8 = 0x15;
    pub const CALL: u8 = 0x85;
    pub const EXIT: u8 = 0x95;
}

/// In the place of [`opcode::LOAD_DOUBLE_IMMEDIATE`]'s source register: the constant is the
/// descriptor of a map (`BPF_PSEUDO_MAP_FD`).
const MAP_BY_DESCRIPTOR: u8 = 1;

/// `struct bpf_insn` of `<linux/bpf.h>`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// One of [`opcode`].
    pub code: u8,
    /// The destination in the low four bits, the source in the high ones.
    pub registers: u8,
    /// The distance of a jump from the next instruction, or of a word from the address in a
    /// register.
    pub offset: i16,
    /// The constant operand.
    pub immediate: i32,
}

/// A register of the virtual machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Register {
    /// The result, of the program and of a function that it calls.
    R0,
    /// The context at the start; the first argument of a call.
    R1,
    /// The second argument of a call.
    R2,
    /// The third argument of a call.
    R3,
    /// The fourth argument of a call.
    R4,
    /// The fifth argument of a call.
    R5,
    /// Kept across calls, as R7 to R9 are.
    R6,
    /// Kept across calls.
    R7,
    /// Kept across calls.
    R8,
    /// Kept across calls.
    R9,
    /// The end of the stack, which grows down from it; read only.
    R10,
}

/// A place in a program that jumps lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// A program with labels that is not finished.
#[derive(Debug, Default)]
pub struct Assembler {
    instructions: Vec<Instruction>,
    /// The index of the instruction behind each label that has been placed.
    places: Vec<Option<usize>>,
    /// The jumps, by the index of their instruction.
    jumps: Vec<(usize, Label)>,
}

/// A finished program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program(Vec<Instruction>);

/// A program that cannot be assembled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssemblyError {
    /// An instruction reaches 32767 others.
    #[error("a jump over {0} instructions is too long")]
    JumpTooLong(i64),
    /// [`Assembler::place`] was not called with the label of a jump.
    #[error("a jump leads to a label that is not in the program")]
    NoSuchLabel,
}

impl Assembler {
    /// Starts an empty program.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a label, for jumps to name before and after it is placed.
    pub fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// Places a label before the next instruction.
    pub fn place(&mut self, label: Label) -> &mut Self {
        let here = self.instructions.len();
        if let Some(place) = self.places.get_mut(label.0) {
            *place = Some(here);
        }
        self
    }

    /// Puts the 32-bit word at `from + offset` into `to`.
    pub fn load_word(&mut self, to: Register, from: Register, offset: i16) -> &mut Self {
        self.push(opcode::LOAD_WORD, to as u8, from as u8, offset, 0)
    }

    /// Puts the 32-bit word in `from` at the address `to + offset`.
    pub fn store_word(&mut self, to: Register, offset: i16, from: Register) -> &mut Self {
        self.push(opcode::STORE_WORD, to as u8, from as u8, offset, 0)
    }

    /// Puts a constant 32-bit word at the address `to + offset`.
    pub fn store_word_immediate(&mut self, to: Register, offset: i16, value: i32) -> &mut Self {
        self.push(opcode::STORE_WORD_IMMEDIATE, to as u8, 0, offset, value)
    }

    /// Puts a constant, extended with its sign, into all 64 bits of `to`.
    pub fn move_immediate(&mut self, to: Register, value: i32) -> &mut Self {
        self.push(opcode::MOVE_IMMEDIATE, to as u8, 0, 0, value)
    }

    /// Copies all 64 bits.
    pub fn move_register(&mut self, to: Register, from: Register) -> &mut Self {
        self.push(opcode::MOVE_REGISTER, to as u8, from as u8, 0, 0)
    }

    /// Puts the address of a map into `to`. The map is open until the program is loaded.
    pub fn move_map(&mut self, to: Register, map: BorrowedFd<'_>) -> &mut Self {
        let (code, map) = (opcode::LOAD_DOUBLE_IMMEDIATE, map.as_raw_fd());
        self.push(code, to as u8, MAP_BY_DESCRIPTOR, 0, map);
        // The upper half of the constant.
        self.push(0, 0, 0, 0, 0)
    }

    /// Adds a constant to all 64 bits.
    pub fn add_immediate(&mut self, to: Register, value: i32) -> &mut Self {
        self.push(opcode::ADD_IMMEDIATE, to as u8, 0, 0, value)
    }

    /// Keeps the bits of `mask`, among the low 32.
    pub fn and32_immediate(&mut self, to: Register, mask: i32) -> &mut Self {
        self.push(opcode::AND32_IMMEDIATE, to as u8, 0, 0, mask)
    }

    /// Adds the bits of `from`, among the low 32.
    pub fn or32_register(&mut self, to: Register, from: Register) -> &mut Self {
        self.push(opcode::OR32_REGISTER, to as u8, from as u8, 0, 0)
    }

    /// Shifts the low 32 bits up.
    pub fn shift_left32_immediate(&mut self, to: Register, bits: i32) -> &mut Self {
        self.push(opcode::SHIFT_LEFT32_IMMEDIATE, to as u8, 0, 0, bits)
    }

    /// Shifts the low 32 bits down.
    pub fn shift_right32_immediate(&mut self, to: Register, bits: i32) -> &mut Self {
        self.push(opcode::SHIFT_RIGHT32_IMMEDIATE, to as u8, 0, 0, bits)
    }

    /// Jumps unless the low 32 bits are `value`.
    pub fn jump_if_not_equal32(&mut self, left: Register, value: i32, to: Label) -> &mut Self {
        self.jump(opcode::JUMP_IF_NOT_EQUAL32, left, value, to)
    }

    /// Jumps if the low 32 bits are `value`.
    pub fn jump_if_equal32(&mut self, left: Register, value: i32, to: Label) -> &mut Self {
        self.jump(opcode::JUMP_IF_EQUAL32, left, value, to)
    }

    /// Jumps if all 64 bits are those of `value`, extended with its sign.
    pub fn jump_if_equal(&mut self, left: Register, value: i32, to: Label) -> &mut Self {
        self.jump(opcode::JUMP_IF_EQUAL, left, value, to)
    }

    /// Calls a function of the kernel by its number in `enum bpf_func_id`.
    pub fn call(&mut self, function: i32) -> &mut Self {
        self.push(opcode::CALL, 0, 0, 0, function)
    }

    /// Ends the program with the result in [`Register::R0`].
    pub fn exit(&mut self) -> &mut Self {
        self.push(opcode::EXIT, 0, 0, 0, 0)
    }

    /// Counts the distances of all jumps.
    pub fn finish(mut self) -> Result<Program, AssemblyError> {
        for (at, label) in &self.jumps {
            let place = self.places.get(label.0).copied().flatten();
            let place = place.ok_or(AssemblyError::NoSuchLabel)?;
            // A jump of 0 leads to the instruction after it.
            let distance = place as i64 - *at as i64 - 1;
            self.instructions[*at].offset =
                i16::try_from(distance).map_err(|_| AssemblyError::JumpTooLong(distance))?;
        }
        Ok(Program(self.instructions))
    }

    fn jump(&mut self, code: u8, left: Register, value: i32, to: Label) -> &mut Self {
        self.jumps.push((self.instructions.len(), to));
        self.push(code, left as u8, 0, 0, value)
    }

    fn push(&mut self, code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> &mut Self {
        self.instructions.push(Instruction {
            code,
            registers: to | from << 4,
            offset,
            immediate,
        });
        self
    }
}

impl Program {
    /// What the kernel gets.
    pub fn instructions(&self) -> &[Instruction] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::Register::{R0, R1};
    use super::*;

    #[test]
    fn a_jump_leads_to_its_label_wherever_that_is() {
        let mut assembler = Assembler::new();
        let (start, end) = (assembler.label(), assembler.label());
        assembler.place(start);
        assembler.jump_if_equal32(R1, 7, end);
        assembler.move_immediate(R0, 1);
        assembler.jump_if_not_equal32(R0, 1, start);
        assembler.place(end).exit();
        let program = assembler.finish().unwrap();
        let offsets: Vec<_> = program.instructions().iter().map(|i| i.offset).collect();
        assert_eq!(offsets, [2, 0, -3, 0]);
    }

    #[test]
    fn a_jump_that_leads_nowhere_is_an_error() {
        let mut assembler = Assembler::new();
        let end = assembler.label();
        assembler.jump_if_equal(R0, 0, end).exit();
        assert_eq!(assembler.finish(), Err(AssemblyError::NoSuchLabel));
    }

    #[test]
    fn a_jump_that_an_instruction_cannot_hold_is_an_error() {
        let over = |count: i64| {
            let mut assembler = Assembler::new();
            let end = assembler.label();
            assembler.jump_if_equal(R0, 0, end);
            for _ in 0..count {
                assembler.move_immediate(R0, 0);
            }
            assembler.place(end).exit();
            assembler.finish().map(drop)
        };
        assert_eq!(over(32767), Ok(()));
        assert_eq!(over(32768), Err(AssemblyError::JumpTooLong(32768)));
    }
}
