//! A blocking connection to systemd, over the system bus or systemd's own socket.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::wire::{self, Body, FIXED_HEADER, Message, kind};

/// The system bus, unless `DBUS_SYSTEM_BUS_ADDRESS` names another.
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";

/// systemd's own socket, for hosts without a bus.
const PRIVATE_SOCKET: &str = "/run/systemd/private";

/// The time that systemd has to answer or to finish a job; runc's limit.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The longest line of the authentication, in bytes.
const MAX_LINE: usize = 512;

/// A call of systemd failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum SystemdError {
    #[error("cannot connect to systemd at {}; without systemd leave --systemd-cgroup away", path.display())]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot talk to systemd")]
    Talk(#[from] io::Error),
    #[error("systemd's answer is malformed")]
    Malformed,
    /// An error reply: the D-Bus error's name and text.
    #[error("{name}: {message}")]
    Refused { name: String, message: String },
    /// The result of a job that is not `done`.
    #[error("the job ended with {0:?}")]
    Job(String),
}

/// A connection to systemd.
pub struct Bus {
    socket: UnixStream,
    serial: u32,
    /// The peer is systemd itself, not a bus.
    is_direct: bool,
    signals: VecDeque<Message>,
}

/// The target of a call.
pub struct Object {
    pub destination: &'static str,
    pub path: &'static str,
    pub interface: &'static str,
}

const BUS_DRIVER: Object = Object {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
};

impl Bus {
    /// Connects to the system bus, or to systemd itself where there is no bus.
    pub fn connect() -> Result<Self, SystemdError> {
        match bus_address() {
            Some(path) => Self::connect_to(&path, false),
            None => match Self::connect_to(Path::new(SYSTEM_BUS), false) {
                Err(SystemdError::Connect { .. }) => {
                    Self::connect_to(Path::new(PRIVATE_SOCKET), true)
                }
                connected => connected,
            },
        }
    }

    pub(super) fn connect_to(path: &Path, is_direct: bool) -> Result<Self, SystemdError> {
        let socket = UnixStream::connect(path).map_err(|source| SystemdError::Connect {
            path: path.to_owned(),
            source,
        })?;
        Self::over(socket, is_direct)
    }

    /// Begins to talk over a connected socket.
    pub(super) fn over(socket: UnixStream, is_direct: bool) -> Result<Self, SystemdError> {
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
            bus.call(&BUS_DRIVER, "Hello", &Body::default())?;
        }
        Ok(bus)
    }

    /// Authenticates with EXTERNAL: the peer reads our credentials from the socket.
    ///
    /// All lines go in one message, as systemd's own programs send them: systemd overlooks a call
    /// that arrives together with `BEGIN` until the next one.
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

    /// Subscribes to a signal, which a bus otherwise does not forward.
    pub fn add_match(&mut self, of: &Object, member: &str) -> Result<(), SystemdError> {
        if self.is_direct {
            return Ok(());
        }
        let rule = format!(
            "type='signal',interface='{}',path='{}',member='{member}'",
            of.interface, of.path
        );
        self.call(&BUS_DRIVER, "AddMatch", &Body::default().text(&rule))
            .map(drop)
    }

    /// Calls a method and waits for the reply.
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
        let mut fixed = [0; FIXED_HEADER];
        self.socket.read_exact(&mut fixed)?;
        let length = wire::message_len(&fixed).ok_or(SystemdError::Malformed)?;
        let mut bytes = fixed.to_vec();
        bytes.resize(length, 0);
        self.socket.read_exact(&mut bytes[FIXED_HEADER..])?;
        Message::parse(&bytes).ok_or(SystemdError::Malformed)
    }
}

/// The path in `DBUS_SYSTEM_BUS_ADDRESS`, of the form `unix:path=/…`.
fn bus_address() -> Option<PathBuf> {
    let addresses = std::env::var("DBUS_SYSTEM_BUS_ADDRESS").ok()?;
    addresses.split(';').find_map(|address| {
        let path = address.strip_prefix("unix:path=")?;
        Some(path.split(',').next()?.into())
    })
}
