//! The two processes of the qemu engine: QEMU, executed in a jail, and the back end that serves it.

pub mod backend;

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rvm_protocol::vmm::{QEMU_FIRST_FD, QemuConfig};

use crate::jail::{self, Caps, JailError, Root, qemu_filter};

/// QEMU could not be executed.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    #[error("cannot enter the jail")]
    Jail(#[from] JailError),
    #[error("cannot pass a descriptor on to QEMU")]
    Descriptor(#[source] io::Error),
    #[error("cannot execute {}", program.display())]
    Execute {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Enters the jail and executes QEMU. Returns only if that fails. The calling thread is the
/// process's only one.
pub fn exec(config: &QemuConfig, fds: Vec<OwnedFd>) -> Result<(), QemuError> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| QemuError::Descriptor(e.into()))?;
    enter_jail(config, &fds)?;
    rvm_sys::fault_point!("qemu.jailed").map_err(QemuError::Descriptor)?;
    pass_on(fds).map_err(QemuError::Descriptor)?;
    let stdout = null.try_clone().map_err(QemuError::Descriptor)?;
    let error = Command::new(&config.program)
        .args(&config.args)
        .env_clear()
        .stdin(null)
        .stdout(stdout)
        .exec();
    Err(QemuError::Execute {
        program: config.program.clone(),
        source: error,
    })
}

/// Enters the jail of QEMU, which gets these descriptors.
pub fn enter_jail(config: &QemuConfig, fds: &[OwnedFd]) -> Result<(), JailError> {
    let root = Root::Program(config.stage_dir.clone());
    jail::enter(&root, Caps::None, config.parent)?;
    jail::landlock::restrict_program(&config.program, fds)?;
    qemu_filter::apply()
}

/// Gives the descriptors the numbers that QEMU's arguments use, and keeps them open across exec.
fn pass_on(fds: Vec<OwnedFd>) -> io::Result<()> {
    let count = i32::try_from(fds.len()).unwrap_or(i32::MAX);
    // Moves them to high numbers first, so that none is overwritten.
    let moved = fds
        .iter()
        .map(|fd| fcntl_dupfd_cloexec(fd, QEMU_FIRST_FD + count))
        .collect::<Result<Vec<_>, _>>()?;
    drop(fds);
    for (number, fd) in (QEMU_FIRST_FD..).zip(moved) {
        let mut target = own_number(number);
        rustix::io::dup2(&fd, &mut target)?;
        fcntl_setfd(&target, FdFlags::empty())?;
        // Stays open for QEMU.
        let _ = target.into_raw_fd();
    }
    Ok(())
}

#[expect(unsafe_code, reason = "dup2 wants to own the descriptor it replaces")]
fn own_number(number: i32) -> OwnedFd {
    // SAFETY: the process has just moved all descriptors that it uses past these numbers, so a
    // descriptor with this number, if there is one, has no other owner, and dup2 closes it.
    unsafe { OwnedFd::from_raw_fd(number) }
}
