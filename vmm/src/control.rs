//! The main thread of a running machine: the control socket and the devices that do not block.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rvm_protocol::vmm::{Channel, ChannelError, Event, Request, StopReason};

use crate::cpus::CpuError;
use crate::machine::Machine;
use crate::nets::NetError;
use crate::size::SizeError;
use crate::{fd, report};

/// Runs until the machine ends, whoever started it goes away, or asks for the end. Returns why.
pub fn run(machine: &mut Machine, channel: &Channel) -> Result<StopReason, ChannelError> {
    channel.send(&Event::Started(Box::new(machine.times.clone())), &[])?;
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(machine.main_devices.fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(fd::borrow(machine.cpus.shared.ended()), PollFlags::IN),
            PollFd::from_borrowed_fd(channel.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            other => _ = other.map_err(|e| ChannelError::Socket(e.into()))?,
        }
        let [devices, ended, control] = fds.map(|fd| !fd.revents().is_empty());
        if devices {
            machine
                .main_devices
                .work(false)
                .map_err(ChannelError::Socket)?;
            tell_size(machine, channel)?;
        }
        if ended && let Some(reason) = machine.cpus.shared.stop_reason() {
            return Ok(reason);
        }
        if control && !serve(machine, channel)? {
            return Ok(StopReason::PowerOff);
        }
    }
}

/// Carries out one request. False if it asks for the end.
fn serve(machine: &mut Machine, channel: &Channel) -> Result<bool, ChannelError> {
    let answer = match channel.receive::<Request>() {
        Ok((Request::Stop, _)) => return Ok(false),
        Ok((request, mut fds)) => match carry_out(machine, request, fds.pop()) {
            Ok(()) => Event::Done,
            Err(error) => Event::Refused {
                reason: report::chain(&error),
            },
        },
        Err(ChannelError::Malformed(error)) => Event::Refused {
            reason: error.to_string(),
        },
        Err(error) => return Err(error),
    };
    channel.send(&answer, &[])?;
    // The guest may have had the size before it was asked for.
    tell_size(machine, channel)?;
    Ok(true)
}

/// Tells the host when the guest has come to have the memory that it was to have.
fn tell_size(machine: &mut Machine, channel: &Channel) -> Result<(), ChannelError> {
    match machine.memory.newly_reached(&machine.vm) {
        Some(memory_mib) => channel.send(&Event::Resized { memory_mib }, &[]),
        None => Ok(()),
    }
}

/// A request cannot be carried out.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    /// Network cards.
    #[error(transparent)]
    Net(#[from] NetError),
    /// CPUs.
    #[error(transparent)]
    Cpus(#[from] CpuError),
    /// Memory.
    #[error(transparent)]
    Size(#[from] SizeError),
}

fn carry_out(
    machine: &mut Machine,
    request: Request,
    fd: Option<OwnedFd>,
) -> Result<(), RequestError> {
    let (vm, bus) = (&machine.vm, machine.cpus.shared.bus());
    match request {
        Request::Pause => machine.cpus.pause(),
        Request::Resume => machine.cpus.shared.resume(),
        Request::Resize { vcpus, memory_mib } => {
            machine.memory.request(memory_mib, vm, bus)?;
            machine.cpus.grow(vm, vcpus)?;
        }
        Request::PlugNet { mac } => machine.nets.plug(vm, bus, mac, fd)?,
        Request::UnplugNet { mac } => machine.nets.unplug(bus, mac)?,
        // Ends the loop that this is called from.
        Request::Stop => {}
    }
    Ok(())
}
