//! rvm run

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use rvm_sandbox::anchor::PidAnchor;
use rvm_sandbox::checkpoint::Image;
use rvm_sandbox::container::lifecycle;
use rvm_sandbox::guest::descriptors;
use rvm_sandbox::host::timings::Timings;
use rvm_sandbox::monitor::{self, Caller, Mode, Order};
use rvm_sandbox::spec::{Bundle, process};

use super::{create, event_loop};
use crate::cli::{Global, RunArgs};

/// Creates and starts a container. Without --detach, this process is its monitor.
pub fn run(global: &Global, args: &RunArgs) -> anyhow::Result<ExitCode> {
    if args.detach {
        detached(global, args)
    } else {
        monitored(|anchor| foreground(global, args, None, anchor))
    }
}

/// Has this process's main thread stand for a container.
pub fn monitored(
    work: impl FnOnce(&PidAnchor) -> anyhow::Result<ExitCode> + Send,
) -> anyhow::Result<ExitCode> {
    let done = PidAnchor::with_main_thread(work);
    done.context("cannot start the monitor's thread").flatten()
}

fn detached(global: &Global, args: &RunArgs) -> anyhow::Result<ExitCode> {
    if args.timings {
        bail!("--timings needs a container in the foreground; leave --detach away");
    }
    let events = event_loop()?;
    let container = create::create(global, &args.create, None)?;
    events.block_on(async {
        let started = lifecycle::start(&container).await;
        if started.is_err() {
            lifecycle::give_up(&container).await;
        }
        Ok(started.map(|()| ExitCode::SUCCESS)?)
    })
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
    let events = event_loop()?;
    let container = lifecycle::prepare(&global.store(), &args.create.id, &bundle)?;
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
    let pid_file = args.create.pid_file.as_deref();
    let result = events.block_on(async {
        let written = pid_file.map_or(Ok(()), |path| {
            lifecycle::write_pid_file(path, std::process::id())
        });
        let result = match written {
            Ok(()) => monitor::run(order, &mut timings).await.map_err(Into::into),
            Err(error) => Err(anyhow::Error::from(error)),
        };
        match result {
            Err(_) => lifecycle::give_up(&container).await,
            Ok(_) if args.keep => {}
            Ok(_) => lifecycle::delete(&container, true).await?,
        }
        result
    });
    if let (Some(path), Err(_)) = (pid_file, &result) {
        // If it is not there, there is nothing to remove.
        let _ = std::fs::remove_file(path);
    }
    if args.timings {
        write!(std::io::stderr(), "{timings}")?;
    }
    // Threads that copy streams may still wait for input: returning from main ends them.
    Ok(ExitCode::from(result?))
}
