//! The main thread of a running machine: the control socket and the devices that do not block.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;
use rvm_protocol::failure::{Code, Coded, Failure};
use rvm_protocol::vmm::{Channel, ChannelError, Event, Request, StopReason};

use crate::fds::borrow_eventfd;
use crate::hotplug::{DiskError, HotplugMemoryError, MemorySizeError, NetError};
use crate::logging::error_chain;
use crate::machine::{CheckpointFiles, Machine, SavedError, Unfinished};
use crate::vcpus::VcpuError;

/// Serves the host until the machine ends, and returns why it ended. The error is
/// [`ChannelError::Closed`] if the host closed the control socket.
pub fn run(machine: &mut Machine, channel: &Channel) -> Result<StopReason, ChannelError> {
    if let Some(refusal) = machine.refusal.take() {
        let failure = Failure::new(Code::FailedPrecondition, error_chain(&refusal));
        channel.send(&Event::TemplateRefused(failure), &[])?;
    }
    channel.send(&Event::Started(Box::new(machine.times.clone())), &[])?;
    loop {
        let ready = wait(machine, channel)?;
        if ready.devices {
            machine
                .main_devices
                .handle_pending()
                .map_err(ChannelError::Socket)?;
            send_reached_size(machine, channel)?;
        }
        if ready.ended
            && let Some(reason) = machine.vcpus.state().stop_reason()
        {
            return Ok(reason);
        }
        if ready.written {
            send_written(machine, channel)?;
        }
        if ready.control
            && let Some(end) = serve(machine, channel)?
        {
            return Ok(end);
        }
    }
}

/// What has come.
#[derive(Default)]
struct Ready {
    devices: bool,
    ended: bool,
    control: bool,
    /// The memory of a checkpoint is written, or cannot be.
    written: bool,
}

/// Waits for something to do.
fn wait(machine: &mut Machine, channel: &Channel) -> Result<Ready, ChannelError> {
    let unfinished = machine.unfinished.as_ref();
    let sources = [
        machine.main_devices.fd(),
        borrow_eventfd(machine.vcpus.state().ended()),
        channel.as_fd(),
        // Without one the socket stands for it.
        unfinished.map_or(channel.as_fd(), Unfinished::fd),
    ];
    let mut fds = sources.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    let left = unfinished.and_then(Unfinished::time_left);
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    let count = match poll(&mut fds, left.as_ref()) {
        Err(Errno::INTR) => return Ok(Ready::default()),
        other => other.map_err(|e| ChannelError::Socket(e.into()))?,
    };
    let [devices, ended, control, written] = fds.map(|fd| !fd.revents().is_empty());
    let ready = Ready {
        devices,
        ended,
        control,
        written: written && unfinished.is_some(),
    };
    if let (0, Some(late)) = (count, machine.unfinished.as_mut()) {
        late.give_up();
    }
    Ok(ready)
}

/// Finishes a checkpoint and sends [`Event::Written`].
fn send_written(machine: &mut Machine, channel: &Channel) -> Result<(), ChannelError> {
    let failure = machine.finish_checkpoint().err().map(|error| {
        let error = RequestError::Save(error);
        Failure::new(error.code(), error_chain(&error))
    });
    channel.send(&Event::Written(failure), &[])
}

/// Receives one request, executes it and sends the answer. Returns why the machine has ended if the
/// request was to end it.
fn serve(machine: &mut Machine, channel: &Channel) -> Result<Option<StopReason>, ChannelError> {
    let mut goes_on = false;
    let answer = match channel.receive::<Request>() {
        Ok((request, fds)) => match execute(machine, &request, fds) {
            Ok(()) if matches!(request, Request::Save { go_on: false, .. }) => {
                return Ok(Some(StopReason::Saved));
            }
            Ok(()) => {
                goes_on = matches!(request, Request::Save { .. });
                Event::Done
            }
            Err(error) => Event::Refused(Failure::new(error.code(), error_chain(&error))),
        },
        Err(ChannelError::Malformed(error)) => {
            Event::Refused(Failure::new(Code::InvalidArgument, error.to_string()))
        }
        Err(error) => return Err(error),
    };
    channel.send(&answer, &[])?;
    if goes_on && machine.unfinished.is_none() {
        // It was written while the machine stood still.
        channel.send(&Event::Written(None), &[])?;
    }
    // The guest may have the requested size already.
    send_reached_size(machine, channel)?;
    Ok(None)
}

/// Sends [`Event::Resized`] once the guest has the memory that was requested.
fn send_reached_size(machine: &mut Machine, channel: &Channel) -> Result<(), ChannelError> {
    match machine.memory.take_reached(&machine.vm) {
        Some(memory_mib) => channel.send(&Event::Resized { memory_mib }, &[]),
        None => Ok(()),
    }
}

/// A request could not be executed.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Vcpus(#[from] VcpuError),
    #[error(transparent)]
    Memory(#[from] MemorySizeError),
    #[error("the request came without its files")]
    NoFiles,
    #[error("cannot save the machine")]
    Save(#[from] SavedError),
    #[error("cannot open the shared files as they were")]
    Files(#[source] SavedError),
    #[error("cannot reset streams")]
    Streams(#[source] io::Error),
}

impl Coded for RequestError {
    fn code(&self) -> Code {
        match self {
            Self::Net(NetError::UnknownCard) | Self::Disk(DiskError::Empty(_)) => Code::NotFound,
            Self::NoFiles
            | Self::Net(NetError::NoTap)
            | Self::Disk(DiskError::NoFile | DiskError::NoSlot(_) | DiskError::Disk(_)) => {
                Code::InvalidArgument
            }
            Self::Net(NetError::NoFreeSlot(_))
            | Self::Disk(DiskError::Occupied(_))
            | Self::Save(SavedError::Busy(_) | SavedError::Devices(_))
            | Self::Vcpus(VcpuError::TooMany { .. })
            | Self::Memory(MemorySizeError::TooMuch { .. }) => Code::FailedPrecondition,
            Self::Memory(MemorySizeError::Memory(HotplugMemoryError::Map(_))) => Code::Unavailable,
            _ => Code::Internal,
        }
    }
}

fn execute(
    machine: &mut Machine,
    request: &Request,
    mut fds: Vec<OwnedFd>,
) -> Result<(), RequestError> {
    let (vm, bus) = (&machine.vm, machine.vcpus.state().bus());
    match *request {
        Request::Pause => machine.vcpus.pause(),
        Request::Resume => machine.vcpus.resume(),
        Request::Resize { vcpus, memory_mib } => {
            machine.memory.resize_to(memory_mib, vm, bus)?;
            machine.vcpus.grow(vm, vcpus)?;
        }
        Request::PlugNet { mac } => machine.nets.plug(vm, bus, mac, fds.pop())?,
        Request::UnplugNet { mac } => machine.nets.unplug(bus, mac)?,
        Request::PlugDisk { slot, ref disk } => {
            let memory = machine.memory.current();
            let plugged = (vm, bus, memory);
            machine.disks.plug(plugged, slot, fds.pop(), disk)?;
        }
        Request::UnplugDisk { slot } => {
            let memory = machine.memory.current();
            machine.disks.unplug((vm, bus, memory), slot)?;
        }
        Request::Save { go_on, has_swap } => {
            let fds: [OwnedFd; 4] = fds.try_into().map_err(|_| RequestError::NoFiles)?;
            let [state, memory, removed, kvm] = fds;
            let files = CheckpointFiles {
                state: state.into(),
                memory: memory.into(),
                removed: removed.into(),
                kvm,
            };
            machine.save(files, go_on, has_swap)?;
        }
        Request::Adopted => {
            machine.restore_files().map_err(RequestError::Files)?;
            machine.drop_streams().map_err(RequestError::Streams)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_have_the_codes_that_the_host_acts_on() {
        let too_many = VcpuError::TooMany { wanted: 9, max: 4 };
        for (error, code) in [
            (NetError::UnknownCard.into(), Code::NotFound),
            (NetError::NoTap.into(), Code::InvalidArgument),
            (
                RequestError::from(NetError::NoFreeSlot(12)),
                Code::FailedPrecondition,
            ),
            (too_many.into(), Code::FailedPrecondition),
        ] {
            assert_eq!(error.code(), code, "{error}");
        }
    }
}
