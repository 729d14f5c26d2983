//! What the program can be asked for on its command line.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, bail};
use rvm_protocol::vmm::{BackendConfig, Channel, Event, MachineConfig, QemuConfig, StopReason};
use serde::de::DeserializeOwned;

use crate::{backend, control, machine, probe, qemu, report};

/// Runs a machine.
pub fn machine() -> anyhow::Result<()> {
    let (channel, config, fds) = configuration::<MachineConfig>()?;
    let reason = match machine::start(&config, fds) {
        Ok(mut machine) => control::run(&mut machine, &channel)?,
        Err(error) => StopReason::Failed {
            reason: report::chain(&error),
        },
    };
    // Nobody hears it if whoever started us is gone.
    let _ = channel.send(&Event::Stopped(reason), &[]);
    // The CPUs and devices are in the middle of something; what they hold goes with the process.
    std::process::exit(0)
}

/// Becomes QEMU.
pub fn qemu() -> anyhow::Result<()> {
    let (channel, config, fds) = configuration::<QemuConfig>()?;
    refuse(&channel, qemu::exec(&config, fds))
}

/// Serves QEMU.
pub fn backend() -> anyhow::Result<()> {
    let (channel, config, fds) = configuration::<BackendConfig>()?;
    refuse(&channel, backend::serve(&config, fds))
}

/// Standard input is the control socket, on which the configuration comes first.
fn configuration<T: DeserializeOwned>() -> anyhow::Result<(Channel, T, Vec<OwnedFd>)> {
    settle();
    report::start(std::env::var_os("RVM_DEBUG").is_some());
    let channel = Channel::new(std::io::stdin().as_fd().try_clone_to_owned()?);
    let (config, fds) = channel
        .receive()
        .context("no configuration on standard input; rvm-vmm is started by rvm, not by hand")?;
    Ok((channel, config, fds))
}

/// Undoes what was inherited, and keeps the C library from giving each thread a heap of its own: the
/// threads allocate little, and a heap is half of a small thread's memory.
#[expect(unsafe_code, reason = "process-wide settings of the C library")]
fn settle() {
    // SAFETY: there is one thread. The set is initialized before it is used, and mallopt takes
    // numbers.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Tells the host why there is nothing to serve.
fn refuse<E: std::error::Error>(channel: &Channel, result: Result<(), E>) -> anyhow::Result<()> {
    if let Err(error) = result {
        let reason = report::chain(&error);
        channel.send(&Event::Stopped(StopReason::Failed { reason }), &[])?;
    }
    Ok(())
}

/// Prints what the host's KVM is good for.
pub fn probe() -> anyhow::Result<()> {
    let line = serde_json::to_string(&probe::run())?;
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}

/// Prints the version.
pub fn version() -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "rvm-vmm {}", env!("CARGO_PKG_VERSION"))?;
    Ok(())
}

/// Refuses an unknown mode.
pub fn usage() -> anyhow::Result<()> {
    report::start(false);
    bail!(
        "usage: rvm-vmm machine | qemu | backend | probe | --version; rvm starts it, nobody needs to by hand"
    )
}
