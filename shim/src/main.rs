//! containerd-shim-rvm-v2: serves containerd's tasks and sandboxes from one virtual machine a pod.
//!
//! containerd runs this program in three roles: `start` leaves a daemon behind or finds the pod's,
//! the daemon serves the pod's socket, and `delete` cleans up after a daemon that is gone. The
//! daemon runs it once for each container, as the process that has the container's pid.

// The rooms, bottom first: a room uses those above it in this list, never one below. A test of the
// repository holds that.
mod messages;
mod options;
mod invocation;
mod bundle;
mod rootfs;
mod stdio;
mod events;
mod sandbox_bundle;
mod pod;
mod service;
mod role;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context as _;

use invocation::flags::{Action, Flags};
use invocation::info;
use rvm_sandbox::anchor::stand_in;

fn main() -> ExitCode {
    if std::env::args_os()
        .next()
        .is_some_and(|name| name == stand_in::PROGRAM)
    {
        return match stand_in::run() {
            Ok(()) => ExitCode::SUCCESS,
            // Nobody reads what it says; the shim notices its end.
            Err(_) => ExitCode::FAILURE,
        };
    }
    // Whatever containerd has left open must not reach a machine. The daemon's socket is its
    // standard input.
    let marked = rvm_sys::inherited_fds::close_on_exec_except(&[])
        .context("cannot mark inherited descriptors close-on-exec");
    let flags = marked.and_then(|()| Flags::parse(std::env::args_os().skip(1)));
    match flags.and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows this line to the user.
            let _ = writeln!(std::io::stderr(), "io.containerd.rvm.v2: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: Flags) -> anyhow::Result<()> {
    match flags.action {
        Action::Version => info::print_version(),
        Action::Info => info::print(),
        Action::Start => role::start::run(&flags),
        Action::Delete => role::delete::run(&flags),
        Action::Serve => role::serve::run(&flags),
    }
}
