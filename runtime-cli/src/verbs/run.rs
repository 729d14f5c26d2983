//! rvm run

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::bail;
use rvm_sandbox::anchor::PidAnchor;
use rvm_sandbox::checkpoint::Image;
use rvm_sandbox::container::lifecycle;
use rvm_sandbox::guest::descriptors;
use rvm_sandbox::host::timings::Timings;
use rvm_sandbox::monitor::{self, Caller, Mode, Order};
use rvm_sandbox::spec::{Bundle, process};

use super::{block_on, create};
use crate::cli::{Global, RunArgs};

/// Creates and starts a container. Without --detach, this process is its monitor.
pub fn run(global: &Global, args: &RunArgs) -> anyhow::Result<ExitCode> {
    if args.detach {
        detached(global, args)
    } else {
        PidAnchor::with_main_thread(|anchor| foreground(global, args, None, anchor))?
    }
}

fn detached(global: &Global, args: &RunArgs) -> anyhow::Result<ExitCode> {
    if args.timings {
        bail!("--timings needs a container in the foreground; leave --detach away");
    }
    let container = create::create(global, &args.create, None)?;
    if let Err(error) = block_on(lifecycle::start(&container))? {
        block_on(lifecycle::delete(&container, true))??;
        return Err(error.into());
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a container in this process, or lets one go on from a checkpoint.
pub fn foreground(
    global: &Global,
    args: &RunArgs,
    image: Option<Image>,
    anchor: &PidAnchor,
) -> anyhow::Result<ExitCode> {
    if args.create.console_socket.is_some() {
        bail!("cannot use console socket if rvm will not detach or allocate tty");
    }
    let mut timings = Timings::default();
    let config = global.config()?;
    create::check_notify_socket(std::env::var_os("NOTIFY_SOCKET"))?;
    let mut bundle = Bundle::load(&args.create.bundle)?;
    let listening = create::listening_sockets();
    process::set_listen_fds(&mut bundle, listening);
    let extra = descriptors::inherited(listening.saturating_add(args.create.preserve_fds))?;
    let container = lifecycle::prepare(&global.store(), &args.create.id, &bundle)?;
    if let Some(path) = &args.create.pid_file {
        lifecycle::write_pid_file(path, std::process::id())?;
    }
    timings.lap("read the bundle");

    let order = Order {
        container: &container,
        bundle: &bundle,
        config: &config,
        driver: global.driver(),
        caller: Caller {
            console_socket: None,
            pidfd_socket: args.create.pidfd_socket.clone(),
            extra,
            mode: Mode::Foreground,
        },
        anchor,
        image: image.map(Arc::new),
    };
    let result = block_on(monitor::run(order, &mut timings))?;
    if !args.keep || result.is_err() {
        block_on(lifecycle::delete(&container, true))??;
    }
    if let (Some(path), Err(_)) = (&args.create.pid_file, &result) {
        // If it is not there, there is nothing to remove.
        let _ = std::fs::remove_file(path);
    }
    if args.timings {
        write!(std::io::stderr(), "{timings}")?;
    }
    // Threads that copy streams may still wait for input: returning from main ends them.
    Ok(ExitCode::from(result?))
}
