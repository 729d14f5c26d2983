//! rvm exec-monitor: the process that `rvm exec --detach` starts.

use std::fs::File;
use std::io::Read as _;
use std::process::ExitCode;

use anyhow::Context;
use rvm_sandbox::container::monitor_process::Starter;
use rvm_sandbox::guest::descriptors;
use rvm_sandbox::monitor::exec::{self, Order};
use rvm_sandbox::monitor::{Caller, Mode};
use rvm_sandbox::spec::process;

use super::{block_on, failure};
use crate::cli::{ExecMonitorArgs, Global};

/// Runs a process in a container to its end, and exits with its exit code.
pub fn run(global: &Global, args: ExecMonitorArgs) -> anyhow::Result<ExitCode> {
    let starter = Starter::inherited(args.ready)
        .context("rvm exec-monitor is started by rvm exec, not by hand")?;
    let result = monitor(global, args, Mode::Detached(&starter));
    match result {
        // The starter prints it. It has gone once the process ran.
        Err(error) if starter.report_failure(failure(&error)).is_ok() => Ok(ExitCode::FAILURE),
        other => other,
    }
}

fn monitor(global: &Global, args: ExecMonitorArgs, mode: Mode<'_>) -> anyhow::Result<ExitCode> {
    // In a session of its own, it gets no signals from the caller's terminal.
    rustix::process::setsid().context("cannot make a session")?;
    let extra = descriptors::inherited(args.preserve_fds)?;
    let file = descriptors::take(args.process).context("cannot read the process object")?;
    let mut text = Vec::new();
    File::from(file).read_to_end(&mut text)?;
    let process = process::from_checked_json(&text)?;
    let container = global.store().open(&args.id)?;
    // The file system of the caller's directory may be unmounted while the process runs.
    std::env::set_current_dir("/")?;
    let order = Order {
        container: &container,
        process: &process,
        pid_file: args.pid_file,
        ignore_paused: args.ignore_paused,
        cgroup: args.cgroup.as_deref().unwrap_or_default(),
        caller: Caller {
            console_socket: args.console_socket,
            pidfd_socket: args.pidfd_socket,
            extra,
            mode,
        },
    };
    Ok(ExitCode::from(block_on(exec::run(order))??))
}
