//! An attacker in the place of `rvm-vmm`: a program that tries to get out of the jail.
//!
//! rvm starts it as it starts `rvm-vmm`, with a configuration and descriptors, and it enters the
//! jail by the same calls. Then it tries what an attacker would try who has taken over `rvm-vmm` or
//! QEMU. It reports how each attempt ended as the reason why the machine does not start.
//!
//!   rvm-escape machine|backend|qemu   in the jail. Only the mode that the program's name holds, as
//!                                     in `escape-qemu`, makes attempts; the others do nothing
//!   rvm-escape free                   without a jail: what works here proves the attempt real
//!
//! host.json, beside the program, names its targets.

mod attempts;
mod calls;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rvm_protocol::failure::{Code, Failure};
use rvm_protocol::vmm::{BackendConfig, Channel, Event, MachineConfig, QemuConfig, StopReason};
use rvm_vmm::jails::{self, ThreadKind};
use serde::de::DeserializeOwned;

use attempts::Host;

type Report = BTreeMap<String, String>;

fn main() {
    let mode = std::env::args().nth(1).unwrap();
    let program = PathBuf::from(std::env::args().next().unwrap());
    let host = Host::read(&program.with_file_name("host.json"));
    if mode == "free" {
        let _directory = std::fs::File::open("/tmp").unwrap();
        let _file = std::fs::File::open(program.with_file_name("host.json")).unwrap();
        println!(
            "{}",
            serde_json::to_string(&attempts::run(&host, attempts::leave_the_hosts_mounts)).unwrap()
        );
        return;
    }
    let channel = Channel::new(io::stdin().as_fd().try_clone_to_owned().unwrap());
    let is_tried = program.to_str().unwrap().ends_with(&mode);
    let report = match (is_tried, mode.as_str()) {
        (false, _) => return wait_for_the_end(&channel),
        (true, "machine") => in_a_machine(&channel, &host),
        (true, "backend") => in_a_backend(&channel, &host),
        (true, _) => in_qemu(&channel, &host),
    };
    let failure = Failure::new(Code::Internal, serde_json::to_string(&report).unwrap());
    let _ = channel.send(&Event::Stopped(StopReason::Failed(failure)), &[]);
}

/// Waits until rvm ends this process.
fn wait_for_the_end(channel: &Channel) {
    let mut received = Vec::new();
    while let Ok(packet) = channel.receive::<serde_json::Value>() {
        received.push(packet);
    }
}

fn configuration<T: DeserializeOwned>(channel: &Channel) -> (T, Vec<OwnedFd>) {
    channel.receive().unwrap()
}

fn in_a_machine(channel: &Channel, host: &Host) -> Report {
    let (config, _fds) = configuration::<MachineConfig>(channel);
    let _own_descriptors = jails::enter_machine(&config).unwrap();
    let mut report = attempts::run(host, || {});
    for kind in [
        ThreadKind::Main,
        ThreadKind::Vcpu,
        ThreadKind::Files,
        ThreadKind::Disk,
        ThreadKind::Network,
    ] {
        report.extend(calls::run(kind));
    }
    report
}

fn in_a_backend(channel: &Channel, host: &Host) -> Report {
    let (config, _fds) = configuration::<BackendConfig>(channel);
    let _own_descriptors = jails::enter_backend(&config).unwrap();
    let mut report = attempts::run(host, || {});
    for kind in [
        ThreadKind::VhostUser,
        ThreadKind::Vsock,
        ThreadKind::Files,
        ThreadKind::Console,
    ] {
        report.extend(calls::run(kind));
    }
    report
}

fn in_qemu(channel: &Channel, host: &Host) -> Report {
    let (config, fds) = configuration::<QemuConfig>(channel);
    jails::enter_qemu(&config, &fds).unwrap();
    attempts::run(host, || {})
}

/// Makes any system call.
#[expect(unsafe_code, reason = "that is what this program is for")]
fn syscall(number: libc::c_long, [a, b, c, d, e]: [libc::c_long; 5]) -> io::Result<()> {
    // SAFETY: addresses among the arguments are 0 or point to live values of the type that the call
    // expects, and the process is about to end.
    match unsafe { libc::syscall(number, a, b, c, d, e) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Does the work in a child process; returns `done`, the error, or the signal.
#[expect(unsafe_code, reason = "fork")]
fn outcome(work: impl FnOnce() -> io::Result<()>) -> String {
    // SAFETY: there is one thread, so the child may do anything.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", io::Error::last_os_error()),
        0 => {
            let code = work().map_or_else(|error| error.raw_os_error().unwrap(), |()| 0);
            // SAFETY: nothing needs to be dropped in this process.
            unsafe { libc::_exit(code) }
        }
        child => {
            let mut status = 0;
            // SAFETY: the status is written to a variable of its type.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            match (libc::WIFSIGNALED(status), libc::WEXITSTATUS(status)) {
                (true, _) if libc::WTERMSIG(status) == libc::SIGSYS => "SIGSYS".to_owned(),
                (true, _) => format!("signal {}", libc::WTERMSIG(status)),
                (false, 0) => "done".to_owned(),
                (false, errno) => io::Error::from_raw_os_error(errno).to_string(),
            }
        }
    }
}
