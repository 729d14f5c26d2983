//! The back end of one QEMU: vsock over vhost-user, which QEMU cannot bridge to Unix sockets
//! itself, and a log of bounded size for the guest's console.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::thread;

use rvm_protocol::vmm::BackendConfig;

use crate::fds::{MissingFd, PassedFds};
use crate::jail::filter::ThreadKind;
use crate::jail::{self, Caps, JailError, Root};
use crate::logging::error_chain;
use crate::virtio::console::ConsoleLog;
use crate::virtio::vhost_user::{self, VhostUserError};
use crate::virtio::vsock::Vsock;

/// The queues of the vsock device that QEMU passes on. QEMU handles the event queue itself.
const VSOCK_QUEUES: usize = 2;

/// The back end could not serve.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error(transparent)]
    Fd(#[from] MissingFd),
    #[error("cannot enter the jail")]
    Jail(#[from] JailError),
    #[error("cannot log the guest's console")]
    Console(#[source] io::Error),
    #[error("cannot create the vsock device")]
    Vsock(#[source] io::Error),
    #[error(transparent)]
    VhostUser(#[from] VhostUserError),
}

/// Serves one QEMU until it disconnects. The calling thread is the process's only one.
pub fn serve(config: &BackendConfig, fds: Vec<OwnedFd>) -> Result<(), BackendError> {
    let mut fds = PassedFds::new(fds);
    enter_jail(config)?;
    let listeners = fds.take_listeners(&config.vsock)?;
    let vsock = Vsock::new(listeners).map_err(BackendError::Vsock)?;
    let log = ConsoleLog::new(fds.take(config.console)?.into()).map_err(BackendError::Console)?;
    let input: File = fds.take(config.console_input)?.into();
    let listener = UnixListener::from(fds.take(config.vhost_user)?);
    ThreadKind::VhostUser.apply()?;
    thread::Builder::new()
        .name("console".to_owned())
        .spawn(move || copy_console(input, log))
        .map_err(BackendError::Console)?;
    Ok(vhost_user::serve(vsock, VSOCK_QUEUES, listener)?)
}

/// Enters the jail of a back end.
pub fn enter_jail(config: &BackendConfig) -> Result<(), JailError> {
    let root = Root::Empty(config.stage_dir.clone());
    jail::enter(&root, Caps::None, config.parent)
}

fn copy_console(mut input: File, mut log: ConsoleLog) {
    let mut chunk = [0; 4096];
    loop {
        match input.read(&mut chunk) {
            Ok(0) => return,
            // A log that cannot be written must not stop the guest.
            Ok(length) => _ = log.append(&chunk[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return log::warn!("console: {}", error_chain(&error)),
        }
    }
}
