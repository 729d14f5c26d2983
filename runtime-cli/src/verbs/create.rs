//! rvm create

use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;
use rvm_sandbox::lifecycle;
use rvm_sandbox::spec::Bundle;
use rvm_sandbox::state::Container;

use super::block_on;
use crate::cli::{CreateArgs, Global};

/// Creates a container and leaves it for `rvm start`.
pub fn run(global: &Global, args: &CreateArgs) -> anyhow::Result<ExitCode> {
    create(global, args)?;
    Ok(ExitCode::SUCCESS)
}

/// Creates a container whose monitor goes on without this process.
pub fn create(global: &Global, args: &CreateArgs) -> anyhow::Result<Container> {
    // Found out before anything is made.
    global.config()?;
    let bundle = Bundle::load(&args.bundle)?;
    check_terminal(&bundle, args.console_socket.as_deref())?;
    let container = lifecycle::prepare(&global.store(), &args.id, &bundle)?;
    let arguments =
        lifecycle::monitor_arguments(global.arguments(), &args.id, args.console_socket.as_ref());
    let pid_file = args.pid_file.as_deref();
    block_on(lifecycle::start_monitor(&container, &arguments, pid_file))??;
    Ok(container)
}

/// A terminal without anybody at it, or the other way round, is a mistake; the words are runc's.
fn check_terminal(bundle: &Bundle, console_socket: Option<&Path>) -> anyhow::Result<()> {
    let process = bundle.spec.process().as_ref();
    let terminal = process
        .and_then(|process| process.terminal())
        .unwrap_or(false);
    match (terminal, console_socket) {
        (true, None) => {
            bail!("cannot allocate tty if rvm will detach without setting console socket")
        }
        (false, Some(_)) => {
            bail!("cannot use console socket if rvm will not detach or allocate tty")
        }
        _ => Ok(()),
    }
}
