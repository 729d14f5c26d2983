//! Conditions on the arguments of a system call. They have 64 bits, and classic BPF compares 32: a
//! condition is one on the upper half and one on the lower.

use super::program::{
    AND, Action, Instruction, JUMP_IF_EQUAL, JUMP_IF_GREATER, JUMP_IF_GREATER_OR_EQUAL, LOAD,
    RETURN,
};

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

/// Where to go after a comparison of one half.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Next,
    /// The condition holds: past the rest of it.
    Holds,
    /// The condition fails: past the whole rule.
    Fails,
}

use Target::{Fails, Holds, Next};

/// An instruction with jumps to targets.
struct Step {
    code: u16,
    operand: u32,
    if_true: Target,
    if_false: Target,
}

const fn plain(code: u16, operand: u32) -> Step {
    Step {
        code,
        operand,
        if_true: Next,
        if_false: Next,
    }
}

const fn test(code: u16, operand: u32, if_true: Target, if_false: Target) -> Step {
    Step {
        code,
        operand,
        if_true,
        if_false,
    }
}

/// Code that returns the action if all conditions hold, and continues after itself otherwise. With
/// six conditions of six instructions, every jump in it fits its eight bits.
pub fn rule(conditions: &[Condition], action: Action) -> Vec<Instruction> {
    let mut code = vec![Instruction::new(RETURN, 0, 0, action)];
    for condition in conditions.iter().rev() {
        let steps = steps(condition);
        let behind = code.len();
        let mut placed = Vec::with_capacity(steps.len() + behind);
        for (index, step) in steps.iter().enumerate() {
            let to_end = steps.len() - 1 - index;
            let distance = |target: Target| match target {
                Next => 0,
                Holds => to_end as u8,
                Fails => (to_end + behind) as u8,
            };
            let (jump_true, jump_false) = (distance(step.if_true), distance(step.if_false));
            placed.push(Instruction::new(
                step.code,
                jump_true,
                jump_false,
                step.operand,
            ));
        }
        placed.extend(code);
        code = placed;
    }
    code
}

fn steps(condition: &Condition) -> Vec<Step> {
    /// Offset of the arguments in `struct seccomp_data`; the low half comes first.
    const ARGUMENTS: u32 = 16;
    let low_at = ARGUMENTS + 8 * u32::from(condition.argument);
    let (low, high) = halves(condition.value);
    let ordered = |code: u16, high_greater: Target, high_less: Target, if_true, if_false| {
        let upper = vec![
            test(JUMP_IF_GREATER, high, high_greater, Next),
            test(JUMP_IF_EQUAL, high, Next, high_less),
        ];
        (upper, vec![test(code, low, if_true, if_false)])
    };
    let (upper, lower) = match condition.comparison {
        Comparison::Equal => (
            vec![test(JUMP_IF_EQUAL, high, Next, Fails)],
            vec![test(JUMP_IF_EQUAL, low, Next, Fails)],
        ),
        Comparison::NotEqual => (
            vec![test(JUMP_IF_EQUAL, high, Next, Holds)],
            vec![test(JUMP_IF_EQUAL, low, Fails, Next)],
        ),
        Comparison::MaskedEqual(mask) => {
            let (mask_low, mask_high) = halves(mask);
            let masked = |mask, value| {
                let equal = test(JUMP_IF_EQUAL, value, Next, Fails);
                vec![plain(AND, mask), equal]
            };
            (masked(mask_high, high), masked(mask_low, low))
        }
        Comparison::Greater => ordered(JUMP_IF_GREATER, Holds, Fails, Next, Fails),
        Comparison::GreaterOrEqual => ordered(JUMP_IF_GREATER_OR_EQUAL, Holds, Fails, Next, Fails),
        Comparison::Less => ordered(JUMP_IF_GREATER_OR_EQUAL, Fails, Holds, Fails, Next),
        Comparison::LessOrEqual => ordered(JUMP_IF_GREATER, Fails, Holds, Fails, Next),
    };
    let mut steps = Vec::new();
    if !condition.lower_half {
        steps.push(plain(LOAD, low_at + 4));
        steps.extend(upper);
    }
    steps.push(plain(LOAD, low_at));
    steps.extend(lower);
    steps
}

fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}
