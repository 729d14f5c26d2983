//! rvm monitor: what `rvm create` leaves behind.

use std::process::ExitCode;

use anyhow::Context;
use rvm_sandbox::anchor::PidAnchor;
use rvm_sandbox::container::monitor_process::Starter;
use rvm_sandbox::guest::descriptors;
use rvm_sandbox::host::timings::Timings;
use rvm_sandbox::monitor::{self, Caller, Mode, Order};
use rvm_sandbox::spec::{Bundle, process};

use super::{block_on, failure};
use crate::cli::{Global, MonitorArgs};

/// Stands for a container until it ends, and ends with its exit code.
pub fn run(global: &Global, args: MonitorArgs) -> anyhow::Result<ExitCode> {
    // Its file was /proc/self/exe when it was executed, and that is no name to find it by.
    rustix::thread::set_name(c"rvm")?;
    let starter = Starter::inherited(args.ready)
        .context("rvm monitor is started by rvm create, not by hand")?;
    let watch = |anchor: &PidAnchor| watch(global, args, Mode::Detached(&starter), anchor);
    let result = PidAnchor::with_main_thread(watch)?;
    match result {
        // The starter prints it. It has gone once the container was created.
        Err(error) if starter.report_failure(failure(&error)).is_ok() => Ok(ExitCode::FAILURE),
        other => other,
    }
}

fn watch(
    global: &Global,
    args: MonitorArgs,
    mode: Mode<'_>,
    anchor: &PidAnchor,
) -> anyhow::Result<ExitCode> {
    // A session of its own: the terminal is the container's, and signals are the engine's to send.
    rustix::process::setsid().context("cannot make a session")?;
    let extra = descriptors::inherited(args.listen_fds.saturating_add(args.preserve_fds))?;
    let config = global.config()?;
    let container = global.store().open(&args.id)?;
    let mut bundle = Bundle::load(&container.state()?.bundle)?;
    process::set_listen_fds(&mut bundle, args.listen_fds);
    // Whatever file system the engine was in may be unmounted meanwhile.
    std::env::set_current_dir("/")?;
    let order = Order {
        container: &container,
        bundle: &bundle,
        config: &config,
        driver: global.driver(),
        caller: Caller {
            console_socket: args.console_socket,
            pidfd_socket: args.pidfd_socket,
            extra,
            mode,
        },
        anchor,
    };
    let status = block_on(monitor::run(order, &mut Timings::default()))??;
    Ok(ExitCode::from(status))
}
