//! Profiles that hold anything, compiled here and by libseccomp. Both filters run over real values
//! of arguments: what one allows, the other does.

use std::io::{Read as _, Seek as _};

use libseccomp::{ScmpAction, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext};
use oci_spec::runtime::LinuxSeccompArgBuilder;
use rustix::fs::MemfdFlags;
use rvm_fuzz_input::Decisions;
use rvm_sys::seccomp::X32_BIT;

use super::interpreter::run;
use super::*;

/// Calls of all architectures, of one, with a number since Linux 4.3 on i386, in a multiplexer
/// alone there, and of none.
const NAMES: [&str; 24] = [
    "read",
    "write",
    "open",
    "personality",
    "clone",
    "clone3",
    "openat2",
    "mkdir",
    "ioctl",
    "futex",
    "socket",
    "sendto",
    "send",
    "recv",
    "semop",
    "semget",
    "shmat",
    "waitpid",
    "arch_prctl",
    "rt_sigaction",
    "execve",
    "stime",
    "not_yet_invented",
    "landlock_restrict_self",
];

const ACTIONS: [LinuxSeccompAction; 7] = [
    LinuxSeccompAction::ScmpActErrno,
    LinuxSeccompAction::ScmpActAllow,
    LinuxSeccompAction::ScmpActKillProcess,
    LinuxSeccompAction::ScmpActKillThread,
    LinuxSeccompAction::ScmpActTrap,
    LinuxSeccompAction::ScmpActTrace,
    LinuxSeccompAction::ScmpActLog,
];

const OPERATORS: [LinuxSeccompOperator; 7] = [
    LinuxSeccompOperator::ScmpCmpNe,
    LinuxSeccompOperator::ScmpCmpLt,
    LinuxSeccompOperator::ScmpCmpLe,
    LinuxSeccompOperator::ScmpCmpEq,
    LinuxSeccompOperator::ScmpCmpGe,
    LinuxSeccompOperator::ScmpCmpGt,
    LinuxSeccompOperator::ScmpCmpMaskedEq,
];

/// Values around which comparisons change.
const VALUES: [u64; 10] = [
    0,
    1,
    8,
    0x7e02_0000,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    (1 << 32) + 5,
    1 << 63,
    u64::MAX,
];

/// The most rules of a profile that bytes decide on.
const MAX_RULES: u8 = 6;

/// Compares the two filters of a profile. The first byte says whether the others are its JSON.
pub fn profiles(input: &[u8]) {
    let mut decisions = Decisions(input);
    let config = match decisions.choose(4) {
        0 => serde_json::from_slice(decisions.0).ok(),
        _ => Some(profile(&mut decisions)),
    };
    let Some(config) = config else { return };
    let Ok(filter) = compile(&config) else { return };
    let Some(reference) = libseccomps(&config) else {
        return;
    };
    for runnable in &RUNNABLE {
        compare(&config, runnable, &filter.instructions, &reference);
    }
}

fn profile(decisions: &mut Decisions<'_>) -> LinuxSeccomp {
    let mut config = LinuxSeccomp::default();
    config.set_default_action(decisions.pick(&ACTIONS));
    config.set_default_errno_ret(Some(decisions.choose(40).into()).filter(|errno| *errno > 0));
    let listed = decisions.u8();
    let listed = RUNNABLE
        .iter()
        .enumerate()
        .filter(|(bit, _)| listed >> bit & 1 == 1);
    config.set_architectures(Some(listed.map(|(_, runnable)| runnable.name).collect()));
    let rules = (0..decisions.choose(MAX_RULES)).map(|_| rule(decisions));
    config.set_syscalls(Some(rules.collect()));
    config
}

fn rule(decisions: &mut Decisions<'_>) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    let names = 1 + decisions.choose(3);
    rule.set_names(
        (0..names)
            .map(|_| decisions.pick(&NAMES).to_owned())
            .collect(),
    );
    rule.set_action(decisions.pick(&ACTIONS));
    rule.set_errno_ret(Some(decisions.choose(40).into()).filter(|errno| *errno > 0));
    let args = (0..decisions.choose(4)).map(|_| {
        let arg = LinuxSeccompArgBuilder::default().index(decisions.choose(6));
        let arg = arg.op(decisions.pick(&OPERATORS)).value(value(decisions));
        arg.value_two(value(decisions)).build().unwrap()
    });
    let args: Vec<_> = args.collect();
    rule.set_args(Some(args));
    rule
}

fn value(decisions: &mut Decisions<'_>) -> u64 {
    match decisions.choose(4) {
        0 => decisions.u64(),
        1 => decisions.u8().into(),
        _ => decisions.pick(&VALUES),
    }
}

/// The filter that libseccomp makes of a profile, in the way of runc. None where it makes none, or
/// where what it makes is not defined: rules about one call with different actions.
fn libseccomps(config: &LinuxSeccomp) -> Option<Vec<u8>> {
    let default = libseccomps_action(config.default_action(), config.default_errno_ret());
    let mut context = ScmpFilterContext::new(default).ok()?;
    let listed = config.architectures().as_deref().unwrap_or_default();
    for runnable in RUNNABLE
        .iter()
        .filter(|runnable| listed.contains(&runnable.name))
    {
        context.add_arch(runnable.tables).ok()?;
    }
    let rules = config.syscalls().as_deref().unwrap_or_default();
    for (index, rule) in rules.iter().enumerate() {
        let action = libseccomps_action(rule.action(), rule.errno_ret());
        for name in rule.names() {
            let differs = |other: &&LinuxSyscall| {
                let other_action = libseccomps_action(other.action(), other.errno_ret());
                other.names().contains(name) && other_action != action
            };
            if rules[..index].iter().find(differs).is_some() {
                return None;
            }
            let Ok(call) = ScmpSyscall::from_name(name) else {
                continue;
            };
            if action == default {
                continue;
            }
            for conditions in alternatives(rule).ok()? {
                let comparators: Vec<_> = conditions.iter().map(comparator).collect();
                context
                    .add_rule_conditional(action, call, &comparators)
                    .ok()?;
            }
            if rule.args().as_ref().is_none_or(Vec::is_empty) {
                context.add_rule(action, call).ok()?;
            }
        }
    }
    let file = rustix::fs::memfd_create("filter", MemfdFlags::CLOEXEC).unwrap();
    context.export_bpf(&file).ok()?;
    let mut file = std::fs::File::from(file);
    let mut filter = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut filter).unwrap();
    Some(filter)
}

fn libseccomps_action(action: LinuxSeccompAction, errno: Option<u32>) -> ScmpAction {
    let data = errno.unwrap_or(libc::EPERM as u32) as i32;
    match action {
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(data as u16),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(data),
        _ => ScmpAction::KillThread,
    }
}

fn comparator(condition: &Condition) -> ScmpArgCompare {
    let operator = match condition.comparison {
        Comparison::NotEqual => ScmpCompareOp::NotEqual,
        Comparison::Less => ScmpCompareOp::Less,
        Comparison::LessOrEqual => ScmpCompareOp::LessOrEqual,
        Comparison::Equal => ScmpCompareOp::Equal,
        Comparison::GreaterOrEqual => ScmpCompareOp::GreaterEqual,
        Comparison::Greater => ScmpCompareOp::Greater,
        Comparison::MaskedEqual(mask) => ScmpCompareOp::MaskedEqual(mask),
    };
    ScmpArgCompare::new(condition.argument.into(), operator, condition.value)
}

/// Runs both filters over the calls of an architecture that the profile names, and their
/// neighbours, with values around those that it compares.
fn compare(config: &LinuxSeccomp, runnable: &Runnable, ours: &[u8], reference: &[u8]) {
    let rules = config.syscalls().as_deref().unwrap_or_default();
    let names = rules.iter().flat_map(LinuxSyscall::names);
    let number = |name: &String| {
        let call = ScmpSyscall::from_name_by_arch(name, runnable.tables).ok()?;
        u32::try_from(call.as_raw_syscall()).ok()
    };
    let mut numbers: Vec<u32> = names.filter_map(number).collect();
    if runnable.audit == I386 {
        numbers.extend([102, 117, 359, 369]);
        // A condition on an argument that is in memory is dropped by libseccomp, and kept from
        // allowing anything by ours.
        let in_memory = |rule: &LinuxSyscall| {
            let mut names = rule.names().iter();
            names.any(|name| multiplexed::ways(name).is_some())
                && rule.args().as_ref().is_some_and(|args| !args.is_empty())
        };
        if rules.iter().any(in_memory) {
            numbers.retain(|number| ![102, 117].contains(number));
        }
    }
    let is_x32 = matches!(runnable.name, Arch::ScmpArchX32);
    // Newer calls do not exist for ours, and are like all others for libseccomp.
    let newest = newest(config, runnable);
    numbers.extend(
        numbers
            .clone()
            .iter()
            .map(|number| number.saturating_sub(1)),
    );
    numbers.retain(|number| *number <= newest && (*number & X32_BIT != 0) == is_x32);
    let listed = config.architectures().as_deref().unwrap_or_default();
    let is_killed =
        !matches!(runnable.name, Arch::ScmpArchX86_64) && !listed.contains(&runnable.name);
    if is_killed {
        numbers.push(if is_x32 { X32_BIT | 1 } else { 1 });
    }
    for number in numbers {
        for args in arguments(rules, runnable) {
            let (own, theirs) = (
                run(ours, runnable.audit, number, args),
                run(reference, runnable.audit, number, args),
            );
            if own != theirs {
                // libseccomp 2.5.4 is wrong about some sets of rules: in one of the corpus it
                // denies what a rule allows.
                let meant = meant(rules, runnable, number, args);
                let default = action(config.default_action(), config.default_errno_ret());
                let meant = meant.unwrap_or(default.unwrap());
                assert_eq!(own, meant, "{:?} {number} {args:x?}", runnable.name);
            }
        }
    }
}

/// The action of a rule whose conditions hold, if there is one.
fn meant(
    rules: &[LinuxSyscall],
    runnable: &Runnable,
    number: u32,
    args: [u64; 6],
) -> Option<Action> {
    let is_about = |name: &String| {
        let call = ScmpSyscall::from_name_by_arch(name, runnable.tables);
        call.is_ok_and(|call| i64::from(call.as_raw_syscall()) == i64::from(number))
    };
    let bits = if runnable.has_32_bits {
        u32::MAX.into()
    } else {
        u64::MAX
    };
    let holds = |condition: &Condition| {
        let arg = args[usize::from(condition.argument)] & bits;
        let value = condition.value & bits;
        match condition.comparison {
            Comparison::NotEqual => arg != value,
            Comparison::Less => arg < value,
            Comparison::LessOrEqual => arg <= value,
            Comparison::Equal => arg == value,
            Comparison::GreaterOrEqual => arg >= value,
            Comparison::Greater => arg > value,
            Comparison::MaskedEqual(mask) => arg & mask == value,
        }
    };
    let applies = |rule: &&LinuxSyscall| {
        let alternatives = alternatives(rule).unwrap();
        let any_holds = alternatives.iter().any(|all| all.iter().all(holds));
        rule.names().iter().any(is_about) && (alternatives.is_empty() || any_holds)
    };
    let rule = rules.iter().find(applies)?;
    action(rule.action(), rule.errno_ret()).ok()
}

/// The newest call of an architecture that a profile names.
fn newest(config: &LinuxSeccomp, runnable: &Runnable) -> u32 {
    let default = config.default_action();
    if matches!(
        default,
        LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog
    ) {
        return u32::MAX;
    }
    let rules = rules(config, u32::MAX, runnable).unwrap();
    rules.calls.keys().next_back().copied().unwrap_or(0)
}

/// Arguments that are all the same, and those with one that differs from the rest.
fn arguments(rules: &[LinuxSyscall], runnable: &Runnable) -> Vec<[u64; 6]> {
    let args = rules.iter().flat_map(|rule| rule.args().iter().flatten());
    let near = |arg: &LinuxSeccompArg| {
        let (one, two) = (arg.value(), arg.value_two().unwrap_or(0));
        [
            one.wrapping_sub(1),
            one,
            one.wrapping_add(1),
            two,
            one | two,
            one ^ 1 << 32,
        ]
    };
    let mut values: Vec<u64> = args.flat_map(near).chain([0, u64::MAX]).collect();
    if runnable.audit == I386 {
        // The kernel takes 32 bits from a program of i386.
        values.iter_mut().for_each(|value| *value &= 0xffff_ffff);
    }
    values.sort_unstable();
    values.dedup();
    let same = values.iter().map(|value| [*value; 6]);
    let one = values.iter().flat_map(|value| {
        (0..6).map(|at| {
            let mut args = [values[0]; 6];
            args[at] = *value;
            args
        })
    });
    same.chain(one).collect()
}
