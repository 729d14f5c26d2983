//! A sandbox's network: the guest gets the contents of a network namespace of the host.
//!
//! A container engine passes a namespace with interfaces, or adds interfaces while the container
//! starts or runs. Each Ethernet interface gets a TAP in the same namespace, and tc redirects every
//! packet between the two (see [`redirect`]). The guest has the interface's addresses and routes;
//! the interface keeps its own, for engines that inspect it, but the host's network stack in that
//! namespace gets no packet.

pub(crate) mod devices;
mod filter;
mod host_dns;
mod inventory;
mod namespace;
mod netlink;
mod nics;
mod redirect;
mod reserved;
mod sysctls;
mod tap;
mod translate;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use namespace::{Namespace, NamespaceSource};

pub(crate) use inventory::{Inventory, Link, Mac};
pub use nics::SavedCard;
pub(crate) use nics::{NicBackend, NicLimits};
pub(crate) use sysctls::add_defaults;

use netlink::Netlink;
use nics::Nic;
use rvm_sys::fault_point;
use rvm_sys::readiness::Readable;

/// A sandbox's network could not be set up or changed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum NetworkError {
    #[error("cannot make a network namespace")]
    Create(#[source] io::Error),
    #[error("cannot open the network namespace {}", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the network namespace {} is the host's own, which a virtual machine cannot share; give \
         the container a network of its own (--network bridge) or none (--network none)",
        .0.display()
    )]
    Host(PathBuf),
    #[error("cannot {action} the sandbox's network namespace")]
    Namespace {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(
        "the interface {0} belongs to another sandbox already; containers that share a network \
         must be in one pod"
    )]
    Taken(String),
    #[error("config.json: linux.netDevices[{device:?}] cannot be moved into the container")]
    Device {
        device: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot connect the interface {link} to the machine: {action}")]
    Connect {
        link: String,
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(
        "the machine has room for {room} network interfaces and the network namespace has {found}"
    )]
    TooManyInterfaces { room: usize, found: usize },
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> NetworkError {
    move |source| NetworkError::Namespace { action, source }
}

/// A namespace, and the machine's NICs that serve its interfaces. Dropping it removes the
/// redirection: packets reach the host's network stack in that namespace again.
#[derive(Debug)]
pub struct Network {
    namespace: Namespace,
    /// The namespace was created for the sandbox.
    is_new: bool,
    netlink: Netlink,
    notifications: OwnedFd,
    nics: Vec<Nic>,
    /// See [`Self::reserve_names`].
    has_reserved_names: bool,
    /// See [`Self::pass_host_dns`].
    passes_host_dns: bool,
}

impl Network {
    /// Creates or opens the namespace. The calling thread stays in its own.
    pub fn open(source: &NamespaceSource) -> Result<Self, NetworkError> {
        let namespace = Namespace::create_or_open(source)?;
        let open = || {
            fault_point!("network.open")?;
            Ok((Netlink::open()?, netlink::open_notifications()?))
        };
        let (mut netlink, notifications) = namespace
            .within(open)
            .and_then(|opened| opened)
            .map_err(failed("read"))?;
        if *source == NamespaceSource::New {
            tap::bring_up_loopback(&mut netlink).map_err(failed("set up"))?;
        }
        Ok(Self {
            namespace,
            is_new: *source == NamespaceSource::New,
            netlink,
            notifications,
            nics: Vec::new(),
            has_reserved_names: false,
            passes_host_dns: false,
        })
    }

    /// Another descriptor of the namespace.
    pub fn namespace(&self) -> Result<Namespace, NetworkError> {
        self.namespace.try_clone().map_err(failed("open"))
    }

    /// Notifications of changes. Must be called within a tokio runtime.
    pub fn changes(&self) -> Result<Changes, NetworkError> {
        let notifications = Readable::new(self.notifications.as_fd());
        notifications.map(Changes).map_err(failed("watch"))
    }

    /// Whether anything may have changed since the last scan or the last call of this.
    pub fn has_changed(&self) -> Result<bool, NetworkError> {
        netlink::drain(self.notifications.as_fd()).map_err(failed("watch"))
    }

    /// Reads the contents of the namespace.
    pub fn scan(&mut self) -> Result<Inventory, NetworkError> {
        self.has_changed()?;
        fault_point!("network.scan").map_err(failed("read"))?;
        Inventory::scan(&mut self.netlink).map_err(failed("read"))
    }
}

/// How long the TAPs of a killed sandbox may outlive it.
const TAP_TIMEOUT: Duration = Duration::from_millis(500);

/// Removes what a killed sandbox has set up in the namespace at this path: packets reach the host's
/// network stack there again. Interfaces of other sandboxes stay as they are.
pub fn restore(path: &Path) -> Result<(), NetworkError> {
    let mut network = Network::open(&NamespaceSource::Path(path.to_owned()))?;
    let mut found = network.scan()?;
    // The processes that hold the TAPs may be about to end.
    let start = Instant::now();
    while !found.served.is_empty() && start.elapsed() < TAP_TIMEOUT {
        std::thread::sleep(DEBOUNCE);
        found = network.scan()?;
    }
    let abandoned = found.links.iter().map(|link| link.index);
    for index in abandoned.filter(|index| !found.served.contains(index)) {
        redirect::remove(&mut network.netlink, index).map_err(failed("tidy up"))?;
    }
    Ok(())
}

/// Waits for changes in a network namespace.
#[derive(Debug)]
pub struct Changes(Readable);

/// The delay between a change and the scan: setting an interface up makes many changes in a row.
const DEBOUNCE: Duration = Duration::from_millis(20);

impl Changes {
    /// Returns [`DEBOUNCE`] after a change. Safe to cancel.
    pub async fn next(&self) -> io::Result<()> {
        self.0.read(peek).await?;
        tokio::time::sleep(DEBOUNCE).await;
        Ok(())
    }
}

/// Leaves the notifications for [`Network::scan`], so that a cancelled wait loses none.
fn peek(socket: BorrowedFd<'_>) -> io::Result<()> {
    let flags = rustix::net::RecvFlags::PEEK;
    match rustix::net::recv(socket, &mut [0; 1], flags) {
        Ok(_) | Err(rustix::io::Errno::NOBUFS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
