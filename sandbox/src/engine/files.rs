//! The files that a machine is made of, and the memory that it needs of the host.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::EngineError;
use crate::host::memory::available_memory_mib;
use crate::host::read_only_file;

/// Opens a file for a process that the guest may take over, see [`read_only_file`].
fn open(what: &'static str, path: &Path) -> Result<File, EngineError> {
    read_only_file::open(path).map_err(open_failed(what, path))
}

pub(super) fn open_failed(
    what: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> EngineError {
    move |source| EngineError::Open {
        what,
        path: path.to_owned(),
        source,
    }
}

/// Opens the kernel and checks its first bytes: a wrong path is easily configured, and the machine
/// that it makes explains nothing.
pub(super) fn open_kernel(path: &Path) -> Result<File, EngineError> {
    let file = open("the guest kernel (kernel in rvm's configuration)", path)?;
    let mut magic = [0; 4];
    let read = file.read_at(&mut magic, 0).unwrap_or(0);
    if read < magic.len() || magic != *b"\x7fELF" {
        return Err(EngineError::Kernel(path.to_owned()));
    }
    Ok(file)
}

pub(super) fn open_initramfs(path: &Path) -> Result<File, EngineError> {
    open(
        "the guest's initramfs (initramfs in rvm's configuration)",
        path,
    )
}

pub(super) fn create_console(path: &Path) -> Result<File, EngineError> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    options
        .open(path)
        .map_err(open_failed("the console's log", path))
}

/// Refuses a machine that the host could only run by killing something else. Memory is given to a
/// guest as it touches it, so one that fits may still meet the end of the host's memory later.
pub fn check_host_memory(needed_mib: u64) -> Result<(), EngineError> {
    match available_memory_mib() {
        Some(available) if needed_mib > available => Err(EngineError::HostMemory {
            needed: needed_mib,
            available,
        }),
        _ => Ok(()),
    }
}
