//! The eBPF program that allows or denies accesses to devices in a container's cgroup.
//!
//! The kernel runs it with a `struct bpf_cgroup_dev_ctx` (`<linux/bpf.h>`) for each access and
//! allows the access if the program returns 1. The program tests the rules from the last to the
//! first. One register holds the accesses that no rule has decided yet: a denying rule about any of
//! them returns 0, an allowing rule clears its own, and when none is left the program returns 1. An
//! access that is undecided after the first rule is denied.
//!
//! Every container loads such a program, and the kernel's verifier walks every path through it:
//! written plainly, with all conditions for each rule, the default rules alone took a million
//! instructions to load. So the program branches for block and character devices at the start,
//! compares a device's two numbers as one, and decides at once by a rule about every access.

use rvm_sys::bpf::Register::{self, R0, R1, R2, R3, R4, R5, R6, R7};
use rvm_sys::bpf::{Assembler, AssemblyError, Label, Program};

use super::device_rules::{Kind, Rule, access};

const BLOCK: i32 = 1;
#[cfg(test)]
const CHAR: i32 = 2;

const RESULT: Register = R0;
const CONTEXT: Register = R1;
const SCRATCH: Register = R2;
const TYPE: Register = R3;
const MAJOR: Register = R4;
const MINOR: Register = R5;
/// The accesses that no rule has decided yet.
const UNDECIDED: Register = R6;
/// Both numbers as the kernel's own dev_t has them: 12 bits and 20.
const NUMBERS: Register = R7;
const MINOR_BITS: i32 = 20;
const MAX_MAJOR: u32 = (1 << 12) - 1;
const MAX_MINOR: u32 = (1 << MINOR_BITS) - 1;

/// The program for a list of rules. Fails for some ten thousand rules, which a jump cannot skip.
pub fn device_program(rules: &[Rule]) -> Result<Program, AssemblyError> {
    let mut program = Assembler::new();
    let characters = program.label();
    program
        // access_type: the kind of device below, the wanted accesses above 16 bits.
        .load_word(TYPE, CONTEXT, 0)
        .move_register(UNDECIDED, TYPE)
        .and32_immediate(TYPE, 0xffff)
        .shift_right32_immediate(UNDECIDED, 16)
        .load_word(MAJOR, CONTEXT, 4)
        .load_word(MINOR, CONTEXT, 8)
        .move_register(NUMBERS, MAJOR)
        .shift_left32_immediate(NUMBERS, MINOR_BITS)
        .or32_register(NUMBERS, MINOR)
        .jump_if_not_equal32(TYPE, BLOCK, characters);
    decide(&mut program, rules, Kind::Block);
    program.place(characters);
    decide(&mut program, rules, Kind::Char);
    program.finish()
}

/// The part for one kind of device. It ends with a decision in every case: the kernel's verifier
/// takes neither instructions that cannot be reached nor an end without one.
fn decide(program: &mut Assembler, rules: &[Rule], kind: Kind) {
    let rules = rules.iter().rev();
    for rule in rules.filter(|rule| rule.kind == kind || rule.kind == Kind::Any) {
        let Some(conditions) = conditions(rule) else {
            continue;
        };
        let next_rule = program.label();
        for (register, value) in &conditions {
            program.jump_if_not_equal32(*register, *value as i32, next_rule);
        }
        apply(program, rule, next_rule);
        if conditions.is_empty() && rule.access == access::ALL {
            return;
        }
        program.place(next_rule);
    }
    answer(program, false);
}

/// The registers that a rule compares, or `None` if no device has its numbers.
fn conditions(rule: &Rule) -> Option<Vec<(Register, u32)>> {
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

/// Applies a rule whose conditions hold: answers, or leaves what is undecided to the next rule.
fn apply(program: &mut Assembler, rule: &Rule, next_rule: Label) {
    if rule.access == access::ALL {
        return answer(program, rule.allow);
    }
    if rule.allow {
        let others = i32::from(!rule.access & access::ALL);
        program
            .and32_immediate(UNDECIDED, others)
            .jump_if_not_equal32(UNDECIDED, 0, next_rule);
    } else {
        program
            .move_register(SCRATCH, UNDECIDED)
            .and32_immediate(SCRATCH, i32::from(rule.access))
            .jump_if_equal32(SCRATCH, 0, next_rule);
    }
    answer(program, rule.allow);
}

fn answer(program: &mut Assembler, allow: bool) {
    program.move_immediate(RESULT, i32::from(allow)).exit();
}

#[cfg(test)]
#[path = "bpf_tests.rs"]
mod tests;
