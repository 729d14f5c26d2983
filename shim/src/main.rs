//! containerd-shim-rvm-v2: stands between containerd and the containers of one machine.
//!
//! containerd runs this program in three roles. `start` makes the socket and leaves the daemon
//! behind, or finds the daemon of the pod; the daemon, which is started without an action, serves
//! that socket; `delete` cleans up after a daemon that is gone.

mod cleanup;
mod container;
mod cri;
mod daemon;
mod error;
mod events;
mod flags;
mod info;
mod launch;
mod logger;
mod logging;
mod machine;
mod metrics;
mod options;
mod pause;
mod pod;
mod process;
mod remains;
mod rootfs;
mod sandbox_api;
mod sandbox_files;
mod sandbox_spec;
mod stdio;
mod task_api;
mod uri;

use std::io::Write;
use std::process::ExitCode;

use flags::{Action, Flags};

fn main() -> ExitCode {
    match Flags::parse(std::env::args_os().skip(1)).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows it to the user.
            let _ = writeln!(std::io::stderr(), "io.containerd.rvm.v2: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: Flags) -> anyhow::Result<()> {
    match flags.action {
        Action::Version => info::print_version(),
        Action::Info => info::print(),
        Action::Start => launch::run(&flags),
        Action::Delete => cleanup::run(&flags),
        Action::Serve => daemon::run(&flags),
    }
}
