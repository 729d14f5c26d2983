//! The network of a sandbox: what is in a network namespace of the host becomes the guest's.
//!
//! An engine hands a namespace with interfaces in it, or fills one while the container starts or
//! runs. Each Ethernet interface gets a TAP beside it in the namespace, and every packet is passed
//! on between the two (see [`redirect`]), so that whatever the host sends there arrives in the
//! guest. The interface keeps its addresses, for engines that look; the guest has the same, and
//! the same routes. Packets never reach the host's own network in that namespace.

mod answers;
mod cards;
mod filter;
mod found;
mod namespace;
mod netlink;
mod objects;
mod redirect;
mod settings;
mod tap;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use cards::Room;
pub use found::{Found, Link, Mac};
pub use namespace::{Namespace, Wanted};
pub use settings::add_defaults;

use cards::Card;
use netlink::Netlink;
use rvm_sys::readiness::Readable;

/// The network of a sandbox cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A new namespace.
    #[error("cannot make a network namespace")]
    Make(#[source] io::Error),
    /// An existing one.
    #[error("cannot open the network namespace {}", path.display())]
    Open {
        /// Where it is.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The host's own.
    #[error(
        "the network namespace {} is the host's own, which a virtual machine cannot share; give \
         the container a network of its own (--network bridge) or none (--network none)",
        .0.display()
    )]
    Host(PathBuf),
    /// The namespace cannot be entered or read.
    #[error("cannot {action} the sandbox's network namespace")]
    Namespace {
        /// What was tried.
        action: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// Another sandbox has the interface.
    #[error(
        "the interface {0} belongs to another sandbox already; containers that share a network \
         must be in one pod"
    )]
    Taken(String),
    /// A TAP, or the way to it.
    #[error("cannot connect the interface {link} to the machine: {action}")]
    Connect {
        /// The interface's name.
        link: String,
        /// What was tried.
        action: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// There are too many.
    #[error(
        "the machine has room for {room} network interfaces and the network namespace has {found}"
    )]
    Room {
        /// What the engine allows.
        room: usize,
        /// What there is.
        found: usize,
    },
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> NetworkError {
    move |source| NetworkError::Namespace { action, source }
}

/// A network card of the machine.
#[derive(Debug)]
pub struct NetCard {
    /// The TAP behind it.
    pub tap: File,
    /// Its MAC address.
    pub mac: Mac,
}

/// A namespace, and the machine's cards that serve its interfaces. When it is dropped, packets go to
/// the host's own network in that namespace again.
#[derive(Debug)]
pub struct Network {
    namespace: Namespace,
    /// Whether it was made for the sandbox.
    is_new: bool,
    netlink: Netlink,
    notifications: OwnedFd,
    cards: Vec<Card>,
    /// Whether the host gets the answers to what it asks.
    host_asks: bool,
}

impl Network {
    /// Makes or opens the namespace. The calling thread stays where it is.
    pub fn take(wanted: &Wanted) -> Result<Self, NetworkError> {
        let namespace = Namespace::take(wanted)?;
        let open = || Ok((Netlink::open()?, netlink::open_notifications()?));
        let (mut netlink, notifications) = namespace
            .within(open)
            .and_then(|opened| opened)
            .map_err(failed("read"))?;
        if *wanted == Wanted::New {
            tap::bring_up_loopback(&mut netlink).map_err(failed("set up"))?;
        }
        Ok(Self {
            namespace,
            is_new: *wanted == Wanted::New,
            netlink,
            notifications,
            cards: Vec::new(),
            host_asks: false,
        })
    }

    /// Another descriptor of the namespace.
    pub fn namespace(&self) -> Result<Namespace, NetworkError> {
        self.namespace.try_clone().map_err(failed("open"))
    }

    /// What tells of changes. Called within a tokio runtime.
    pub fn changes(&self) -> Result<Changes, NetworkError> {
        let notifications = Readable::new(self.notifications.as_fd());
        notifications.map(Changes).map_err(failed("watch"))
    }

    /// Whether anything may have changed since the last look, or the last time this was asked.
    pub fn has_changed(&self) -> Result<bool, NetworkError> {
        netlink::drain(self.notifications.as_fd()).map_err(failed("watch"))
    }

    /// Looks at what is there.
    pub fn look(&mut self) -> Result<Found, NetworkError> {
        self.has_changed()?;
        Found::look(&mut self.netlink).map_err(failed("read"))
    }
}

/// How long the TAPs of a sandbox that was killed may outlive it.
const TAP_LIMIT: Duration = Duration::from_millis(500);

/// Undoes what a sandbox that was killed has done to the namespace at this path: packets go to the
/// host's own network there again. Interfaces of other sandboxes are left alone.
pub fn restore(path: &Path) -> Result<(), NetworkError> {
    let mut network = Network::take(&Wanted::Path(path.to_owned()))?;
    let mut found = network.look()?;
    // The processes that hold them may be about to end.
    let start = Instant::now();
    while !found.taken.is_empty() && start.elapsed() < TAP_LIMIT {
        std::thread::sleep(PAUSE);
        found = network.look()?;
    }
    let abandoned = found.links.iter().map(|link| link.index);
    for index in abandoned.filter(|index| !found.taken.contains(index)) {
        redirect::remove(&mut network.netlink, index).map_err(failed("tidy up"))?;
    }
    Ok(())
}

/// Waits for changes in a network namespace.
#[derive(Debug)]
pub struct Changes(Readable);

/// How long a change may be followed by another before it is looked at. Whoever sets an interface up
/// makes many in a row.
const PAUSE: Duration = Duration::from_millis(20);

impl Changes {
    /// Returns some time after something has changed. May be given up and called again.
    pub async fn next(&self) -> io::Result<()> {
        self.0.read(wait_for_some).await?;
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}

/// Leaves what there is to [`Network::look`], so that nothing is lost if the wait is given up.
fn wait_for_some(socket: BorrowedFd<'_>) -> io::Result<()> {
    let flags = rustix::net::RecvFlags::PEEK;
    match rustix::net::recv(socket, &mut [0; 1], flags) {
        Ok(_) | Err(rustix::io::Errno::NOBUFS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
