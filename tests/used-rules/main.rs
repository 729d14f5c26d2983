//! Runs end-to-end tests and fails if a filter of rvm-vmm's threads allows what no thread needed.
//!
//!   rvm-used-rules COMMAND…
//!
//! `RVM_TEST_ENGINE` names the engine that the command's tests run on. All of an engine's tests are
//! needed to use all that its filters allow, so `scripts/test` calls this. The
//! exit code is the command's, or 3 if that is 0 and a rule was not used.

mod record;
mod types;

use std::collections::BTreeSet;
use std::process::{Command, ExitCode};

use record::{Made, Recorder};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, wait};
use rvm_vmm::jails::{Rule, ThreadKind, When, Why};

/// The exit code if a rule was not used.
const UNUSED: u8 = 3;

/// What a list allows: a call, with one value of one of its arguments if the list names values.
#[derive(Clone, Copy)]
struct Allowed {
    call: u32,
    argument: Option<(u8, u32)>,
    why: Why,
}

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let Some(program) = words.next() else {
        eprintln!("usage: rvm-used-rules COMMAND…");
        return ExitCode::from(2);
    };
    let engine = std::env::var("RVM_TEST_ENGINE").unwrap_or_default();
    let recorder = Recorder::start(&arguments());
    if let Err(error) = &recorder {
        println!("skipped: rvm-used-rules: this host does not record system calls: {error}");
    }
    let mut command = Command::new(program);
    let code = run(command.args(words));
    let Ok(recorder) = recorder else {
        return ExitCode::from(code);
    };
    let made = recorder.made().unwrap();
    if std::env::var_os("RVM_TEST_SHOW").is_some() {
        for one in &made {
            println!("{} {} {:#x}", one.thread, one.call, one.argument);
        }
    }
    let unused = unused(&engine, &made);
    for line in &unused {
        println!("rvm-used-rules: {line}");
    }
    match code {
        0 if !unused.is_empty() => ExitCode::from(UNUSED),
        code => ExitCode::from(code),
    }
}

/// Runs a command to its end, and reaps what it leaves, which stays below this process.
#[expect(
    clippy::zombie_processes,
    reason = "wait(2) reaps every child, this one too"
)]
fn run(command: &mut Command) -> u8 {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let child = command.spawn().unwrap();
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == Pid::from_child(&child) => {
                return status.exit_status().map_or(1, |code| code as u8);
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => panic!("wait: {error}"),
        }
    }
}

/// A line for each thing that is allowed and was not made, though the list says that it is.
fn unused(engine: &str, made: &BTreeSet<Made>) -> Vec<String> {
    let mut lines = BTreeSet::new();
    for kind in ThreadKind::ALL {
        for list in kind.rules() {
            for allowed in list.iter().flat_map(allowed) {
                let reason = match (allowed.why, engine) {
                    (Why::Both(reason), _)
                    | (Why::Kvm(reason), "kvm")
                    | (Why::Qemu(reason), "qemu") => reason,
                    _ => continue,
                };
                let holders: Vec<_> = ThreadKind::ALL
                    .into_iter()
                    .filter(|other| other.rules().into_iter().any(|one| std::ptr::eq(one, list)))
                    .collect();
                let is_used = made.iter().any(|one| {
                    one.call == allowed.call
                        && allowed
                            .argument
                            .is_none_or(|(_, value)| value == one.argument)
                        && holders.iter().any(|kind| is_of(&one.thread, *kind, engine))
                });
                if !is_used {
                    let value = allowed.argument.map(|(_, value)| format!(", {value:#x}"));
                    let value = value.unwrap_or_default();
                    lines.insert(format!(
                        "system call {}{value} is in a list of {holders:?}, and no test on {engine} \
                         has such a thread make it: {reason}",
                        allowed.call
                    ));
                }
            }
        }
    }
    lines.into_iter().collect()
}

/// Whether threads of this name have the filter of this kind.
fn is_of(thread: &str, kind: ThreadKind, engine: &str) -> bool {
    let is_numbered = |prefix| {
        let number = thread.strip_prefix(prefix);
        number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    match (kind, engine) {
        (ThreadKind::Files, _) => ["fs", "fs-slow", "lock"].contains(&thread),
        (ThreadKind::Main, "kvm") => thread == "rvm-vmm",
        // A new vCPU has the filter of the thread that makes it, until it applies its own.
        (ThreadKind::MainWithCpuHotplug, "kvm") => thread == "rvm-vmm" || is_numbered("vcpu"),
        (ThreadKind::Vcpu, "kvm") => is_numbered("vcpu"),
        (ThreadKind::Disk, "kvm") => thread == "disks",
        (ThreadKind::Network, "kvm") => is_numbered("net"),
        (ThreadKind::Vsock, "qemu") => thread == "vsock",
        (ThreadKind::Console, "qemu") => thread == "console",
        // Not the main thread, which has the name of the process that becomes QEMU, too.
        (ThreadKind::VhostUser, "qemu") => {
            ["vsock-qemu", "fs-qemu", "vhost-user"].contains(&thread)
        }
        _ => false,
    }
}

fn allowed(rule: &Rule) -> Vec<Allowed> {
    let call = rule.call as u32;
    let with = |argument| Allowed {
        call,
        argument,
        why: rule.why,
    };
    match rule.when {
        When::OneOf(index, values) => {
            let values = values.iter();
            values
                .map(|&value| with(Some((index, value as u32))))
                .collect()
        }
        When::Always | When::Without(..) => vec![with(None)],
        // The kernel does not trace a call that a filter has answered.
        When::Missing => Vec::new(),
    }
}

/// Which argument of which call the lists name values of.
fn arguments() -> Vec<(u32, u8)> {
    let lists = ThreadKind::ALL.into_iter().flat_map(ThreadKind::rules);
    let rows = lists.flatten().flat_map(allowed);
    let named: BTreeSet<_> = rows
        .filter_map(|row| row.argument.map(|(index, _)| (row.call, index)))
        .collect();
    named.into_iter().collect()
}
