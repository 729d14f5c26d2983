//! A filter as the kernel runs it: classic BPF over `struct seccomp_data`.
//!
//! For each architecture the program looks the system call's number up in a binary tree of ranges,
//! whose leaves are actions, or conditions on arguments that lead to them. libseccomp and
//! seccompiler build a list instead. The kernel runs a program for every number when it is
//! installed: for a profile of the usual size that takes 33 million instructions, as many as the
//! kernel's boot, and every system call of the container walks half of the list.
//!
//! The kernel also compiles the program, which takes as long, by its length. So there are few
//! returns: most leaves are a jump to one.

use std::collections::BTreeMap;

use super::code::{Code, JUMP_IF_EQUAL, JUMP_IF_GREATER_OR_EQUAL, Place};
use super::condition::{self, Condition};

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

/// Offsets in `struct seccomp_data`.
const SYSCALL_NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// `BPF_MAXINSNS`
const MAX_INSTRUCTIONS: usize = 4096;

/// The most single numbers that are compared one by one at the bottom of the tree. To split a range
/// around a number takes two comparisons.
const MAX_SINGLE: usize = 3;

/// What happens to a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict<'a> {
    Always(Action),
    /// As [`Call::conditional`], and else the default.
    Depends(&'a [(Vec<Condition>, Action)]),
}

/// A run of numbers with the same verdict.
#[derive(Clone, Copy)]
struct Range<'a> {
    first: u32,
    verdict: Verdict<'a>,
}

impl Program {
    /// The instructions as bytes, or `None` if they are too many for the kernel.
    pub fn assemble(&self) -> Option<Vec<u8>> {
        let mut by_audit: BTreeMap<u32, Vec<(u32, &Call)>> = BTreeMap::new();
        for architecture in &self.architectures {
            let calls = architecture
                .calls
                .iter()
                .map(|(number, call)| (*number, call));
            by_audit
                .entry(architecture.audit)
                .or_default()
                .extend(calls);
        }
        let mut code = Code::default();
        let mut next = code.finish(self.unknown_architecture);
        for (audit, mut calls) in by_audit {
            calls.sort_unstable_by_key(|(number, _)| *number);
            let ranges = self.ranges(&calls);
            let found = self.tree(&mut code, &ranges, None);
            let found = code.load(SYSCALL_NUMBER, found);
            next = code.branch(JUMP_IF_EQUAL, audit, found, next);
        }
        code.load(ARCHITECTURE, next);
        (code.len() <= MAX_INSTRUCTIONS).then(|| code.to_bytes())
    }

    /// The ranges, from 0 on.
    fn ranges<'a>(&self, calls: &[(u32, &'a Call)]) -> Vec<Range<'a>> {
        let mut ranges: Vec<Range<'a>> = Vec::with_capacity(2 * calls.len() + 2);
        let mut push = |first: u32, verdict: Verdict<'a>| match ranges.last() {
            Some(last) if last.verdict == verdict => {}
            _ => ranges.push(Range { first, verdict }),
        };
        let mut next = 0;
        for (number, call) in calls {
            // The numbers of x32 are far above; those between belong to neither.
            if *number >= X32_BIT && next < X32_BIT {
                push(next, Verdict::Always(self.newer));
                next = X32_BIT;
            }
            if *number > next {
                push(next, Verdict::Always(self.default));
            }
            push(*number, self.verdict(call));
            next = number.saturating_add(1);
        }
        push(next, Verdict::Always(self.newer));
        if !calls.iter().any(|(number, _)| number & X32_BIT != 0) {
            push(X32_BIT, Verdict::Always(self.unknown_architecture));
        }
        ranges
    }

    fn verdict<'a>(&self, call: &'a Call) -> Verdict<'a> {
        match call.always {
            Some(action) => Verdict::Always(action),
            None if call.conditional.is_empty() => Verdict::Always(self.default),
            None => Verdict::Depends(&call.conditional),
        }
    }

    /// Code that finds the verdict on the number in the accumulator, which is in one of these
    /// ranges and below `end`.
    fn tree(&self, code: &mut Code, ranges: &[Range<'_>], end: Option<u32>) -> Place {
        if let Some(common) = all_but_a_few(ranges, end) {
            let otherwise = self.leaf(code, common);
            let others = ranges.iter().rev().filter(|range| range.verdict != common);
            return others.fold(otherwise, |next, range| {
                let found = self.leaf(code, range.verdict);
                code.branch(JUMP_IF_EQUAL, range.first, found, next)
            });
        }
        let (low, high) = ranges.split_at(ranges.len() / 2);
        let first = high.first().map_or(0, |range| range.first);
        let high = self.tree(code, high, end);
        let low = self.tree(code, low, Some(first));
        code.branch(JUMP_IF_GREATER_OR_EQUAL, first, high, low)
    }

    fn leaf(&self, code: &mut Code, verdict: Verdict<'_>) -> Place {
        match verdict {
            Verdict::Always(action) => code.finish(action),
            Verdict::Depends(rules) => {
                let otherwise = code.finish(self.default);
                rules.iter().rev().fold(otherwise, |next, (all, action)| {
                    let holds = code.finish(*action);
                    condition::all(code, all, holds, next)
                })
            }
        }
    }
}

/// The verdict on all numbers of these ranges but a few single ones, if there is one.
fn all_but_a_few<'a>(ranges: &[Range<'a>], end: Option<u32>) -> Option<Verdict<'a>> {
    if ranges.len() > 2 * MAX_SINGLE + 1 {
        return None;
    }
    let ends = ranges.iter().skip(1).map(|next| Some(next.first));
    let with_ends = ranges.iter().zip(ends.chain([end]));
    let is_single = |first, end: Option<u32>| end.and_then(|end| end.checked_sub(first)) == Some(1);
    let wide = with_ends
        .clone()
        .find(|(range, end)| !is_single(range.first, *end));
    let common = wide.or(with_ends.clone().next())?.0.verdict;
    let mut others = with_ends.filter(|(range, _)| range.verdict != common);
    (others.clone().count() <= MAX_SINGLE && others.all(|(range, end)| is_single(range.first, end)))
        .then_some(common)
}

/// The bit that x32's numbers have.
pub const X32_BIT: u32 = 0x4000_0000;
