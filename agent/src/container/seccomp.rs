//! `linux.seccomp`, compiled by libseccomp into the program that the kernel runs.
//!
//! Compiled once a container, in the agent: a filter that cannot be is an error of its creation,
//! and an exec costs nothing. The processes that install it only load the result.

use std::collections::HashMap;
use std::io::{Read as _, Seek as _};

use libseccomp::error::SeccompError;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};
use rustix::fs::MemfdFlags;

use crate::sys::{Doing as _, OsError};

/// What the kernel takes: `SECCOMP_FILTER_FLAG_*` and an array of `struct sock_filter`.
#[derive(Debug)]
pub struct Filter {
    /// Flags for the call that installs it.
    pub flags: u64,
    /// The program.
    pub instructions: Vec<u8>,
}

/// Why a filter cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// A process on the host would have to answer for the kernel.
    #[error("config.json: linux.seccomp: SCMP_ACT_NOTIFY is not supported in the guest")]
    Notify,
    /// An argument's index is out of range.
    #[error("config.json: linux.seccomp: a system call has no argument {0}")]
    Argument(usize),
    /// libseccomp refuses a part of it.
    #[error("config.json: linux.seccomp: {what}: {words}")]
    Library {
        /// The part.
        what: String,
        /// Its words.
        words: String,
    },
    /// The program could not be had from libseccomp.
    #[error(transparent)]
    Os(#[from] OsError),
}

trait What<T> {
    fn what(self, what: impl FnOnce() -> String) -> Result<T, FilterError>;
}

impl<T> What<T> for Result<T, SeccompError> {
    fn what(self, what: impl FnOnce() -> String) -> Result<T, FilterError> {
        self.map_err(|source| FilterError::Library {
            what: what(),
            words: source.to_string(),
        })
    }
}

/// Compiles a filter.
pub fn compile(config: &LinuxSeccomp) -> Result<Filter, FilterError> {
    let default = action(config.default_action(), config.default_errno_ret())?;
    let mut context = ScmpFilterContext::new(default).what(|| "make a filter".to_owned())?;
    let architectures = architectures(config);
    for architecture in &architectures {
        context
            .add_arch(*architecture)
            .what(|| format!("add {architecture:?}"))?;
    }
    for syscall in config.syscalls().iter().flatten() {
        add_syscall(&mut context, syscall, default)?;
    }
    let mut instructions = newer_syscalls_stub(config, &architectures);
    instructions.extend(export(&context)?);
    Ok(Filter {
        flags: flags(config),
        instructions,
    })
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, FilterError> {
    let errno = errno.unwrap_or(libc::EPERM as u32);
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            ScmpAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno as i32),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(errno as u16),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActNotify => return Err(FilterError::Notify),
    })
}

/// The architectures whose programs the guest's kernel runs, the native one first.
const RUNNABLE: [(Arch, ScmpArch); 3] = [
    (Arch::ScmpArchX86_64, ScmpArch::X8664),
    (Arch::ScmpArchX86, ScmpArch::X86),
    (Arch::ScmpArchX32, ScmpArch::X32),
];

/// The native architecture and those of the profile that matter here: some profiles list every
/// one there is, and libseccomp refuses a mixture of byte orders.
fn architectures(config: &LinuxSeccomp) -> Vec<ScmpArch> {
    let listed = config.architectures().as_deref().unwrap_or_default();
    let runnable = RUNNABLE.iter().enumerate();
    runnable
        .filter(|(index, (name, _))| *index == 0 || listed.contains(name))
        .map(|(_, (_, architecture))| *architecture)
        .collect()
}

fn add_syscall(
    context: &mut ScmpFilterContext,
    syscall: &LinuxSyscall,
    default: ScmpAction,
) -> Result<(), FilterError> {
    let action = action(syscall.action(), syscall.errno_ret())?;
    if action == default {
        return Ok(());
    }
    let args = syscall.args().as_deref().unwrap_or_default();
    let compares = args.iter().map(compare).collect::<Result<Vec<_>, _>>()?;
    // Conditions on different arguments must all hold. The kernel's filters cannot say that of
    // several conditions on one argument; as in runc, one of them then suffices.
    let mut seen = [0_usize; 6];
    args.iter().for_each(|arg| seen[arg.index()] += 1);
    let any_suffices = seen.iter().any(|count| *count > 1);
    for name in syscall.names() {
        // A name that libseccomp does not know is of a newer kernel or another architecture.
        let Ok(number) = ScmpSyscall::from_name(name) else {
            continue;
        };
        let what = || format!("add a rule for {name}");
        if compares.is_empty() {
            context.add_rule(action, number).what(what)?;
        } else if any_suffices {
            for compare in &compares {
                context
                    .add_rule_conditional(action, number, &[*compare])
                    .what(what)?;
            }
        } else {
            context
                .add_rule_conditional(action, number, &compares)
                .what(what)?;
        }
    }
    Ok(())
}

fn compare(arg: &LinuxSeccompArg) -> Result<ScmpArgCompare, FilterError> {
    if arg.index() > 5 {
        return Err(FilterError::Argument(arg.index()));
    }
    let (operator, datum) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => (
            ScmpCompareOp::MaskedEqual(arg.value()),
            arg.value_two().unwrap_or(0),
        ),
    };
    Ok(ScmpArgCompare::new(arg.index() as u32, operator, datum))
}

fn export(context: &ScmpFilterContext) -> Result<Vec<u8>, FilterError> {
    let memory = rustix::fs::memfd_create("seccomp", MemfdFlags::CLOEXEC)
        .doing(|| "make a memory file for the seccomp filter")?;
    context
        .export_bpf(&memory)
        .what(|| "compile the filter".to_owned())?;
    let mut file = std::fs::File::from(memory);
    let mut program = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut program))
        .doing(|| "read the seccomp filter")?;
    Ok(program)
}

fn flags(config: &LinuxSeccomp) -> u64 {
    let Some(flags) = config.flags() else {
        // As runc: without a word about it, the filter does not slow the program by switching
        // speculation off.
        return libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    };
    flags.iter().fold(0, |all, flag| {
        all | match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => {
                libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
            }
            // About notifications, which there are none of.
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
        }
    })
}

/// Instructions that answer ENOSYS to system calls newer than any the profile names, before the
/// profile is asked.
///
/// A profile that denies what it does not list was written for the system calls of its day. To a
/// newer one it would answer EPERM, and C libraries fall back to an older call only on ENOSYS.
fn newer_syscalls_stub(config: &LinuxSeccomp, architectures: &[ScmpArch]) -> Vec<u8> {
    let denies = !matches!(
        config.default_action(),
        LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog
    );
    if !denies || config.default_errno_ret() == Some(libc::ENOSYS as u32) {
        return Vec::new();
    }
    let highest = highest_syscalls(config, architectures);
    let mut blocks: Vec<Vec<Instruction>> = Vec::new();
    for (audit, highest) in highest {
        let mut block = vec![
            Instruction {
                code: LOAD,
                jump_true: 0,
                jump_false: 0,
                operand: SYSCALL_NUMBER,
            },
            Instruction {
                code: JUMP_IF_GREATER,
                jump_true: 0,
                jump_false: 1,
                operand: highest,
            },
            Instruction {
                code: RETURN,
                jump_true: 0,
                jump_false: 0,
                operand: RETURN_ENOSYS,
            },
        ];
        if audit == AUDIT_ARCH_X86_64 {
            // x32 has the same architecture and its numbers above this one.
            let skip = block.len() as u8 - 1;
            block.insert(
                1,
                Instruction {
                    code: JUMP_IF_GREATER_OR_EQUAL,
                    jump_true: skip,
                    jump_false: 0,
                    operand: X32_BIT,
                },
            );
        }
        // The jump over the other blocks, and the question whether this one applies.
        let length = block.len() as u8 + 1;
        block.insert(
            0,
            Instruction {
                code: JUMP_IF_EQUAL,
                jump_true: 0,
                jump_false: length,
                operand: audit,
            },
        );
        blocks.push(block);
    }
    assemble(blocks)
}

fn assemble(blocks: Vec<Vec<Instruction>>) -> Vec<u8> {
    if blocks.is_empty() {
        return Vec::new();
    }
    let mut left: usize = blocks.iter().map(|block| block.len() + 1).sum();
    let load = Instruction {
        code: LOAD,
        jump_true: 0,
        jump_false: 0,
        operand: ARCHITECTURE,
    };
    let mut bytes = load.to_bytes().to_vec();
    for block in blocks {
        left -= block.len() + 1;
        let jump = Instruction {
            code: JUMP,
            jump_true: 0,
            jump_false: 0,
            operand: left as u32,
        };
        bytes.extend(block.iter().chain([&jump]).flat_map(|one| one.to_bytes()));
    }
    bytes
}

/// The highest number of a system call that the profile names, by `AUDIT_ARCH_*`.
fn highest_syscalls(config: &LinuxSeccomp, architectures: &[ScmpArch]) -> Vec<(u32, u32)> {
    let mut highest: HashMap<u32, u32> = HashMap::new();
    let names = config
        .syscalls()
        .iter()
        .flatten()
        .flat_map(LinuxSyscall::names);
    let relevant = [
        (ScmpArch::X8664, AUDIT_ARCH_X86_64),
        (ScmpArch::X86, AUDIT_ARCH_I386),
    ];
    let relevant: Vec<_> = relevant
        .into_iter()
        .filter(|(one, _)| architectures.contains(one))
        .collect();
    for name in names {
        for (architecture, audit) in &relevant {
            let number = ScmpSyscall::from_name_by_arch(name, *architecture);
            // Negative numbers stand for calls that the architecture does not have.
            let Some(number) = number
                .ok()
                .and_then(|n| u32::try_from(n.as_raw_syscall()).ok())
            else {
                continue;
            };
            let entry = highest.entry(*audit).or_default();
            *entry = number.max(*entry);
        }
    }
    let mut highest: Vec<_> = highest.into_iter().collect();
    highest.sort_unstable();
    highest
}

/// `struct sock_filter`, and the few codes of classic BPF that are used; see `<linux/filter.h>`.
struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    operand: u32,
}

const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_GREATER: u16 = 0x25;
const JUMP_IF_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const SYSCALL_NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// `<linux/audit.h>`.
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;

const X32_BIT: u32 = 0x4000_0000;
const RETURN_ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

impl Instruction {
    fn to_bytes(&self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&self.code.to_ne_bytes());
        bytes[2] = self.jump_true;
        bytes[3] = self.jump_false;
        bytes[4..].copy_from_slice(&self.operand.to_ne_bytes());
        bytes
    }
}

#[cfg(test)]
#[path = "seccomp_tests.rs"]
mod tests;
