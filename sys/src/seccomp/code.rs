//! Classic BPF while it is written, from its end: every jump leads forwards, to what is there
//! already.

use super::INSTRUCTION_SIZE;
use super::program::Action;

/// `struct sock_filter` of `<linux/filter.h>`.
struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    operand: u32,
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
pub const JUMP_IF_EQUAL: u16 = 0x15;
pub const JUMP_IF_GREATER: u16 = 0x25;
pub const JUMP_IF_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// How many instructions a branch can skip, but one: its other target may take a jump between.
const REACH: usize = 254;

/// An instruction that is written: the number of those behind it.
pub type Place = usize;

/// Instructions and where the newest of the returns are.
#[derive(Default)]
pub struct Code {
    /// The last one first.
    instructions: Vec<Instruction>,
    returns: Vec<(Action, Place)>,
}

impl Code {
    /// The number of instructions.
    pub fn len(&self) -> usize {
        self.instructions.len()
    }

    /// The instructions in the order in which they run, as in memory.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(INSTRUCTION_SIZE * self.instructions.len());
        for instruction in self.instructions.iter().rev() {
            bytes.extend(instruction.code.to_ne_bytes());
            bytes.extend([instruction.jump_true, instruction.jump_false]);
            bytes.extend(instruction.operand.to_ne_bytes());
        }
        bytes
    }

    /// A return with this action.
    pub fn finish(&mut self, action: Action) -> Place {
        let found = self.returns.iter_mut().find(|(other, _)| *other == action);
        let next = self.instructions.len();
        match found {
            Some((_, place)) if next - *place <= REACH => return *place,
            Some((_, place)) => *place = next,
            None => self.returns.push((action, next)),
        }
        self.push(RETURN, (0, 0), action)
    }

    /// Loads a word of `struct seccomp_data` into the accumulator.
    pub fn load(&mut self, offset: u32, next: Place) -> Place {
        self.continue_at(next);
        self.push(LOAD, (0, 0), offset)
    }

    /// Keeps the bits of a mask in the accumulator.
    pub fn and(&mut self, mask: u32, next: Place) -> Place {
        self.continue_at(next);
        self.push(AND, (0, 0), mask)
    }

    /// Compares the accumulator in one of the `JUMP_IF_*` ways.
    pub fn branch(&mut self, code: u16, operand: u32, if_true: Place, if_false: Place) -> Place {
        let (if_true, if_false) = (self.within_reach(if_true), self.within_reach(if_false));
        let skipped = |place| (self.instructions.len() - 1 - place) as u8;
        self.push(code, (skipped(if_true), skipped(if_false)), operand)
    }

    /// This place, or a jump to it that a branch reaches.
    fn within_reach(&mut self, place: Place) -> Place {
        match self.instructions.len() - place <= REACH {
            true => place,
            false => self.jump(place),
        }
    }

    /// Makes this place the next one to run.
    fn continue_at(&mut self, place: Place) {
        if place + 1 != self.instructions.len() {
            self.jump(place);
        }
    }

    fn jump(&mut self, place: Place) -> Place {
        let skipped = self.instructions.len() - 1 - place;
        self.push(JUMP, (0, 0), skipped as u32)
    }

    fn push(&mut self, code: u16, jumps: (u8, u8), operand: u32) -> Place {
        self.instructions.push(Instruction {
            code,
            jump_true: jumps.0,
            jump_false: jumps.1,
            operand,
        });
        self.instructions.len() - 1
    }
}
