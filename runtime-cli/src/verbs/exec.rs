//! rvm exec

use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;

use anyhow::{Context, bail};
use oci_spec::runtime::Process;
use rustix::fs::MemfdFlags;
use rustix::io::FdFlags;
use rvm_sandbox::container::monitor_process;
use rvm_sandbox::guest::descriptors;
use rvm_sandbox::monitor::exec::{self, Order};
use rvm_sandbox::monitor::{Caller, Mode};
use rvm_sandbox::spec::process::{self, Overrides};

use super::{block_on, create};
use crate::cli::{ExecArgs, ExecMonitorArgs, Global};

/// Executes a program in a running container. Without --detach, this process is the program's
/// monitor.
pub fn run(global: &Global, args: ExecArgs) -> anyhow::Result<ExitCode> {
    let container = global.store().open(&args.id)?;
    let process = match &args.process {
        Some(path) => from_file(&args, path)?,
        None => process::from_bundle(&container.state()?.bundle, overrides(&args)?)?,
    };
    let terminal = process.terminal().unwrap_or(false);
    let console_socket = args.console_socket.as_deref();
    create::check_terminal(terminal, args.detach, console_socket)?;
    if args.detach {
        return detached(global, args, &process);
    }
    let order = Order {
        container: &container,
        process: &process,
        pid_file: args.pid_file,
        ignore_paused: args.ignore_paused,
        cgroup: args.cgroup.as_deref().unwrap_or_default(),
        caller: Caller {
            console_socket: None,
            pidfd_socket: args.pidfd_socket,
            extra: descriptors::inherited(args.preserve_fds)?,
            mode: Mode::Foreground,
        },
    };
    Ok(ExitCode::from(block_on(exec::run(order))??))
}

fn from_file(args: &ExecArgs, path: &std::path::Path) -> anyhow::Result<Process> {
    if !args.command.is_empty() {
        bail!("a command and --process are given; leave one of them away");
    }
    let mut process = process::from_file(path)?;
    if args.tty {
        process.set_terminal(Some(true));
    }
    Ok(process)
}

fn overrides(args: &ExecArgs) -> anyhow::Result<Overrides> {
    if args.command.is_empty() {
        bail!("process args cannot be empty; give a command, or --process");
    }
    Ok(Overrides {
        args: args.command.clone(),
        cwd: args.cwd.clone(),
        env: args.env.clone(),
        terminal: args.tty,
        user: args.user.as_deref().map(user).transpose()?,
        additional_gids: args.additional_gids.clone(),
        capabilities: process::known_capabilities(&args.cap),
        no_new_privileges: args.no_new_privs,
        apparmor_profile: args.apparmor.clone(),
        selinux_label: args.process_label.clone(),
    })
}

/// Reads `UID` or `UID:GID`. Names are known in the image alone, and runc does not take them
/// either.
fn user(text: &str) -> anyhow::Result<(u32, Option<u32>)> {
    let (uid, gid) = match text.split_once(':') {
        Some((uid, gid)) => (uid, Some(gid)),
        None => (text, None),
    };
    let number = |what, text: &str| {
        let parsed = text.parse::<u32>();
        parsed.with_context(|| format!("bad {what} {text:?}: a number is needed"))
    };
    Ok((
        number("uid", uid)?,
        gid.map(|gid| number("gid", gid)).transpose()?,
    ))
}

/// Starts a monitor for the program, and returns when the program runs.
fn detached(global: &Global, args: ExecArgs, process: &Process) -> anyhow::Result<ExitCode> {
    let file = inheritable(process).context("cannot pass the process object on")?;
    // The monitor works in another directory.
    let absolute = |path: Option<std::path::PathBuf>| path.map(std::path::absolute).transpose();
    let monitor = ExecMonitorArgs {
        console_socket: absolute(args.console_socket)?,
        pidfd_socket: absolute(args.pidfd_socket)?,
        pid_file: absolute(args.pid_file)?,
        preserve_fds: args.preserve_fds,
        cgroup: args.cgroup,
        ignore_paused: args.ignore_paused,
        process: file.as_raw_fd(),
        id: args.id,
        ready: 0,
    };
    monitor_process::start_exec_monitor(&[global.arguments(), monitor.to_arguments()].concat())?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the process object to a memory file that a child inherits.
fn inheritable(process: &Process) -> anyhow::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("process", MemfdFlags::CLOEXEC)?;
    std::io::Write::write_all(
        &mut std::fs::File::from(file.try_clone()?),
        &serde_json::to_vec(process)?,
    )?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    rustix::io::fcntl_setfd(&file, FdFlags::empty())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_one_number_or_two() {
        assert_eq!(user("5").unwrap(), (5, None));
        assert_eq!(user("5:6").unwrap(), (5, Some(6)));
        for bad in ["", "root", "5:", "-1", "5:users"] {
            assert!(user(bad).unwrap_err().to_string().contains("bad "), "{bad}");
        }
    }
}
