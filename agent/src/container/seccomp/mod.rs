//! Compiles `linux.seccomp` into the program that the kernel runs.
//!
//! The agent compiles the filter once per container, so that a bad filter fails CreateContainer and
//! an exec costs nothing; processes only load the result. libseccomp contributes its tables of
//! system calls, and [`rvm_sys::seccomp`] the program.

#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "serves tests and a fuzzer alone")]
pub mod hostile;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "serves tests and a fuzzer alone"
)]
mod interpreter;
mod multiplexed;

use libseccomp::{ScmpArch, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};

use rvm_sys::seccomp::{Action, Architecture, Call, Comparison, Condition, Program, X86_64};

/// A filter for seccomp(2).
#[derive(Debug)]
pub struct Filter {
    /// `SECCOMP_FILTER_FLAG_*`
    pub flags: u64,
    /// An array of `struct sock_filter`.
    pub instructions: Vec<u8>,
}

/// Why a filter cannot be compiled.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The listener would be a process on the host.
    #[error("config.json: linux.seccomp: SCMP_ACT_NOTIFY is not supported in the guest")]
    Notify,
    #[error("config.json: linux.seccomp: a system call has no argument {0}")]
    Argument(usize),
    /// The kernel takes 4096 instructions.
    #[error("config.json: linux.seccomp: the filter is too large for the kernel")]
    TooLarge,
}

/// An architecture whose programs the guest's kernel runs: its name in profiles, in libseccomp's
/// tables and in the kernel.
struct Runnable {
    name: Arch,
    tables: ScmpArch,
    /// `AUDIT_ARCH_*`
    audit: u32,
    /// Whether arguments and the values that they are compared to have 32 bits, as in libseccomp:
    /// a negative number of a profile is meant for both kinds of programs, and what is in the upper
    /// half of a register is no argument of x32's.
    has_32_bits: bool,
}

const I386: u32 = 0x4000_0003;

/// The native one first. Some profiles list every architecture; the kernel never runs the others.
const RUNNABLE: [Runnable; 3] = [
    Runnable {
        name: Arch::ScmpArchX86_64,
        tables: ScmpArch::X8664,
        audit: X86_64,
        has_32_bits: false,
    },
    Runnable {
        name: Arch::ScmpArchX86,
        tables: ScmpArch::X86,
        audit: I386,
        has_32_bits: true,
    },
    Runnable {
        name: Arch::ScmpArchX32,
        tables: ScmpArch::X32,
        audit: X86_64,
        has_32_bits: true,
    },
];

/// Compiles a filter.
pub fn compile(config: &LinuxSeccomp) -> Result<Filter, FilterError> {
    let default = action(config.default_action(), config.default_errno_ret())?;
    let listed = config.architectures().as_deref().unwrap_or_default();
    let architectures = RUNNABLE
        .iter()
        .enumerate()
        .filter(|(index, runnable)| *index == 0 || listed.contains(&runnable.name))
        .map(|(_, runnable)| rules(config, default, runnable))
        .collect::<Result<_, _>>()?;
    let program = Program {
        default,
        newer: newer(config, default),
        unknown_architecture: libc::SECCOMP_RET_KILL_THREAD,
        architectures,
    };
    let instructions = program.assemble().ok_or(FilterError::TooLarge)?;
    Ok(Filter {
        flags: flags(config),
        instructions,
    })
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<Action, FilterError> {
    match action {
        LinuxSeccompAction::ScmpActNotify => Err(FilterError::Notify),
        // The kernel takes sixteen bits.
        action => Ok(action.as_u32(Some(errno.unwrap_or(libc::EPERM as u32) & 0xffff))),
    }
}

/// The action for system calls newer than any that the profile names.
///
/// A profile that denies what it does not list was written for the system calls of its time. It
/// would answer EPERM to a newer one, and C libraries fall back to an older call only on ENOSYS. As
/// runc.
fn newer(config: &LinuxSeccomp, default: Action) -> Action {
    match config.default_action() {
        LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog => default,
        _ if config.syscalls().as_ref().is_none_or(Vec::is_empty) => default,
        _ => libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
    }
}

fn rules(
    config: &LinuxSeccomp,
    default: Action,
    runnable: &Runnable,
) -> Result<Architecture, FilterError> {
    let mut rules = Architecture {
        audit: runnable.audit,
        ..Architecture::default()
    };
    for syscall in config.syscalls().iter().flatten() {
        let action = action(syscall.action(), syscall.errno_ret())?;
        let mut alternatives = alternatives(syscall)?;
        let conditions = alternatives.iter_mut().flatten();
        conditions.for_each(|condition| condition.lower_half = runnable.has_32_bits);
        for name in syscall.names() {
            add(&mut rules, runnable, name, &alternatives, action, default);
        }
    }
    Ok(rules)
}

/// Sets of conditions, of which one must hold as a whole; no set for a rule without conditions.
///
/// Conditions on different arguments must all hold. libseccomp cannot express that for several on
/// one argument; as runc, they are alternatives then.
fn alternatives(syscall: &LinuxSyscall) -> Result<Vec<Vec<Condition>>, FilterError> {
    let args = syscall.args().as_deref().unwrap_or_default();
    let conditions = args.iter().map(condition).collect::<Result<Vec<_>, _>>()?;
    let repeats = |(index, one): (usize, &Condition)| {
        conditions[..index]
            .iter()
            .any(|other| other.argument == one.argument)
    };
    if conditions.iter().enumerate().any(repeats) {
        return Ok(conditions.into_iter().map(|one| vec![one]).collect());
    }
    Ok(if conditions.is_empty() {
        Vec::new()
    } else {
        vec![conditions]
    })
}

fn condition(arg: &LinuxSeccompArg) -> Result<Condition, FilterError> {
    if arg.index() > 5 {
        return Err(FilterError::Argument(arg.index()));
    }
    let (comparison, value) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (Comparison::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (Comparison::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (Comparison::LessOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (Comparison::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (Comparison::GreaterOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (Comparison::Greater, arg.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => (
            Comparison::MaskedEqual(arg.value()),
            arg.value_two().unwrap_or(0),
        ),
    };
    Ok(Condition {
        argument: arg.index() as u8,
        comparison,
        value,
        lower_half: false,
    })
}

fn add(
    rules: &mut Architecture,
    runnable: &Runnable,
    name: &str,
    alternatives: &[Vec<Condition>],
    action: Action,
    default: Action,
) {
    let multiplexed = (runnable.audit == I386)
        .then(|| multiplexed::ways(name))
        .flatten();
    if let Some(ways) = &multiplexed {
        // The multiplexer's other arguments are in memory, where no filter sees them: a rule about
        // them denies the call whatever they are, or allows nothing.
        if action != default && (alternatives.is_empty() || is_stricter(action, default)) {
            let argument = Condition {
                argument: 0,
                comparison: Comparison::Equal,
                value: ways.selector,
                lower_half: true,
            };
            let call = rules.calls.entry(ways.through).or_default();
            call.conditional.push((vec![argument], action));
        }
    }
    let number = match multiplexed {
        Some(ways) => ways.own,
        // libseccomp does not know names of newer kernels, and returns a negative number for calls
        // of other architectures.
        None => ScmpSyscall::from_name_by_arch(name, runnable.tables)
            .ok()
            .and_then(|number| u32::try_from(number.as_raw_syscall()).ok()),
    };
    let Some(number) = number else { return };
    // Also for the default action: the profile knows the call, so it is not newer.
    let call: &mut Call = rules.calls.entry(number).or_default();
    if action == default {
        return;
    }
    if alternatives.is_empty() {
        call.always.get_or_insert(action);
    }
    call.conditional
        .extend(alternatives.iter().map(|all| (all.clone(), action)));
}

/// Whether an action comes before another one in seccomp(2), which lists the strictest first.
fn is_stricter(action: Action, than: Action) -> bool {
    let rank = |action: Action| (action & libc::SECCOMP_RET_ACTION_FULL) as i32;
    rank(action) < rank(than)
}

fn flags(config: &LinuxSeccomp) -> u64 {
    let Some(flags) = config.flags() else {
        // As runc: by default the filter leaves speculation on, which is faster.
        return libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    };
    flags.iter().fold(0, |all, flag| {
        all | match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => {
                libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
            }
            // Concerns notifications, which are refused.
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
        }
    })
}

#[cfg(test)]
mod tests;
