//! Conditions on the arguments of a system call. They have 64 bits, and classic BPF compares 32: a
//! condition is one on the upper half and one on the lower.

use super::code::{Code, JUMP_IF_EQUAL, JUMP_IF_GREATER, JUMP_IF_GREATER_OR_EQUAL, Place};

/// How an argument compares to the value; unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `==`
    Equal,
    /// `>=`
    GreaterOrEqual,
    /// `>`
    Greater,
    /// The argument's bits of this mask are equal.
    MaskedEqual(u64),
}

/// A condition on one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// 0 to 5.
    pub argument: u8,
    /// How it compares.
    pub comparison: Comparison,
    /// To what.
    pub value: u64,
    /// Whether the lower halves alone are compared.
    pub lower_half: bool,
}

/// Code that continues at one place if all conditions hold, and at another one otherwise.
pub fn all(code: &mut Code, conditions: &[Condition], holds: Place, fails: Place) -> Place {
    let conditions = conditions.iter().rev();
    conditions.fold(holds, |holds, condition| one(code, condition, holds, fails))
}

fn one(code: &mut Code, condition: &Condition, holds: Place, fails: Place) -> Place {
    /// Offset of the arguments in `struct seccomp_data`; the low half comes first.
    const ARGUMENTS: u32 = 16;
    let low_at = ARGUMENTS + 8 * u32::from(condition.argument);
    let (low, high) = halves(condition.value);
    let (low_mask, high_mask) = match condition.comparison {
        Comparison::MaskedEqual(mask) => halves(mask),
        _ => (u32::MAX, u32::MAX),
    };
    let (ways, if_true, if_false) = match condition.comparison {
        Comparison::Equal | Comparison::MaskedEqual(_) => (JUMP_IF_EQUAL, holds, fails),
        Comparison::NotEqual => (JUMP_IF_EQUAL, fails, holds),
        Comparison::Greater => (JUMP_IF_GREATER, holds, fails),
        Comparison::GreaterOrEqual => (JUMP_IF_GREATER_OR_EQUAL, holds, fails),
        Comparison::Less => (JUMP_IF_GREATER_OR_EQUAL, fails, holds),
        Comparison::LessOrEqual => (JUMP_IF_GREATER, fails, holds),
    };
    let mut next = code.branch(ways, low, if_true, if_false);
    next = masked(code, low_at, low_mask, next);
    if condition.lower_half || (high_mask, high) == (0, 0) {
        return next;
    }
    // Where the upper halves differ they decide.
    next = code.branch(JUMP_IF_EQUAL, high, next, if_false);
    if ways != JUMP_IF_EQUAL {
        next = code.branch(JUMP_IF_GREATER, high, if_true, next);
    }
    masked(code, low_at + 4, high_mask, next)
}

/// Loads those bits of a word that are to be compared.
fn masked(code: &mut Code, offset: u32, mask: u32, next: Place) -> Place {
    let next = match mask {
        u32::MAX => next,
        _ => code.and(mask, next),
    };
    code.load(offset, next)
}

fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}
