//! The container's terminal and its standard streams.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{Gid, Uid};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use super::mounts::attach;
use super::plan::{ProcessPlan, TerminalPlan};
use super::rootfs::Rootfs;
use super::targets::{self, Kind};
use crate::sys::{Doing as _, OsError, clone};

/// `DEVPTS_SUPER_MAGIC` of `<linux/magic.h>`.
const DEVPTS_MAGIC: u64 = 0x1cd1;

/// Both ends of a terminal.
pub struct Terminal {
    /// For the agent.
    pub master: OwnedFd,
    slave: OwnedFd,
}

/// Makes a terminal in the container's own devpts: in `root`, or in the root of this process.
///
/// TIOCGPTPEER on the master opens the other end: what lies at its path is up to the container.
pub fn open(root: Option<&Rootfs>, plan: TerminalPlan) -> Result<Terminal, OsError> {
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = match root {
        Some(root) => targets::open_without_links(root.as_fd(), "/dev/pts/ptmx", flags),
        None => {
            let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                .doing(|| "open the root")?;
            targets::open_without_links(root.as_fd(), "/dev/pts/ptmx", flags)
        }
    };
    let master = master.doing(|| "open /dev/pts/ptmx")?;
    let fs = rustix::fs::fstatfs(&master).doing(|| "look at /dev/pts/ptmx")?;
    if fs.f_type as u64 != DEVPTS_MAGIC {
        return Err(Errno::NOTTY).doing(|| "use /dev/pts/ptmx, which is not in a devpts");
    }
    rustix::pty::unlockpt(&master).doing(|| "unlock the terminal")?;
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )
    .doing(|| "open the terminal")?;
    if plan.rows != 0 || plan.cols != 0 {
        let size = Winsize {
            ws_row: plan.rows,
            ws_col: plan.cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size).doing(|| "set the terminal's size")?;
    }
    if plan.plain_line_feeds {
        let mut modes = tcgetattr(&slave).doing(|| "read the terminal's modes")?;
        modes.output_modes.remove(OutputModes::ONLCR);
        tcsetattr(&slave, OptionalActions::Now, &modes).doing(|| "set the terminal's modes")?;
    }
    Ok(Terminal { master, slave })
}

/// Mounts the terminal on /dev/console.
pub fn bind(root: &Rootfs, terminal: &Terminal) -> Result<(), OsError> {
    let target = targets::open_or_make(root.as_fd(), "/dev/console", Kind::File)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let slave = open_tree(&terminal.slave, "", flags).doing(|| "bind the terminal")?;
    attach(&slave, &target)
}

impl Terminal {
    /// Makes the terminal the standard streams and the controlling terminal of this session.
    pub fn become_stdio(self) -> Result<(), OsError> {
        let slave = std::os::fd::AsRawFd::as_raw_fd(&self.slave);
        for number in 0..3 {
            clone::copy_fd(slave, number).doing(|| "connect the terminal")?;
        }
        rustix::process::ioctl_tiocsctty(self.slave.as_fd())
            .doing(|| "make the terminal the controlling one")
    }
}

/// Gives the standard streams to the user, who may otherwise not open /dev/stdout and its like.
pub fn fix_stdio_owner(process: &ProcessPlan) -> Result<(), OsError> {
    let null = rustix::fs::statat(CWD, "/dev/null", rustix::fs::AtFlags::empty());
    let null = null
        .map(|status| status.st_rdev)
        .unwrap_or(rustix::fs::makedev(1, 3));
    let streams = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    for stream in streams {
        let status = rustix::fs::fstat(stream).doing(|| "look at a standard stream")?;
        // All containers share /dev/null.
        if status.st_rdev == null || status.st_uid == process.uid {
            continue;
        }
        let (uid, gid) = (Uid::from_raw(process.uid), None::<Gid>);
        match rustix::fs::fchown(stream, Some(uid), gid) {
            // The id is not mapped, or the file system has no owners: the owner stays.
            Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::ROFS) => {}
            Err(errno) => return Err(errno).doing(|| "give a standard stream to the user"),
        }
    }
    Ok(())
}
