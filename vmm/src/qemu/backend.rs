//! The back end of one QEMU: the devices that QEMU cannot serve itself, or not as we want them,
//! over vhost-user, and a log of bounded size for the guest's console.
//!
//! It is to QEMU what the device threads of `rvm-vmm machine` are to its vCPUs: vsock and the
//! shared files come from the same devices, in the same jail.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::mpsc;

use rvm_protocol::SHARED_TAG;
use rvm_protocol::vmm::BackendConfig;

use crate::fds::{MissingFd, PassedFds};
use crate::jail::filter::ThreadKind;
use crate::jail::{self, JailError, OwnDescriptors};
use crate::logging::error_chain;
use crate::threads;
use crate::virtio::console::ConsoleLog;
use crate::virtio::fs::{Fs, ServerResources};
use crate::virtio::vhost_user::{self, Buffers, Service, VhostUserError};
use crate::virtio::vsock::Vsock;
use rvm_sys::fault_point;

/// How many devices there are.
const DEVICES: usize = 2;

/// The queues of the vsock device that QEMU passes on. QEMU handles the event queue itself.
const VSOCK_QUEUES: usize = 2;

/// The queues of the file device: for FORGET, and for all other requests.
const FILES_QUEUES: usize = 2;

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
    #[error("cannot create the fs device")]
    Files(#[source] io::Error),
    #[error(transparent)]
    VhostUser(#[from] VhostUserError),
}

/// Serves one QEMU until it disconnects. The calling thread is the process's only one.
pub fn serve(config: &BackendConfig, fds: Vec<OwnedFd>) -> Result<(), BackendError> {
    let mut fds = PassedFds::new(fds);
    let own = enter_jail(config)?;
    fault_point!("backend.jailed").map_err(BackendError::Files)?;
    let (ends, end) = mpsc::channel();
    let vsock = Service {
        name: "vsock",
        device: Vsock::new(fds.take_listeners(&config.vsock)?).map_err(BackendError::Vsock)?,
        queues: VSOCK_QUEUES,
        serves_config: true,
        buffers: Buffers::InPlace,
        filter: ThreadKind::Vsock,
        listener: fds.take(config.vsock_device)?.into(),
    };
    let files = Service {
        name: "fs",
        device: Fs::new(ServerResources::new(own), SHARED_TAG).map_err(BackendError::Files)?,
        queues: FILES_QUEUES,
        serves_config: false,
        buffers: Buffers::Bounced,
        filter: ThreadKind::Files,
        listener: fds.take(config.files_device)?.into(),
    };
    let log = ConsoleLog::new(fds.take(config.console)?.into()).map_err(BackendError::Console)?;
    let input: File = fds.take(config.console_input)?.into();
    vhost_user::spawn(vsock, ends.clone())?;
    vhost_user::spawn(files, ends)?;
    threads::spawn("console".to_owned(), move || copy_console(input, log))
        .map_err(BackendError::Console)?;
    fault_point!("backend.threads").map_err(BackendError::Files)?;
    ThreadKind::VhostUser.apply()?;
    fault_point!("backend.serving").map_err(BackendError::Files)?;
    // QEMU disconnects from each device when it ends. One that failed cannot be reset.
    for end in end.iter().take(DEVICES) {
        end?;
    }
    Ok(())
}

/// Enters the jail of a back end.
pub fn enter_jail(config: &BackendConfig) -> Result<OwnDescriptors, JailError> {
    jail::enter_file_server(&config.shared_dir, config.parent)
}

fn copy_console(mut input: File, mut log: ConsoleLog) {
    if let Err(error) = ThreadKind::Console.apply() {
        return log::error!("{}", error_chain(&error));
    }
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
