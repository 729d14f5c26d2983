//! The control groups of containers.
//!
//! The guest has cgroup v2 only. The agent stays in the root group; each container has one group
//! right below the parent of all ([`parent`]), which is the root in the container's cgroup
//! namespace.

mod bpf;
mod convert;
mod device_rules;
pub mod parent;
mod watch;

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use oci_spec::runtime::LinuxResources;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, openat, unlinkat};
use rustix::io::Errno;
use rvm_protocol::ContainerId;
use rvm_sys::beneath;
use rvm_sys::bpf::AttachPoint;

pub use convert::ResourceError;
use parent::PARENT;
pub use watch::Watch;

use crate::sys::{Doing as _, OsError, signal};

/// Sets container ids apart from the interface files in the parent's directory.
const PREFIX: &str = "rvm-";
/// How long the kernel may take to end all processes of a group after `cgroup.kill`.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the processes of a group may take to freeze; runc's.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(10);
/// The same before a signal to all of them. A process in an uninterruptible sleep cannot freeze,
/// and cannot fork either.
const SIGNAL_FREEZE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a container's group could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error(transparent)]
    Os(#[from] OsError),
    #[error(transparent)]
    Resource(#[from] ResourceError),
    /// The kernel has no such interface file, or refuses the value.
    #[error("config.json: linux.resources: set {file} to {value:?}: {}", crate::sys::errno_text(*.errno))]
    Refused {
        file: String,
        value: String,
        errno: Errno,
    },
    #[error("processes of the container did not stand still within {} s", FREEZE_TIMEOUT.as_secs())]
    NotFrozen,
    #[error("processes of the container did not end within {} s of being killed", KILL_TIMEOUT.as_secs())]
    StillPopulated,
}

/// What [`Cgroup::apply`] would set, without a cgroup.
#[cfg(any(test, feature = "fuzzing"))]
pub fn translated(resources: &LinuxResources) -> Result<Vec<String>, ResourceError> {
    let settings = convert::to_settings(resources)?;
    for file in resources.unified().iter().flat_map(HashMap::keys) {
        convert::check_unified_name(file)?;
    }
    let rules = device_rules::with_defaults(resources.devices().as_deref().unwrap_or_default())?;
    bpf::device_program(&rules).map_err(|error| ResourceError::Invalid(error.to_string()))?;
    Ok(settings.into_iter().map(|setting| setting.value).collect())
}

/// The group of one container.
pub struct Cgroup {
    name: String,
    directory: OwnedFd,
    /// Locked from the freeze of the group to the end of what it was frozen for.
    freezer: tokio::sync::Mutex<()>,
}

impl Cgroup {
    /// Makes the group of a container.
    pub fn create(container: &ContainerId) -> Result<Self, CgroupError> {
        parent::limit_memory()?;
        let name = format!("{PREFIX}{container}");
        let path = format!("{PARENT}/{name}");
        rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755))
            .doing(|| format!("make cgroup {path}"))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(directory) => Ok(Self {
                name,
                directory,
                freezer: tokio::sync::Mutex::default(),
            }),
            Err(errno) => {
                let _ = rustix::fs::rmdir(&path);
                Err(errno)
                    .doing(|| format!("open cgroup {path}"))
                    .map_err(Into::into)
            }
        }
    }

    /// The group's directory, for CLONE_INTO_CGROUP.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Sets the limits and the device rules.
    pub fn apply(&self, resources: Option<&LinuxResources>) -> Result<(), CgroupError> {
        if let Some(resources) = resources {
            self.set_limits(resources)?;
        }
        let rules = resources.and_then(|resources| resources.devices().as_deref());
        let rules = device_rules::with_defaults(rules.unwrap_or_default())?;
        let program = bpf::device_program(&rules)
            .map_err(|error| ResourceError::Invalid(format!("devices: {error}")))?;
        let program = program
            .load(AttachPoint::CGROUP_DEVICE)
            .doing(|| "load the device program of the cgroup")?;
        Ok(program
            .attach_to_cgroup(self.directory())
            .doing(|| "attach the device program to the cgroup")?)
    }

    /// Sets the limits alone.
    pub fn set_limits(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        self.check_before_update(resources)?;
        for setting in convert::to_settings(resources)? {
            self.write_setting(&setting)?;
        }
        self.apply_unified(resources.unified().as_ref())
    }

    /// Refuses a memory limit below the memory in use, where config.json asks for the check: the
    /// limit could end the container.
    fn check_before_update(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let memory = resources.memory().as_ref();
        let memory = memory.filter(|memory| memory.check_before_update() == Some(true));
        let limit = memory.and_then(|memory| u64::try_from(memory.limit()?).ok());
        let Some(limit) = limit.filter(|limit| *limit > 0) else {
            return Ok(());
        };
        let used = self.read("memory.current").unwrap_or_default();
        match used.trim().parse::<u64>() {
            Ok(used) if used > limit => Err(ResourceError::Invalid(format!(
                "memory.limit: {limit} is less than the {used} bytes in use"
            ))
            .into()),
            _ => Ok(()),
        }
    }

    fn write_setting(&self, setting: &convert::Setting) -> Result<(), CgroupError> {
        let result = setting.files.iter().find_map(|file| {
            match self.write(file, setting.value.as_bytes()) {
                Err(Errno::NOENT) => None,
                result => Some((file, result)),
            }
        });
        match result {
            Some((_, Ok(()))) => Ok(()),
            None if setting.is_default => Ok(()),
            None => Err(refused(setting.files[0], &setting.value, Errno::NOENT)),
            Some((file, Err(errno))) => Err(refused(file, &setting.value, errno)),
        }
    }

    fn apply_unified(&self, unified: Option<&HashMap<String, String>>) -> Result<(), CgroupError> {
        for (file, value) in unified.into_iter().flatten() {
            convert::check_unified_name(file)?;
            // io.max and the like take one device per write.
            for line in value.split('\n').filter(|line| !line.is_empty()) {
                self.write(file, line.as_bytes())
                    .map_err(|errno| refused(file, line, errno))?;
            }
        }
        Ok(())
    }

    fn write(&self, file: &str, value: &[u8]) -> rustix::io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = openat(&self.directory, file, flags, Mode::empty())?;
        rustix::io::write(&file, value).map(drop)
    }

    /// Reads an interface file.
    pub fn read(&self, file: &str) -> std::io::Result<String> {
        read_file(&self.directory, file)
    }

    /// Makes the root of a user namespace own the group and the files that cgroup v2 delegates.
    pub fn delegate(&self, uid: u32, gid: u32) -> Result<(), CgroupError> {
        let files = std::fs::read_to_string("/sys/kernel/cgroup/delegate").unwrap_or_default();
        let (uid, gid) = (
            rustix::fs::Uid::from_raw(uid),
            rustix::fs::Gid::from_raw(gid),
        );
        rustix::fs::fchown(&self.directory, Some(uid), Some(gid))
            .doing(|| format!("give cgroup {} to the container", self.name))?;
        for file in files.lines() {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            match rustix::fs::chownat(&self.directory, file, Some(uid), Some(gid), flags) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => Err(errno).doing(|| format!("give {file} to the container"))?,
            }
        }
        Ok(())
    }

    /// Opens a group below this one by its path from here.
    pub fn descend(&self, path: &str) -> Result<OwnedFd, CgroupError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let relative = path.trim_start_matches('/');
        Ok(beneath::open(&self.directory, relative, flags, resolve)
            .doing(|| format!("open cgroup {path} of the container"))?)
    }

    /// Watches for OOM kills and for the group becoming empty.
    pub fn watch(&self) -> Result<Watch, CgroupError> {
        Watch::new(self.directory())
    }

    /// Kills every process in the group and in all below it.
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.write("cgroup.kill", b"1")
            .doing(|| format!("kill cgroup {}", self.name))?;
        Ok(())
    }

    /// Sends a signal to every process in the group and in all below it, while they are frozen:
    /// none can fork a process that misses the signal.
    pub async fn signal_all(&self, number: u32) -> Result<(), CgroupError> {
        if number == libc::SIGKILL as u32 {
            return self.kill();
        }
        let _held = self.freezer.lock().await;
        let was_frozen = self
            .read("cgroup.freeze")
            .is_ok_and(|state| state.trim() == "1");
        if !was_frozen {
            self.set_frozen(true)?;
            // A process that cannot freeze cannot fork either.
            let _ = self.frozen_within(SIGNAL_FREEZE_TIMEOUT).await?;
        }
        let sent = self.signal_each(number);
        if !was_frozen {
            self.set_frozen(false)?;
        }
        sent
    }

    fn signal_each(&self, number: u32) -> Result<(), CgroupError> {
        for pid in self.processes()? {
            match signal::send_to_pid(pid, number) {
                // The process has ended by itself.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => Err(errno).doing(|| format!("signal process {pid}"))?,
            }
        }
        Ok(())
    }

    /// Freezes every process, and returns when all are frozen.
    pub async fn freeze(&self) -> Result<(), CgroupError> {
        let _held = self.freezer.lock().await;
        self.set_frozen(true)?;
        if self.frozen_within(FREEZE_TIMEOUT).await? {
            return Ok(());
        }
        self.set_frozen(false)?;
        Err(CgroupError::NotFrozen)
    }

    /// Thaws the processes.
    pub async fn thaw(&self) -> Result<(), CgroupError> {
        let _held = self.freezer.lock().await;
        self.set_frozen(false)
    }

    fn set_frozen(&self, frozen: bool) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", if frozen { b"1" } else { b"0" })
            .doing(|| format!("freeze or thaw cgroup {}", self.name))?;
        Ok(())
    }

    async fn frozen_within(&self, limit: Duration) -> Result<bool, CgroupError> {
        let watch = self.watch()?;
        Ok(tokio::time::timeout(limit, watch.frozen()).await.is_ok())
    }

    /// The process ids, in the guest's root pid namespace, of the group and of all below it.
    pub fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        let mut pids = Vec::new();
        for directory in self.tree()? {
            let path = directory.join("cgroup.procs");
            let Ok(text) = std::fs::read_to_string(path) else {
                continue;
            };
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        Ok(pids)
    }

    /// The directories of this group and of all below it, parents first.
    fn tree(&self) -> Result<Vec<std::path::PathBuf>, CgroupError> {
        let mut found = vec![Path::new(PARENT).join(&self.name)];
        let mut next = 0;
        while let Some(directory) = found.get(next).cloned() {
            next += 1;
            let Ok(entries) = std::fs::read_dir(&directory) else {
                continue;
            };
            found.extend(
                entries
                    .flatten()
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.path()),
            );
        }
        Ok(found)
    }

    /// Kills the remaining processes and removes the group with all below it.
    pub async fn remove(&self) -> Result<(), CgroupError> {
        let watch = self.watch()?;
        if watch.is_populated()? {
            self.kill()?;
            tokio::time::timeout(KILL_TIMEOUT, watch.empty())
                .await
                .map_err(|_| CgroupError::StillPopulated)?;
        }
        for directory in self.tree()?.iter().rev() {
            match unlinkat(CWD, directory, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => Err(errno).doing(|| format!("remove {}", directory.display()))?,
            }
        }
        Ok(())
    }
}

/// Reads an interface file in the directory of a group.
pub fn read_file(directory: impl AsFd, file: &str) -> std::io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = openat(directory, file, flags, Mode::empty())?;
    std::io::read_to_string(std::fs::File::from(file))
}

fn refused(file: &str, value: &str, errno: Errno) -> CgroupError {
    CgroupError::Refused {
        file: file.to_owned(),
        value: value.to_owned(),
        errno,
    }
}
