//! What the program can be asked for on its command line.

use std::io::Write;
use std::os::fd::AsFd;

use anyhow::{Context, bail};
use rvm_protocol::vmm::{Channel, Event, MachineConfig, StopReason};

use crate::{control, machine, probe, report};

/// Runs a machine. Standard input is the control socket.
pub fn machine() -> anyhow::Result<()> {
    report::start(std::env::var_os("RVM_DEBUG").is_some());
    let channel = Channel::new(std::io::stdin().as_fd().try_clone_to_owned()?);
    let (config, fds) = channel
        .receive::<MachineConfig>()
        .context("no machine configuration; rvm-vmm is started by rvm, not by hand")?;
    let reason = match machine::start(&config, fds) {
        Ok(machine) => control::run(&machine, &channel)?,
        Err(error) => StopReason::Failed {
            reason: report::chain(&error),
        },
    };
    // Nobody hears it if whoever started us is gone.
    let _ = channel.send(&Event::Stopped(reason), &[]);
    // The CPUs and devices are in the middle of something; what they hold goes with the process.
    std::process::exit(0)
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
    bail!("usage: rvm-vmm machine | probe | --version; rvm starts it, nobody needs to by hand")
}
