//! The system calls that each kind of thread may make. Any other call kills the process.
//!
//! A thread applies its filter after its setup, so the calls of the setup (creating threads,
//! entering the jail, creating the machine) are in none of the [`lists`].

mod lists;

use std::io;

use rvm_sys::seccomp::{Architecture, Comparison, Condition, Program, X86_64, install};

use super::{Caps, JailError};
use lists::{
    COMMON, CONSOLE, CPU_HOTPLUG, DISK, EPOLL, FILE_LOCKS, FILES, MAIN, NETWORK, NEW_THREADS,
    PICTURE, VCPU, VHOST_USER, VSOCK,
};

/// A kind of thread, by what it does after its setup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// The control socket and the devices that do not block.
    Main,
    /// As [`Self::Main`], and creates vCPUs, whose threads inherit its filter.
    MainWithCpuHotplug,
    /// Runs a vCPU.
    Vcpu,
    /// virtio-fs.
    Files,
    /// virtio-blk.
    Disk,
    /// virtio-net.
    Network,
    /// vsock, where it has a thread of its own.
    Vsock,
    /// The console's log, likewise.
    Console,
    /// Waits for a vhost-user front end, and talks to it.
    VhostUser,
}

/// A system call that a list allows, and why.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Its number.
    pub call: libc::c_long,
    /// With which arguments.
    pub when: When,
    /// What for.
    pub why: Why,
}

/// The arguments with which a call is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// With any.
    Always,
    /// The argument with this index has one of these values.
    OneOf(u8, &'static [u64]),
    /// The argument with this index has none of these bits.
    Without(u8, u64),
    /// The call fails with ENOSYS, as in a kernel that does not have it.
    Missing,
}

/// What a thread makes the call for, and where the end-to-end tests see it (tests/used-rules).
#[derive(Clone, Copy, Debug)]
pub enum Why {
    /// On each engine.
    Both(&'static str),
    /// On the `kvm` engine.
    Kvm(&'static str),
    /// On the `qemu` engine.
    Qemu(&'static str),
    /// Nowhere: the text says which event or kernel it takes.
    Seldom(&'static str),
}

/// A list, which several kinds of threads can have.
pub type Rules = &'static [Rule];

use When::{Always, Missing, OneOf, Without};

impl ThreadKind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::Main,
        Self::MainWithCpuHotplug,
        Self::Vcpu,
        Self::Files,
        Self::Disk,
        Self::Network,
        Self::Vsock,
        Self::Console,
        Self::VhostUser,
    ];

    /// The lists of what it may call.
    pub fn rules(self) -> Vec<Rules> {
        match self {
            Self::Main => vec![COMMON, EPOLL, MAIN, PICTURE, VSOCK, CONSOLE],
            Self::MainWithCpuHotplug => {
                vec![
                    COMMON,
                    EPOLL,
                    MAIN,
                    PICTURE,
                    VSOCK,
                    CONSOLE,
                    VCPU,
                    NEW_THREADS,
                    CPU_HOTPLUG,
                ]
            }
            Self::Vcpu => vec![COMMON, VCPU],
            Self::Files => vec![COMMON, EPOLL, FILES, FILE_LOCKS, NEW_THREADS],
            Self::Disk => vec![COMMON, EPOLL, DISK],
            Self::Network => vec![COMMON, EPOLL, NETWORK],
            Self::Vsock => vec![COMMON, EPOLL, VSOCK],
            Self::Console => vec![COMMON, CONSOLE],
            // The library creates one of its threads after the filter was applied.
            Self::VhostUser => vec![COMMON, EPOLL, VHOST_USER, NEW_THREADS],
        }
    }

    /// Applies the filter to the calling thread, and to the threads that it creates later. The
    /// thread has no_new_privs, as all do in the jail. Only the file server's threads keep
    /// capabilities, and are root to the files.
    pub fn apply(self) -> Result<(), JailError> {
        self.caps().keep_in_thread()?;
        load(&self.program())
    }

    fn caps(self) -> Caps {
        match self {
            Self::Files => Caps::FileServer,
            _ => Caps::None,
        }
    }

    fn program(self) -> Program {
        let mut calls = Architecture {
            audit: X86_64,
            ..Architecture::default()
        };
        for &Rule { call, when, .. } in self.rules().into_iter().flatten() {
            let rules = calls.calls.entry(call as u32).or_default();
            match when.conditions() {
                None => rules.always = Some(when.action()),
                Some(allowed) => {
                    let allowed = allowed.into_iter();
                    let allowed = allowed.map(|one| (vec![one], libc::SECCOMP_RET_ALLOW));
                    rules.conditional.extend(allowed);
                }
            }
        }
        Program {
            default: libc::SECCOMP_RET_KILL_PROCESS,
            newer: libc::SECCOMP_RET_KILL_PROCESS,
            unknown_architecture: libc::SECCOMP_RET_KILL_PROCESS,
            architectures: vec![calls],
        }
    }
}

/// Applies a filter to the calling thread, and to what it creates and executes.
pub(super) fn load(program: &Program) -> Result<(), JailError> {
    let too_large = || io::Error::from(io::ErrorKind::InvalidInput);
    let instructions = program.assemble().ok_or_else(too_large);
    let installed = instructions.and_then(|code| Ok(install(&code, 0)?));
    installed.map_err(JailError::Filter)
}

impl When {
    fn action(self) -> u32 {
        match self {
            Missing => libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
            Always | OneOf(..) | Without(..) => libc::SECCOMP_RET_ALLOW,
        }
    }

    /// The conditions of which one must hold; None if there are none. Only the low 32 bits of an
    /// argument are compared with a value: the kernel, too, ignores the others.
    fn conditions(self) -> Option<Vec<Condition>> {
        let condition = |argument, mask, value| Condition {
            argument,
            comparison: Comparison::MaskedEqual(mask),
            value,
            lower_half: false,
        };
        match self {
            Always | Missing => None,
            OneOf(argument, values) => {
                let low = u64::from(u32::MAX);
                let one = |&value| condition(argument, low, value);
                Some(values.iter().map(one).collect())
            }
            Without(argument, bits) => Some(vec![condition(argument, bits, 0)]),
        }
    }
}

#[cfg(test)]
mod tests;
