//! The user's home and working directory.

use std::io::{BufRead as _, BufReader, Read as _};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rvm_sys::accounts::User;

use super::plan::ProcessPlan;
use crate::sys::{Doing as _, OsError, errno_text};

/// How much of an image's /etc/passwd is read, in bytes: a hostile one must not use up the
/// container's memory before the program has started.
const MAX_PASSWD: u64 = 1 << 20;

/// Why the working directory cannot be entered.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error("chdir to cwd ({path:?}) set in config.json failed: {}", errno_text(*.errno))]
    Enter { path: String, errno: Errno },
    /// The directory is not below the container's root (CVE-2024-21626).
    #[error(
        "current working directory is outside of container mount namespace root -- possible \
         container breakout detected"
    )]
    Outside,
    #[error(transparent)]
    Os(#[from] OsError),
}

/// The home directory of a user by the image's /etc/passwd, or `/`.
pub fn home(uid: u32) -> String {
    read_home(uid).unwrap_or_else(|| "/".to_owned())
}

fn read_home(uid: u32) -> Option<String> {
    // Without NONBLOCK a fifo at the path would block the container for ever.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open("/etc/passwd", flags, Mode::empty()).ok()?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file).ok()?.st_mode);
    if kind != FileType::RegularFile {
        return None;
    }
    let reader = BufReader::new(std::fs::File::from(file).take(MAX_PASSWD));
    reader.lines().map_while(Result::ok).find_map(|line| {
        let user = User::parse(&line).filter(|user| user.uid == uid)?;
        user.home.map(str::to_owned)
    })
}

/// Enters the working directory with root's rights. Returns false if these do not suffice, as on a
/// file system that denies root access; [`enter_directory`] then tries with the user's.
pub fn enter_directory_as_root(process: &ProcessPlan) -> Result<bool, DirectoryError> {
    match rustix::process::chdir(process.cwd.as_str()) {
        Ok(()) => Ok(true),
        Err(Errno::ACCESS | Errno::PERM) => Ok(false),
        Err(errno) => Err(DirectoryError::Enter {
            path: process.cwd.clone(),
            errno,
        }),
    }
}

/// Enters the working directory with the user's rights.
pub fn enter_directory(process: &ProcessPlan) -> Result<(), DirectoryError> {
    rustix::process::chdir(process.cwd.as_str()).map_err(|errno| DirectoryError::Enter {
        path: process.cwd.clone(),
        errno,
    })
}

/// Checks that the working directory lies in the container's root: a path through a leaked
/// descriptor would lead out of it.
pub fn check_directory(process: &ProcessPlan) -> Result<(), DirectoryError> {
    match rustix::process::getcwd(Vec::new()) {
        Ok(path) if path.as_bytes().starts_with(b"/") => Ok(()),
        Ok(_) | Err(Errno::NOENT) => Err(DirectoryError::Outside),
        Err(errno) => Err(errno)
            .doing(|| format!("find the path of {}", process.cwd))
            .map_err(Into::into),
    }
}
