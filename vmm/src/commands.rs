//! The modes of the program, which are its command line.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, bail};
use rvm_protocol::failure::{Code, Coded, Failure};
use rvm_protocol::vmm::{
    BackendConfig, Channel, ChannelError, Event, MachineConfig, QemuConfig, StopReason,
    TemplateConfig,
};
use serde::de::DeserializeOwned;

use crate::qemu::backend;
use crate::{control, jail, logging, machine, probe, qemu};
use rvm_sys::fault_point;

/// `rvm-vmm machine`: runs a machine on KVM.
pub fn machine() -> anyhow::Result<()> {
    let (channel, config, fds) = receive_configuration::<MachineConfig>()?;
    let reason = match machine::start(&config, fds) {
        Ok(mut machine) => control::run(&mut machine, &channel)?,
        Err(error) => StopReason::Failed(Failure::new(error.code(), logging::error_chain(&error))),
    };
    // This fails only if the host has closed its end.
    let _ = channel.send(&Event::Stopped(reason), &[]);
    // vCPU and device threads still run; the kernel frees what they hold with the process.
    std::process::exit(0)
}

/// `rvm-vmm template`: boots a machine on KVM until its agent is ready, and writes a template.
pub fn template() -> anyhow::Result<()> {
    let (channel, config, fds) = receive_configuration::<TemplateConfig>()?;
    let event = match machine::make(&config, fds) {
        Ok(()) => Event::TemplateSaved,
        Err(error) => {
            let failure = Failure::new(error.code(), logging::error_chain(&error));
            Event::Stopped(StopReason::Failed(failure))
        }
    };
    channel.send(&event, &[])?;
    // As in `machine`.
    std::process::exit(0)
}

/// `rvm-vmm qemu`: enters a jail and executes QEMU.
pub fn qemu() -> anyhow::Result<()> {
    let (channel, config, fds) = receive_configuration::<QemuConfig>()?;
    report_failure(&channel, qemu::exec(&config, fds))
}

/// `rvm-vmm backend`: serves one QEMU.
pub fn backend() -> anyhow::Result<()> {
    let (channel, config, fds) = receive_configuration::<BackendConfig>()?;
    report_failure(&channel, backend::serve(&config, fds))
}

/// Receives the configuration, which is the first packet on standard input, the control socket. All
/// other descriptors come with it; those that the caller has left open are closed.
fn receive_configuration<T: DeserializeOwned>() -> anyhow::Result<(Channel, T, Vec<OwnedFd>)> {
    reset_inherited_state();
    // A heap of its own is half of a small thread's memory.
    rvm_sys::process_memory::share_one_heap();
    close_inherited_descriptors().context("cannot close inherited descriptors")?;
    logging::start(std::env::var_os("RVM_DEBUG").is_some());
    // The first point, from which on the list of passages is open: before there is a jail.
    fault_point!("vmm.begun")?;
    let channel = Channel::new(std::io::stdin().as_fd().try_clone_to_owned()?);
    match channel.receive() {
        Ok((config, fds)) => Ok((channel, config, fds)),
        Err(error @ ChannelError::Version(_)) => {
            // A packet of this version lets the host print the same error.
            report_failure(&channel, Err::<(), _>(&error))?;
            Err(error.into())
        }
        Err(error) => Err(error)
            .context("no configuration on standard input; rvm-vmm is started by rvm, not by hand"),
    }
}

/// Unblocks all signals, which the parent may have blocked.
#[expect(unsafe_code, reason = "a setting of the whole process")]
fn reset_inherited_state() {
    // SAFETY: there is one thread, and the set is initialized before it is used.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

#[expect(unsafe_code, reason = "closes descriptors by number")]
fn close_inherited_descriptors() -> rustix::io::Result<()> {
    // SAFETY: this is the start of the program, which has opened nothing yet.
    unsafe { rvm_sys::inherited_fds::close_all() }
}

/// Sends the host the error of a process that could not serve.
fn report_failure<E: std::error::Error>(
    channel: &Channel,
    result: Result<(), E>,
) -> anyhow::Result<()> {
    if let Err(error) = result {
        let failure = Failure::new(Code::Internal, logging::error_chain(&error));
        channel.send(&Event::Stopped(StopReason::Failed(failure)), &[])?;
    }
    Ok(())
}

/// `rvm-vmm probe`: prints whether the host's KVM can run a kernel.
pub fn probe() -> anyhow::Result<()> {
    let line = serde_json::to_string(&probe::run())?;
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}

/// `rvm-vmm namespace`: prints why a jail's user namespace cannot be made, or nothing.
pub fn namespace() -> anyhow::Result<()> {
    if let Err(error) = jail::try_namespace() {
        writeln!(std::io::stdout(), "{}", logging::error_chain(&error))?;
    }
    Ok(())
}

/// `rvm-vmm --version`
pub fn version() -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "rvm-vmm {}", env!("CARGO_PKG_VERSION"))?;
    Ok(())
}

/// Refuses an unknown mode.
pub fn usage() -> anyhow::Result<()> {
    logging::start(false);
    bail!(
        "usage: rvm-vmm machine | template | qemu | backend | probe | namespace | --version (started by rvm)"
    )
}
