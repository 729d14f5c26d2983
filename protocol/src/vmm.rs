//! The host's conversation with `rvm-vmm`.
//!
//! `rvm-vmm` is started with one end of a seqpacket socket as its standard input. The first packet
//! is a [`MachineConfig`] with every descriptor the machine needs; the VMM opens nothing by path
//! after it has entered its jail. From then on the VMM sends [`Event`]s and obeys [`Request`]s, and
//! ends when the other end closes the socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The most descriptors one packet carries. The kernel's own bound is 253 (SCM_MAX_FD).
pub const MAX_FDS: usize = 64;

/// The largest packet, in bytes. A configuration with [`MAX_FDS`] devices stays far below it.
pub const MAX_PACKET: usize = 64 * 1024;

/// The place of a descriptor among those that came with the configuration, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FdIndex(pub usize);

/// What a machine is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// The process that has started this one and must not be outlived, as the host numbers it.
    pub parent: u32,
    /// Virtual CPUs that the guest's kernel brings up itself.
    pub boot_vcpus: u8,
    /// Virtual CPUs that the guest knows of. Those past `boot_vcpus` are made when the machine
    /// grows, and then wait for the agent to bring them online.
    pub max_vcpus: u8,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// How much memory the machine can be given while it runs, in MiB.
    pub max_memory_mib: u64,
    /// Kernel parameters beyond those the machine itself needs.
    pub cmdline: String,
    /// An ELF kernel for x86-64.
    pub kernel: FdIndex,
    /// A cpio archive, unpacked by the guest's kernel.
    pub initramfs: FdIndex,
    /// Where the guest's console goes: a regular file, opened for writing.
    pub console: FdIndex,
    /// /dev/kvm.
    pub kvm: FdIndex,
    /// The directory served over virtio-fs; it becomes the root of the jail.
    pub shared_dir: PathBuf,
    /// Guest ports that can be reached, each through a listening Unix socket.
    pub vsock: Vec<VsockPort>,
    /// Disks, in the order in which the guest names them: vda, vdb, …
    pub disks: Vec<Disk>,
    /// Network cards, in the order in which the guest names them: eth0, eth1, …
    pub nets: Vec<Net>,
    /// Slots for network cards that are plugged in later. With `nets` at most [`MAX_NETS`].
    pub spare_nets: usize,
}

/// A guest port and the Unix socket that leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockPort {
    /// The port in the guest.
    pub port: u32,
    /// A listening Unix stream socket.
    pub listener: FdIndex,
}

/// A virtio-blk device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// A regular file or block device, open for reading, and for writing unless `read_only`.
    pub file: FdIndex,
    /// The guest may not write.
    pub read_only: bool,
    /// What the guest sees as the disk's serial number, at most 20 bytes.
    pub serial: String,
}

/// The most virtio-net devices of a machine, those that are plugged in later included.
pub const MAX_NETS: usize = 12;

/// A virtio-net device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    /// A TAP with IFF_NO_PI and IFF_VNET_HDR set and headers of [`TAP_HEADER`] bytes. It does not
    /// block.
    pub tap: FdIndex,
    /// Its MAC address.
    pub mac: [u8; 6],
}

/// The length of struct virtio_net_hdr with num_buffers (TUNSETVNETHDRSZ).
pub const TAP_HEADER: usize = 12;

/// What `rvm-vmm qemu` needs in order to become QEMU, in a jail. It sends [`Event::Stopped`] if it
/// cannot; if it can, the control socket closes when QEMU takes over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QemuConfig {
    /// The process that has started this one and must not be outlived, as the host numbers it.
    pub parent: u32,
    /// QEMU's path, the same inside the jail, so below /usr.
    pub program: PathBuf,
    /// Its arguments. The descriptors that came with the configuration have the numbers
    /// [`QEMU_FIRST_FD`] and up.
    pub args: Vec<String>,
    /// The directory served over 9p; /shared inside the jail.
    pub shared_dir: PathBuf,
    /// An empty directory in which the jail's root is put together.
    pub stage_dir: PathBuf,
}

/// The number of the first descriptor that QEMU inherits.
pub const QEMU_FIRST_FD: i32 = 10;

/// Where [`QemuConfig::shared_dir`] lies inside the jail.
pub const QEMU_SHARED_DIR: &str = "/shared";

/// What `rvm-vmm backend` needs to serve QEMU: vsock over vhost-user, and the guest's console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendConfig {
    /// The process that has started this one and must not be outlived, as the host numbers it.
    pub parent: u32,
    /// A listening Unix socket to which QEMU's vhost-user device connects once.
    pub vhost_user: FdIndex,
    /// Guest ports that can be reached, each through a listening Unix socket.
    pub vsock: Vec<VsockPort>,
    /// A connected stream from which the guest's console is read.
    pub console_input: FdIndex,
    /// Where the guest's console goes: a regular file, opened for writing.
    pub console: FdIndex,
    /// A directory over which the jail's empty root is mounted.
    pub stage_dir: PathBuf,
}

/// What the host asks of a running machine. Each is answered with [`Event::Done`] or
/// [`Event::Refused`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Stops the virtual CPUs until [`Request::Resume`].
    Pause,
    /// Lets the virtual CPUs run again.
    Resume,
    /// Changes the machine's size. It is answered when the guest can begin to go along with it; how
    /// far it has come is told by [`Event::Resized`].
    Resize {
        /// Virtual CPUs that are to exist, as far as there are not more already.
        vcpus: u8,
        /// Memory in MiB. What is above that of the start is plugged, what is below goes into the
        /// balloon.
        memory_mib: u64,
    },
    /// Makes a network card of the TAP that comes with the request, see [`Net::tap`].
    PlugNet {
        /// Its MAC address, by which it is unplugged.
        mac: [u8; 6],
    },
    /// Removes the network card with this MAC address.
    UnplugNet {
        /// The address it was made with.
        mac: [u8; 6],
    },
    /// Ends the machine at once.
    Stop,
}

/// What a machine tells the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The virtual CPUs run.
    Started(Box<StartTimes>),
    /// The last request was carried out.
    Done,
    /// The last request could not be carried out.
    Refused {
        /// Why.
        reason: String,
    },
    /// The guest has the memory that the last [`Request::Resize`] asked for. Told once for each.
    Resized {
        /// In MiB.
        memory_mib: u64,
    },
    /// The machine has ended, and the VMM is about to exit.
    Stopped(StopReason),
}

/// Where the time between the configuration's arrival and the first instruction of the guest went,
/// in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartTimes {
    /// Entering the jail.
    pub jail_ns: u64,
    /// Making the machine, its memory and its devices.
    pub machine_ns: u64,
    /// Loading the kernel and the initramfs.
    pub kernel_ns: u64,
    /// Filtering system calls and starting the threads.
    pub threads_ns: u64,
}

/// Why a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// The agent switched it off, or the host asked for it.
    PowerOff,
    /// The guest reset itself. Ours never does so on purpose: it panicked, or worse.
    GuestReset {
        /// The CPU that did and where it was, in a few words.
        place: String,
    },
    /// The VMM met something it cannot go on from.
    Failed {
        /// What, in one line.
        reason: String,
    },
}

/// What `rvm-vmm probe` found out about the host's KVM, printed as one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kvm", rename_all = "kebab-case")]
pub enum ProbeReport {
    /// A machine ran and did everything right, at a speed that only hardware reaches.
    Usable {
        /// How long the machine took from its creation to its end, in nanoseconds.
        nanoseconds: u64,
        /// Instructions a second, in millions.
        mips: u64,
    },
    /// A machine ran, but so slowly that its kernel code must be emulated.
    Slow {
        /// Instructions a second, in millions.
        mips: u64,
    },
    /// A machine was made, but could not execute what a kernel needs.
    Wrong {
        /// What happened, in one line.
        reason: String,
    },
    /// No machine could be made.
    Unavailable {
        /// Why, in one line.
        reason: String,
    },
}

/// A failure of the conversation itself.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket failed.
    #[error("control socket")]
    Socket(#[source] io::Error),
    /// The other end closed the socket.
    #[error("the other end closed the control socket")]
    Closed,
    /// The packet was larger than [`MAX_PACKET`] or carried more than [`MAX_FDS`] descriptors.
    #[error("a packet on the control socket was cut short")]
    Truncated,
    /// The packet is not the message that was expected.
    #[error("malformed message on the control socket")]
    Malformed(#[source] serde_json::Error),
}

/// One end of the conversation.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Two connected ends, closed on exec.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(a), Self(b)))
    }

    /// Takes a connected seqpacket socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Sends one message with the descriptors it refers to.
    pub fn send<T: Serialize>(
        &self,
        message: &T,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        let bytes = serde_json::to_vec(message).map_err(ChannelError::Malformed)?;
        if bytes.len() > MAX_PACKET || fds.len() > MAX_FDS {
            return Err(ChannelError::Truncated);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(ChannelError::Truncated);
        }
        sendmsg(
            &self.0,
            &[IoSlice::new(&bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
        .map_err(|e| ChannelError::Socket(e.into()))?;
        Ok(())
    }

    /// Receives one message and the descriptors that came with it, closed on exec.
    ///
    /// Waits unless the socket does not block; then the error's source is `WouldBlock`.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<(T, Vec<OwnedFd>), ChannelError> {
        let mut bytes = vec![0; MAX_PACKET];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.0,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
        .map_err(|e| ChannelError::Socket(e.into()))?;
        let fds = ancillary
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        if received.bytes == 0 {
            return Err(ChannelError::Closed);
        }
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(ChannelError::Truncated);
        }
        bytes.truncate(received.bytes);
        let message = serde_json::from_slice(&bytes).map_err(ChannelError::Malformed)?;
        Ok((message, fds))
    }

    /// The socket, for whoever waits on it.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (a, b) = Channel::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let sent = Request::Resize {
            vcpus: 2,
            memory_mib: 7,
        };
        a.send(&sent, &[file.as_fd(), file.as_fd()]).unwrap();
        let (request, fds) = b.receive::<Request>().unwrap();
        assert_eq!(request, sent);
        assert_eq!(fds.len(), 2);
    }

    #[test]
    fn a_closed_peer_is_told_from_a_malformed_packet() {
        let (a, b) = Channel::pair().unwrap();
        a.send(&"not a request", &[]).unwrap();
        assert!(matches!(
            b.receive::<Request>(),
            Err(ChannelError::Malformed(_))
        ));
        drop(a);
        assert!(matches!(b.receive::<Request>(), Err(ChannelError::Closed)));
    }

    #[test]
    fn an_oversized_message_is_refused_before_it_is_sent() {
        let (a, _b) = Channel::pair().unwrap();
        let long = "x".repeat(MAX_PACKET);
        assert!(matches!(a.send(&long, &[]), Err(ChannelError::Truncated)));
    }
}
