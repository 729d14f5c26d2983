//! rvm create

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use rvm_sandbox::container::{lifecycle, monitor_process};
use rvm_sandbox::spec::Bundle;
use rvm_sandbox::state::Container;

use super::event_loop;
use crate::cli::{CreateArgs, Global, MonitorArgs};

/// Creates a container and leaves it for `rvm start`.
pub fn run(global: &Global, args: &CreateArgs) -> anyhow::Result<ExitCode> {
    create(global, args, None)?;
    Ok(ExitCode::SUCCESS)
}

/// Creates a container whose monitor goes on without this process, or lets one go on from the
/// checkpoint in a directory.
pub fn create(
    global: &Global,
    args: &CreateArgs,
    image_path: Option<PathBuf>,
) -> anyhow::Result<Container> {
    // An error in it is reported before anything is made.
    global.config()?;
    check_notify_socket(std::env::var_os("NOTIFY_SOCKET"))?;
    let bundle = Bundle::load(&args.bundle)?;
    let console_socket = args.console_socket.as_deref();
    check_terminal(bundle.has_terminal(), true, console_socket)?;
    // The monitor works in another directory.
    let absolute = |path: &Option<PathBuf>| path.as_ref().map(std::path::absolute).transpose();
    let monitor = MonitorArgs {
        console_socket: absolute(&args.console_socket)?,
        pidfd_socket: absolute(&args.pidfd_socket)?,
        listen_fds: listening_sockets(),
        preserve_fds: args.preserve_fds,
        image_path,
        id: args.id.clone(),
        ready: 0,
    };
    let events = event_loop()?;
    let container = lifecycle::prepare(&global.store(), &args.id, &bundle)?;
    let arguments = [global.arguments(), monitor.to_arguments()].concat();
    let pid_file = args.pid_file.as_deref();
    events.block_on(monitor_process::start_monitor(
        &container, &arguments, pid_file,
    ))?;
    Ok(container)
}

/// Refuses a detached container whose terminal has no console socket, and a console socket without
/// such a container. The words are runc's.
pub fn check_terminal(
    terminal: bool,
    detach: bool,
    console_socket: Option<&Path>,
) -> anyhow::Result<()> {
    match (terminal && detach, console_socket) {
        (true, None) => {
            bail!("cannot allocate tty if rvm will detach without setting console socket")
        }
        (false, Some(_)) => {
            bail!("cannot use console socket if rvm will not detach or allocate tty")
        }
        _ => Ok(()),
    }
}

/// Refuses NOTIFY_SOCKET: the notifications of sd_notify(3) stay in the container's machine, and a
/// service manager that waits for them would wait in vain.
pub fn check_notify_socket(socket: Option<OsString>) -> anyhow::Result<()> {
    match socket.filter(|socket| !socket.is_empty()) {
        None => Ok(()),
        Some(socket) => bail!(
            "NOTIFY_SOCKET is set, and a container's notifications do not reach {} from its \
             machine; unset it (Type=exec and NotifyAccess=none in a unit of systemd's, \
             --sdnotify=conmon with podman)",
            socket.display()
        ),
    }
}

/// How many sockets were passed to this process for the container to listen on (sd_listen_fds(3)).
pub fn listening_sockets() -> u32 {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    match number("LISTEN_PID") {
        Some(pid) if pid == std::process::id() => number("LISTEN_FDS").unwrap_or(0),
        // They are for another process.
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notify_socket_is_refused() {
        assert!(check_notify_socket(None).is_ok());
        assert!(check_notify_socket(Some("".into())).is_ok());
        let refused = check_notify_socket(Some("/run/notify".into())).unwrap_err();
        assert!(refused.to_string().contains("/run/notify"), "{refused}");
    }

    #[test]
    fn a_terminal_and_a_console_socket_belong_together_when_detached() {
        let socket = Some(Path::new("/s"));
        assert!(check_terminal(true, true, socket).is_ok());
        assert!(check_terminal(true, false, None).is_ok());
        assert!(check_terminal(false, true, None).is_ok());
        assert!(check_terminal(true, true, None).is_err());
        assert!(check_terminal(true, false, socket).is_err());
        assert!(check_terminal(false, true, socket).is_err());
    }
}
