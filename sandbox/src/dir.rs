//! A sandbox's directory: the sockets that lead to its guest, the shared directory, the console's
//! log, and sandbox.json, the record of the processes that run the machine.
//!
//! It is the state directory of the container that the sandbox was made for. Containers that join
//! the sandbox have state directories of their own, and use this one to reach the guest.

pub mod layout;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::Spec;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use rvm_protocol::{AGENT_PORT, ContainerId, STREAM_PORT};
use rvm_sys::fault_point;
use serde::{Deserialize, Serialize};

use self::layout::Layout;
use crate::config::EngineKind;
use crate::host::process::ProcessId;
use crate::host::whole_file;
use crate::share::{self, SHARED, SharedMount, StorageError};

/// The guest ports that have a Unix socket, and the names of the sockets in the directory.
const SOCKETS: [(u32, &str); 2] = [(AGENT_PORT, "agent.sock"), (STREAM_PORT, "streams.sock")];

/// The socket at which the sandbox's owner takes requests.
const CONTROL_SOCKET: &str = "control.sock";

/// What the guest has written to its console.
const CONSOLE_LOG: &str = "console.log";

const RECORD: &str = "sandbox.json";

/// The id by which the guest knows its container, if it was restored under another one.
const ALIAS: &str = "guest-id";

/// Is there from when the machine is written to a checkpoint with which it ends.
const SAVING: &str = "saving";

/// What sandbox.json says: enough to end or to join a sandbox whose owner is another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    #[serde(default, skip_serializing_if = "Layout::is_first")]
    version: Layout,
    /// The processes that run the machine; the first one ends last.
    pub machine: Vec<ProcessId>,
    /// The engine that they belong to.
    pub engine: EngineKind,
    /// How long the owner lets the start of a container take, hooks in the guest included. Absent
    /// in records of owners that set no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_timeout_seconds: Option<u64>,
    /// Since when the guest has not answered its owner, in RFC 3339. Absent while it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_since: Option<String>,
}

impl Record {
    /// A record in the current layout.
    pub fn new(machine: Vec<ProcessId>, engine: EngineKind, start_timeout: Duration) -> Self {
        Self {
            version: Layout::CURRENT,
            machine,
            engine,
            start_timeout_seconds: Some(start_timeout.as_secs()),
            silent_since: None,
        }
    }
}

/// What layouts to come keep of [`Record`].
#[derive(Deserialize)]
struct Machine {
    machine: Vec<ProcessId>,
}

/// A sandbox's directory.
#[derive(Debug)]
pub struct SandboxDir {
    path: PathBuf,
    dir: OwnedFd,
}

impl SandboxDir {
    /// Opens the directory; it need not hold a sandbox yet.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self {
            path: path.to_owned(),
            dir: rustix::fs::open(path, flags, Mode::empty())?,
        })
    }

    /// The directory's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of the file that the guest's console is written to.
    pub fn console(&self) -> PathBuf {
        self.path.join(CONSOLE_LOG)
    }

    /// Connects to a port of the guest, at once: it is the first read that waits for the guest.
    /// Fails with `NotFound` for a port that has no socket.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        fault_point!("guest.connect")?;
        let socket = SOCKETS.iter().find(|(of, _)| *of == port);
        let (_, name) = socket.ok_or(io::ErrorKind::NotFound)?;
        connect_at_once(&self.short_path(name))
    }

    /// Makes the sockets that lead to the guest; returns them with their ports.
    pub fn listen(&self) -> io::Result<Vec<(u32, UnixListener)>> {
        fault_point!("sandbox.listen")?;
        SOCKETS
            .iter()
            .map(|&(port, name)| Ok((port, UnixListener::bind(self.short_path(name))?)))
            .collect()
    }

    /// Makes the socket at which the sandbox's owner takes requests. Called within a tokio runtime.
    pub fn listen_as_owner(&self) -> io::Result<tokio::net::UnixListener> {
        fault_point!("sandbox.listen-as-owner")?;
        tokio::net::UnixListener::bind(self.short_path(CONTROL_SOCKET))
    }

    /// Connects to the sandbox's owner. Fails if it has ended.
    pub fn connect_to_owner(&self) -> io::Result<UnixStream> {
        fault_point!("control.connect")?;
        connect_at_once(&self.short_path(CONTROL_SOCKET))
    }

    /// A path to `name` in the directory that is short enough for a socket's address, whose limit
    /// is 107 bytes. It is good for this process while this value lives.
    fn short_path(&self, name: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.dir.as_raw_fd()).into()
    }

    /// The path of the directory that the guest sees.
    pub fn shared(&self) -> PathBuf {
        self.path.join(SHARED)
    }

    /// Makes a container's `mounts` visible in the guest, and `spec`, the configuration for the
    /// agent, if there are hooks that may read it.
    pub fn share(&self, id: &str, mounts: &[SharedMount], spec: &Spec) -> Result<(), StorageError> {
        let shared = self.shared();
        for mount in mounts {
            share::share(&shared, mount)?;
        }
        if spec.hooks().is_some() {
            share::write_bundle(&shared, id, spec)?;
        }
        Ok(())
    }

    /// Notes that the guest knows the container of this sandbox by another id.
    pub fn set_alias(&self, guest: &ContainerId) -> io::Result<()> {
        fs::write(self.path.join(ALIAS), guest.as_str())
    }

    /// The id of the sandbox's container and the one by which its guest knows it, if it is another.
    pub fn alias(&self) -> io::Result<Option<(ContainerId, ContainerId)>> {
        let guest = match fs::read_to_string(self.path.join(ALIAS)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let host = self.path.file_name().unwrap_or_default();
        let id = |text: &str| ContainerId::new(text).map_err(io::Error::other);
        Ok(Some((id(&host.to_string_lossy())?, id(&guest)?)))
    }

    /// Notes whether the machine is being written to a checkpoint with which it ends.
    pub fn set_saving(&self, is_saving: bool) -> io::Result<()> {
        let path = self.path.join(SAVING);
        match is_saving {
            true => fs::write(path, ""),
            false => fs::remove_file(path),
        }
    }

    /// Whether a machine that has ended did so with a checkpoint, for processes that do not own it.
    pub fn is_saving(&self) -> bool {
        self.path.join(SAVING).exists()
    }

    /// Takes away what was shared for a container. Nothing to take away is no error.
    pub fn unshare(&self, container_id: &str) -> Result<(), StorageError> {
        share::unshare(&self.shared(), container_id)
    }

    /// Writes sandbox.json, so that other processes find the machine even if this one has ended.
    pub fn write_record(&self, record: &Record) -> io::Result<()> {
        fault_point!("record.write")?;
        whole_file::write(&self.path.join(RECORD), record)
    }

    /// Reads sandbox.json. `None` if no machine was started here.
    pub fn record(&self) -> io::Result<Option<Record>> {
        let Some(text) = self.read_record()? else {
            return Ok(None);
        };
        layout::check(&self.path.join(RECORD), &text).map_err(io::Error::other)?;
        Ok(Some(serde_json::from_slice(&text)?))
    }

    /// Reads which processes run the machine, in order to end them: also from a record of a newer
    /// layout, if it still names them as this one does.
    pub fn machine(&self) -> io::Result<Vec<ProcessId>> {
        let Some(text) = self.read_record()? else {
            return Ok(Vec::new());
        };
        match serde_json::from_slice::<Machine>(&text) {
            Ok(record) => Ok(record.machine),
            Err(error) => {
                layout::check(&self.path.join(RECORD), &text).map_err(io::Error::other)?;
                Err(error.into())
            }
        }
    }

    fn read_record(&self) -> io::Result<Option<Vec<u8>>> {
        match fault_point!("record.read").and_then(|()| fs::read(self.path.join(RECORD))) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Connects to a socket, or fails with `WouldBlock` if so many wait for its owner already that this
/// would wait as well: the owner may be stopped.
fn connect_at_once(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_work_however_long_the_path_is() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x".repeat(200));
        fs::create_dir(&path).unwrap();
        let dir = SandboxDir::open(&path).unwrap();
        let _listeners = dir.listen().unwrap();
        dir.connect(AGENT_PORT).unwrap();
        assert_eq!(dir.connect(7).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_socket_whose_owner_is_stopped_keeps_nobody_waiting() {
        let root = tempfile::tempdir().unwrap();
        let dir = SandboxDir::open(root.path()).unwrap();
        let stopped = dir.listen().unwrap();
        rustix::net::listen(&stopped[0].1, 1).unwrap();
        let mut waiting = Vec::new();
        let full = loop {
            match dir.connect(AGENT_PORT) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        assert!(waiting.len() > 1);
    }

    #[test]
    fn the_record_is_read_by_others() {
        let root = tempfile::tempdir().unwrap();
        let dir = SandboxDir::open(root.path()).unwrap();
        assert_eq!(dir.record().unwrap(), None);
        let machine = vec![ProcessId::own().unwrap()];
        let record = Record::new(machine, EngineKind::Qemu, Duration::from_secs(30));
        dir.write_record(&record).unwrap();
        assert_eq!(dir.machine().unwrap(), record.machine);
        assert_eq!(dir.record().unwrap(), Some(record));
    }

    #[test]
    fn a_record_of_a_newer_layout_is_good_for_ending_the_machine_alone() {
        let root = tempfile::tempdir().unwrap();
        let dir = SandboxDir::open(root.path()).unwrap();
        let write = |text: &str| fs::write(root.path().join(RECORD), text).unwrap();
        write(r#"{"version":3,"machine":[{"pid":7,"start_time":8}],"engine":{"kind":"new"}}"#);
        let refused = dir.record().unwrap_err().to_string();
        assert!(refused.contains("written by a newer rvm"), "{refused}");
        let process = ProcessId {
            pid: 7,
            start_time: 8,
        };
        assert_eq!(dir.machine().unwrap(), [process]);
        write(r#"{"version":3,"machines":[]}"#);
        let refused = dir.machine().unwrap_err().to_string();
        assert!(refused.contains("written by a newer rvm"), "{refused}");
    }
}
