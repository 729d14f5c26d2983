//! rvm monitor: the process that `rvm create` starts.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use rvm_sandbox::anchor::PidAnchor;
use rvm_sandbox::checkpoint::Image;
use rvm_sandbox::container::monitor_process::Starter;
use rvm_sandbox::guest::descriptors;
use rvm_sandbox::host::timings::Timings;
use rvm_sandbox::monitor::{self, Caller, Mode, Order};
use rvm_sandbox::spec::{Bundle, process};

use super::{block_on, failure};
use crate::cli::{Global, MonitorArgs};

/// Runs a container to its end, and exits with its exit code.
pub fn run(global: &Global, args: MonitorArgs) -> anyhow::Result<ExitCode> {
    // It was executed as /proc/self/exe, so its name would be `exe`.
    rustix::thread::set_name(c"rvm")?;
    let starter = Starter::inherited(args.ready)
        .context("rvm monitor is started by rvm create, not by hand")?;
    let monitor = |anchor: &PidAnchor| monitor(global, args, Mode::Detached(&starter), anchor);
    let thread = PidAnchor::with_main_thread(monitor);
    match thread
        .context("cannot start the monitor's thread")
        .flatten()
    {
        // The starter prints it. It has gone once the container was created.
        Err(error) if starter.report_failure(failure(&error)).is_ok() => Ok(ExitCode::FAILURE),
        other => other,
    }
}

fn monitor(
    global: &Global,
    args: MonitorArgs,
    mode: Mode<'_>,
    anchor: &PidAnchor,
) -> anyhow::Result<ExitCode> {
    // In a session of its own, it gets no signals from the caller's terminal.
    rustix::process::setsid().context("cannot make a session")?;
    let extra = descriptors::inherited(args.listen_fds.saturating_add(args.preserve_fds))?;
    let config = global.config()?;
    let container = global.store().open(&args.id)?;
    let mut bundle = Bundle::load(&container.state()?.bundle)?;
    process::set_listen_fds(&mut bundle, args.listen_fds);
    let image = args.image_path.as_deref().map(Image::open).transpose()?;
    // The file system of the caller's directory may be unmounted while the container runs.
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
        image: image.map(Arc::new),
    };
    let status = block_on(monitor::run(order, &mut Timings::default()))??;
    Ok(ExitCode::from(status))
}
