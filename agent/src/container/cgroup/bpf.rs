//! The eBPF program that decides about devices in a container's cgroup.
//!
//! The kernel runs it with a `struct bpf_cgroup_dev_ctx` (`<linux/bpf.h>`) for each access and
//! allows it if the program returns 1. The rules are walked from the last to the first. One register
//! holds the accesses that no rule has decided yet: a denying rule about any of them ends it with
//! no, an allowing rule takes its own away, and when none is left the answer is yes. What is still
//! undecided in the end is denied.
//!
//! Every container loads one, and the kernel's verifier walks every path through it: written
//! plainly, with all conditions for each rule, the default rules alone cost a million instructions
//! to load. So block and character devices part at the beginning, a device's two numbers are
//! compared as one, and a rule about every access decides at once.

use super::device_rules::{Kind, Rule, access};
use crate::sys::bpf::opcode::*;
use crate::sys::bpf::{Instruction, instruction};

const BLOCK: i32 = 1;
#[cfg(test)]
const CHAR: i32 = 2;

/// Registers: the result, the context, a scratch register, then what the context says.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const SCRATCH: u8 = 2;
const TYPE: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const UNDECIDED: u8 = 6;
/// Both numbers as the kernel's own dev_t has them: 12 bits and 20.
const NUMBERS: u8 = 7;
const MINOR_BITS: i32 = 20;
const MAX_MAJOR: u32 = (1 << 12) - 1;
const MAX_MINOR: u32 = (1 << MINOR_BITS) - 1;

const fn set(register: u8, value: i32) -> Instruction {
    instruction(MOVE_IMMEDIATE, register, 0, 0, value)
}

/// The program for a list of rules.
pub fn device_program(rules: &[Rule]) -> Vec<Instruction> {
    let blocks = decide(rules, Kind::Block);
    let characters = decide(rules, Kind::Char);
    let mut program = vec![
        // access_type: the kind of device below, the wanted accesses above 16 bits.
        instruction(LOAD_WORD, TYPE, CONTEXT, 0, 0),
        instruction(MOVE_REGISTER, UNDECIDED, TYPE, 0, 0),
        instruction(AND32_IMMEDIATE, TYPE, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT32_IMMEDIATE, UNDECIDED, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
        instruction(MOVE_REGISTER, NUMBERS, MAJOR, 0, 0),
        instruction(SHIFT_LEFT32_IMMEDIATE, NUMBERS, 0, 0, MINOR_BITS),
        instruction(OR32_REGISTER, NUMBERS, MINOR, 0, 0),
    ];
    // A jump reaches 32767 instructions, some ten thousand rules; config.json cannot hold as many.
    program.push(instruction(
        JUMP_IF_NOT_EQUAL32,
        TYPE,
        0,
        blocks.len() as i16,
        BLOCK,
    ));
    program.extend(blocks);
    program.extend(characters);
    program
}

/// The part for one kind of device. It ends with a decision in every case: the kernel's verifier
/// takes neither instructions that cannot be reached nor an end without one.
fn decide(rules: &[Rule], kind: Kind) -> Vec<Instruction> {
    let mut part = Vec::new();
    for rule in rules
        .iter()
        .rev()
        .filter(|rule| rule.kind == kind || rule.kind == Kind::Any)
    {
        let (Some(conditions), decision) = (conditions(rule), decision(rule)) else {
            continue;
        };
        let is_last = conditions.is_empty() && rule.access == access::ALL;
        for (index, (register, value)) in conditions.iter().enumerate() {
            // Past the conditions that remain and the decision: to the next rule.
            let skip = (conditions.len() - 1 - index + decision.len()) as i16;
            part.push(instruction(
                JUMP_IF_NOT_EQUAL32,
                *register,
                0,
                skip,
                *value as i32,
            ));
        }
        part.extend(decision);
        if is_last {
            return part;
        }
    }
    part.extend(answer(false));
    part
}

/// The registers that a rule compares, or `None` if no device has its numbers.
fn conditions(rule: &Rule) -> Option<Vec<(u8, u32)>> {
    let too_large = |number: Option<u32>, max: u32| number.is_some_and(|number| number > max);
    if too_large(rule.major, MAX_MAJOR) || too_large(rule.minor, MAX_MINOR) {
        return None;
    }
    Some(match (rule.major, rule.minor) {
        (Some(major), Some(minor)) => vec![(NUMBERS, major << MINOR_BITS | minor)],
        (Some(major), None) => vec![(MAJOR, major)],
        (None, Some(minor)) => vec![(MINOR, minor)],
        (None, None) => Vec::new(),
    })
}

fn decision(rule: &Rule) -> Vec<Instruction> {
    if rule.access == access::ALL {
        return answer(rule.allow).to_vec();
    }
    let [set_result, exit] = answer(rule.allow);
    if rule.allow {
        let others = i32::from(!rule.access & access::ALL);
        return vec![
            instruction(AND32_IMMEDIATE, UNDECIDED, 0, 0, others),
            instruction(JUMP_IF_NOT_EQUAL32, UNDECIDED, 0, 2, 0),
            set_result,
            exit,
        ];
    }
    vec![
        instruction(MOVE_REGISTER, SCRATCH, UNDECIDED, 0, 0),
        instruction(AND32_IMMEDIATE, SCRATCH, 0, 0, i32::from(rule.access)),
        instruction(JUMP_IF_EQUAL32, SCRATCH, 0, 2, 0),
        set_result,
        exit,
    ]
}

const fn answer(allow: bool) -> [Instruction; 2] {
    [set(RESULT, allow as i32), instruction(EXIT, 0, 0, 0, 0)]
}

#[cfg(test)]
#[path = "bpf_tests.rs"]
mod tests;
