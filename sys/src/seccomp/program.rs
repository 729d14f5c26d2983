//! A filter as the kernel runs it: classic BPF over `struct seccomp_data`.
//!
//! For each architecture the program looks the system call's number up in a binary tree of ranges,
//! whose leaves are actions, or conditions on arguments that lead to them. libseccomp and
//! seccompiler build a list instead. The kernel runs a program for every number when it is
//! installed: for a profile of the usual size that takes 33 million instructions, as many as the
//! kernel's boot, and every system call of the container walks half of the list.

use std::collections::BTreeMap;

use super::condition::Condition;

/// `SECCOMP_RET_*` with its data.
pub type Action = u32;

/// The rules of one architecture.
#[derive(Clone, Debug, Default)]
pub struct Architecture {
    /// `AUDIT_ARCH_*`
    pub audit: u32,
    /// By system call number.
    pub calls: BTreeMap<u32, Call>,
}

/// The rules about one system call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// Without conditions; overrides the conditional ones, as in libseccomp.
    pub always: Option<Action>,
    /// Conditions that must all hold, and what then happens. The first that matches decides.
    pub conditional: Vec<(Vec<Condition>, Action)>,
}

/// The rules of all architectures.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// For calls without a rule.
    pub default: Action,
    /// For calls newer than any that has a rule.
    pub newer: Action,
    /// For architectures without rules.
    pub unknown_architecture: Action,
    /// The numbers of architectures with one `audit` are disjoint.
    pub architectures: Vec<Architecture>,
}

/// `struct sock_filter` of `<linux/filter.h>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub(super) code: u16,
    pub(super) jump_true: u8,
    pub(super) jump_false: u8,
    pub(super) operand: u32,
}

pub(super) const LOAD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const JUMP: u16 = 0x05;
pub(super) const JUMP_IF_EQUAL: u16 = 0x15;
pub(super) const JUMP_IF_GREATER: u16 = 0x25;
pub(super) const JUMP_IF_GREATER_OR_EQUAL: u16 = 0x35;
pub(super) const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const SYSCALL_NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// `BPF_MAXINSNS`
const MAX_INSTRUCTIONS: usize = 4096;

impl Instruction {
    pub(super) const fn new(code: u16, jump_true: u8, jump_false: u8, operand: u32) -> Self {
        Self {
            code,
            jump_true,
            jump_false,
            operand,
        }
    }

    fn to_bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&self.code.to_ne_bytes());
        bytes[2] = self.jump_true;
        bytes[3] = self.jump_false;
        bytes[4..].copy_from_slice(&self.operand.to_ne_bytes());
        bytes
    }
}

impl Program {
    /// The instructions as bytes, or `None` if they are too many for the kernel.
    pub fn assemble(&self) -> Option<Vec<u8>> {
        let mut code = vec![Instruction::new(LOAD, 0, 0, ARCHITECTURE)];
        let mut by_audit: BTreeMap<u32, BTreeMap<u32, Call>> = BTreeMap::new();
        for architecture in &self.architectures {
            let calls = by_audit.entry(architecture.audit).or_default();
            calls.extend(
                architecture
                    .calls
                    .iter()
                    .map(|(number, call)| (*number, call.clone())),
            );
        }
        for (audit, calls) in &by_audit {
            let mut section = vec![Instruction::new(LOAD, 0, 0, SYSCALL_NUMBER)];
            section.extend(self.tree(&self.ranges(calls)));
            code.push(Instruction::new(JUMP_IF_EQUAL, 1, 0, *audit));
            code.push(Instruction::new(JUMP, 0, 0, section.len() as u32));
            code.extend(section);
        }
        code.push(Instruction::new(RETURN, 0, 0, self.unknown_architecture));
        let fits = code.len() <= MAX_INSTRUCTIONS;
        fits.then(|| code.iter().flat_map(|one| one.to_bytes()).collect())
    }

    /// The first number of each run with the same rules, and those rules.
    fn ranges(&self, calls: &BTreeMap<u32, Call>) -> Vec<(u32, Call)> {
        let plain = |action| Call {
            always: Some(action),
            conditional: Vec::new(),
        };
        let mut ranges: Vec<(u32, Call)> = Vec::new();
        let mut push = |start: u32, call: Call| match ranges.last() {
            Some((_, last)) if *last == call => {}
            _ => ranges.push((start, call)),
        };
        let mut next = 0;
        for (number, call) in calls {
            // The numbers of x32 are far above; those between belong to neither.
            if *number >= X32_BIT && next < X32_BIT {
                push(next, plain(self.newer));
                next = X32_BIT;
            }
            if *number > next {
                push(next, plain(self.default));
            }
            let call = match call.always {
                Some(action) => plain(action),
                None => call.clone(),
            };
            push(*number, call);
            next = number.saturating_add(1);
        }
        push(next, plain(self.newer));
        if !calls.keys().any(|number| number & X32_BIT != 0) {
            push(X32_BIT, plain(self.unknown_architecture));
        }
        ranges
    }

    /// Code that finds the action of the number in the accumulator.
    fn tree(&self, ranges: &[(u32, Call)]) -> Vec<Instruction> {
        let [(_, only)] = ranges else {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let Some((start, _)) = high.first() else {
                return Vec::new();
            };
            let (low, high) = (self.tree(low), self.tree(high));
            let mut code = match u8::try_from(low.len()) {
                Ok(near) => vec![Instruction::new(JUMP_IF_GREATER_OR_EQUAL, near, 0, *start)],
                Err(_) => vec![
                    Instruction::new(JUMP_IF_GREATER_OR_EQUAL, 0, 1, *start),
                    Instruction::new(JUMP, 0, 0, low.len() as u32),
                ],
            };
            code.extend(low);
            code.extend(high);
            return code;
        };
        let mut code = Vec::new();
        for (conditions, action) in &only.conditional {
            code.extend(super::condition::rule(conditions, *action));
        }
        let otherwise = only.always.unwrap_or(self.default);
        code.push(Instruction::new(RETURN, 0, 0, otherwise));
        code
    }
}

/// The bit that x32's numbers have.
pub const X32_BIT: u32 = 0x4000_0000;
