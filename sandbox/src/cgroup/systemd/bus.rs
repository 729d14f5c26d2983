//! A connection to systemd, over the system bus or its own socket. Everything waits; whoever calls
//! has nothing else to do meanwhile.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::wire::{self, Body, FIXED, Message, kind};

/// Where the system bus is, unless `DBUS_SYSTEM_BUS_ADDRESS` says otherwise.
const BUS: &str = "/run/dbus/system_bus_socket";

/// systemd's own socket, where there is no bus.
const PRIVATE: &str = "/run/systemd/private";

/// How long systemd may take to answer, or to finish a job; runc's limit.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The longest line while the connection is set up.
const MAX_LINE: usize = 512;

/// systemd could not be asked, or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// Nobody is there.
    #[error("cannot connect to systemd at {}; without systemd leave --systemd-cgroup away", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The connection broke, or it took too long.
    #[error("cannot talk to systemd")]
    Talk(#[from] io::Error),
    /// An answer that is none.
    #[error("systemd's answer is malformed")]
    Malformed,
    /// It refused.
    #[error("{name}: {message}")]
    Refused {
        /// The error's name.
        name: String,
        /// Its text.
        message: String,
    },
    /// It tried.
    #[error("the job ended with {0:?}")]
    Job(String),
}

/// A connection.
pub struct Bus {
    socket: UnixStream,
    serial: u32,
    /// Behind the socket is systemd itself and no bus.
    is_direct: bool,
    signals: VecDeque<Message>,
}

/// An object of whom to call what.
pub struct Object {
    /// The name on the bus.
    pub destination: &'static str,
    /// The path.
    pub path: &'static str,
    /// The interface.
    pub interface: &'static str,
}

const BUS_ITSELF: Object = Object {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
};

impl Bus {
    /// Connects to the bus, or to systemd itself.
    pub fn connect() -> Result<Self, SystemdError> {
        match address() {
            Some(path) => Self::connect_to(&path, false),
            None => match Self::connect_to(Path::new(BUS), false) {
                Err(SystemdError::Connect { .. }) => Self::connect_to(Path::new(PRIVATE), true),
                connected => connected,
            },
        }
    }

    pub(super) fn connect_to(path: &Path, is_direct: bool) -> Result<Self, SystemdError> {
        let socket = UnixStream::connect(path).map_err(|source| SystemdError::Connect {
            path: path.to_owned(),
            source,
        })?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.set_write_timeout(Some(TIMEOUT))?;
        let mut bus = Self {
            socket,
            serial: 0,
            is_direct,
            signals: VecDeque::new(),
        };
        bus.authenticate()?;
        if !is_direct {
            bus.call(&BUS_ITSELF, "Hello", &Body::default())?;
        }
        Ok(bus)
    }

    /// The kernel tells the other end who we are; this only says that it should look.
    ///
    /// All of it is sent at once, as systemd's own programs do: systemd overlooks a call that has
    /// come together with `BEGIN` until there is another.
    fn authenticate(&mut self) -> Result<(), SystemdError> {
        let uid = rustix::process::getuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.socket
            .write_all(format!("\0AUTH EXTERNAL {hex}\r\nBEGIN\r\n").as_bytes())?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.socket.read_exact(&mut byte)?;
            line.push(byte[0]);
            if line.len() > MAX_LINE {
                return Err(SystemdError::Malformed);
            }
        }
        if !line.starts_with(b"OK") {
            return Err(SystemdError::Refused {
                name: "authentication".to_owned(),
                message: String::from_utf8_lossy(&line).trim_end().to_owned(),
            });
        }
        Ok(())
    }

    /// Asks for a kind of signal, which a bus else does not pass on.
    pub fn listen_to(&mut self, of: &Object, member: &str) -> Result<(), SystemdError> {
        if self.is_direct {
            return Ok(());
        }
        let rule = format!(
            "type='signal',interface='{}',path='{}',member='{member}'",
            of.interface, of.path
        );
        self.call(&BUS_ITSELF, "AddMatch", &Body::default().text(&rule))
            .map(drop)
    }

    /// Calls and waits for the answer.
    pub fn call(
        &mut self,
        object: &Object,
        member: &str,
        body: &Body,
    ) -> Result<Message, SystemdError> {
        self.serial += 1;
        let serial = self.serial;
        let destination = (!self.is_direct).then_some(object.destination);
        let call = wire::call(
            serial,
            destination,
            object.path,
            object.interface,
            member,
            body,
        );
        self.socket.write_all(&call)?;
        loop {
            let message = self.receive()?;
            match message.kind {
                kind::SIGNAL => self.signals.push_back(message),
                kind::RETURN if message.reply_to == Some(serial) => return Ok(message),
                kind::ERROR if message.reply_to == Some(serial) => {
                    let text = message.texts("s").and_then(|mut texts| texts.pop());
                    return Err(SystemdError::Refused {
                        name: message.error,
                        message: text.unwrap_or_default(),
                    });
                }
                _ => {}
            }
        }
    }

    /// The next signal.
    pub fn signal(&mut self) -> Result<Message, SystemdError> {
        if let Some(signal) = self.signals.pop_front() {
            return Ok(signal);
        }
        loop {
            let message = self.receive()?;
            if message.kind == kind::SIGNAL {
                return Ok(message);
            }
        }
    }

    fn receive(&mut self) -> Result<Message, SystemdError> {
        let mut fixed = [0; FIXED];
        self.socket.read_exact(&mut fixed)?;
        let length = wire::length(&fixed).ok_or(SystemdError::Malformed)?;
        let mut bytes = fixed.to_vec();
        bytes.resize(length, 0);
        self.socket.read_exact(&mut bytes[FIXED..])?;
        Message::parse(&bytes).ok_or(SystemdError::Malformed)
    }
}

/// The path in `DBUS_SYSTEM_BUS_ADDRESS`, of the form `unix:path=/…`.
fn address() -> Option<PathBuf> {
    let addresses = std::env::var("DBUS_SYSTEM_BUS_ADDRESS").ok()?;
    addresses.split(';').find_map(|address| {
        let path = address.strip_prefix("unix:path=")?;
        Some(path.split(',').next()?.into())
    })
}
