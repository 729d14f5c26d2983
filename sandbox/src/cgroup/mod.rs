//! A container's control groups on the host. They hold the monitor and the processes that run the
//! machine, so that the host enforces the container's limits on all of them, and a tool that reads
//! the group of the reported pid sees the container's resource use.
//!
//! The device rules of config.json are not applied here: the machine's processes have no device but
//! the descriptors that they were handed, and the container's devices are the guest's.

mod files;
mod hierarchy;
mod limits;
mod oom;
mod paths;
mod remove;
mod settings;
mod shared;
mod stats;
#[cfg(any(test, feature = "fuzzing"))]
pub use systemd::hostile as systemd_hostile;
mod systemd;
mod v1;
mod v2;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rvm_protocol::agent::StatsResponse;
use serde::{Deserialize, Serialize};

use hierarchy::Hierarchies;

pub use hierarchy::Version;
pub use limits::{LimitError, Overhead, overhead};
pub use paths::Driver;
pub use settings::is_host_file;
pub use systemd::SystemdError;

pub use crate::sizing::limit_mib;

/// A container's groups could not be created, changed or removed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum CgroupError {
    #[error("no control group hierarchy is mounted on this host")]
    NotMounted,
    #[error("config.json: linux.cgroupsPath names the root of the control groups")]
    Root,
    #[error(
        "config.json: linux.cgroupsPath must be slice:prefix:name where --systemd-cgroup is given, \
         got {0:?}"
    )]
    ScopePath(PathBuf),
    #[error("config.json: linux.cgroupsPath: {0:?} is not the name of a slice of systemd's")]
    Slice(String),
    #[error("container's cgroup unexpectedly frozen: {}", _0.display())]
    Frozen(PathBuf),
    #[error("cannot {action} cgroup {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Limit(#[from] LimitError),
    #[error("config.json: linux.resources.{field}: cannot write {value:?} to {}", path.display())]
    Refused {
        field: &'static str,
        value: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the host's kernel counts no OOM kill in {}: {reason}", path.display())]
    NoOomKill { path: PathBuf, reason: &'static str },
    #[error("cannot have systemd {action} {unit}")]
    Systemd {
        action: &'static str,
        unit: String,
        #[source]
        source: SystemdError,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::Io {
        action,
        path,
        source,
    }
}

/// A group in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dir {
    /// The hierarchy's name in /proc/self/cgroup: its controllers; empty for version 2.
    hierarchy: String,
    /// The hierarchy's mount point.
    mount: PathBuf,
    path: PathBuf,
}

impl Dir {
    fn has(&self, controller: &str) -> bool {
        // Version 2 has all controllers in one hierarchy.
        self.hierarchy.is_empty() || self.hierarchy.split(',').any(|name| name == controller)
    }
}

/// A container's groups, one in each hierarchy. The container's state file holds it, so that any
/// later process can remove the groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    version: Version,
    dirs: Vec<Dir>,
    /// The slice and the unit, with the systemd driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<(String, String)>,
}

impl Cgroup {
    /// Resolves the groups for the container `id` without creating them. Warns if they have
    /// processes already, and fails if they are frozen, as runc does.
    pub fn find(
        driver: Driver,
        cgroups_path: Option<&Path>,
        id: &str,
    ) -> Result<Self, CgroupError> {
        let host = host()?;
        let paths = paths::resolve(&host, driver, cgroups_path, id)?;
        let found = Self {
            version: host.version,
            dirs: paths.dirs,
            scope: paths.scope.map(|scope| (scope.slice, scope.unit)),
        };
        if files::are_frozen(&found) {
            return Err(CgroupError::Frozen(found.dirs[0].path.clone()));
        }
        match found.processes()?.len() {
            0 => {}
            count => {
                tracing::warn!("container's cgroup is not empty: {count} process(es) found");
            }
        }
        Ok(found)
    }

    /// The groups that this process is in.
    pub fn own() -> Result<Self, CgroupError> {
        let host = host()?;
        let dirs = host.list.into_iter().map(|hierarchy| Dir {
            hierarchy: hierarchy.name,
            mount: hierarchy.mount,
            path: hierarchy.own,
        });
        Ok(Self {
            version: host.version,
            dirs: dirs.collect(),
            scope: None,
        })
    }

    /// Creates the groups and moves processes into them; the processes' children inherit the
    /// groups. Without processes the groups are empty, which those of systemd cannot be. The limits
    /// of CPUs and memory nodes apply at once; [`Self::limit`] applies the rest.
    pub fn create(
        &self,
        processes: &[i32],
        resources: Option<&LinuxResources>,
    ) -> Result<(), CgroupError> {
        let are_shared = !self.processes()?.is_empty();
        if let Some((slice, unit)) = &self.scope {
            systemd::start(slice, unit, processes)?;
        }
        for dir in &self.dirs {
            files::create(self.version, dir)?;
        }
        if are_shared {
            shared::mark(self)?;
        }
        if let Some(resources) = resources {
            files::apply(self, &limits::placement(resources))?;
        }
        processes.iter().try_for_each(|process| self.add(*process))
    }

    /// Moves this process back into groups that it was in before; into the root if they are gone or
    /// have groups below them by now.
    pub fn rejoin(&self) -> Result<(), CgroupError> {
        let own = rustix::process::getpid().as_raw_nonzero().to_string();
        for dir in &self.dirs {
            let enter = |group: &Path| std::fs::write(group.join("cgroup.procs"), &own);
            enter(&dir.path)
                .or_else(|_| enter(&dir.mount))
                .map_err(failed("enter", &dir.path))?;
        }
        Ok(())
    }

    /// The group's directory, in which a process can start; see clone3(2). None with version 1,
    /// whose groups a process can only be moved into.
    pub fn directory(&self) -> Result<Option<OwnedFd>, CgroupError> {
        let dir = match (self.version, self.dirs.first()) {
            (Version::Two, Some(dir)) => &dir.path,
            _ => return Ok(None),
        };
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(dir, flags, Mode::empty());
        let opened = opened.map_err(|errno| failed("open", dir)(errno.into()))?;
        Ok(Some(opened))
    }

    /// Moves a process into the groups.
    pub fn add(&self, process: i32) -> Result<(), CgroupError> {
        for dir in &self.dirs {
            let procs = dir.path.join("cgroup.procs");
            let enter = || {
                rvm_sys::fault_point!("cgroup.enter")?;
                std::fs::write(&procs, process.to_string())
            };
            match enter() {
                // It has ended already, which others notice.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::SRCH) => {}
                entered => entered.map_err(failed("enter", &dir.path))?,
            }
        }
        Ok(())
    }

    /// Applies a container's limits to the machine. Called when the guest is up: a share of a CPU
    /// that is enough for a program is too little to boot with.
    pub fn limit(&self, resources: &LinuxResources, engine: Overhead) -> Result<(), CgroupError> {
        let settings = settings::settings(self.version, resources, engine)?;
        if let Some((_, unit)) = &self.scope {
            systemd::set_limits(unit, self.version, resources, engine)?;
        }
        files::apply(self, &settings)
    }

    /// Changes the limits of a running container. A limit that `resources` does not name stays.
    pub fn update(&self, resources: &LinuxResources, engine: Overhead) -> Result<(), CgroupError> {
        files::apply(self, &limits::placement(resources))?;
        self.limit(resources, engine)
    }

    /// The container's resource use on the host, in the form of the agent's statistics.
    pub fn stats(&self) -> StatsResponse {
        stats::read(self)
    }

    /// The processes in the groups and in those below.
    pub fn processes(&self) -> Result<BTreeSet<i32>, CgroupError> {
        let mut processes = BTreeSet::new();
        for dir in &self.dirs {
            processes.extend(files::processes(&dir.path)?);
        }
        Ok(processes)
    }

    /// Thaws the groups if somebody has frozen them: with version 1 a frozen process does not die
    /// of SIGKILL.
    pub fn thaw(&self) {
        remove::thaw(self);
    }

    /// Kills the processes in the groups, except this one, and removes the groups. Missing groups
    /// are no error. Groups that had other processes when a container got them stay while they have
    /// any.
    pub fn remove(&self) -> Result<(), CgroupError> {
        remove::remove(self)
    }

    /// Has the host's kernel count an OOM kill in the groups, for engines that watch them. The
    /// machine must have ended. Not in groups that are shared: it could hit another machine.
    pub fn count_oom_kill(&self) -> Result<(), CgroupError> {
        match self.dir("memory").filter(|_| !shared::is_marked(self)) {
            Some(dir) => oom::count(self.version, dir),
            None => Ok(()),
        }
    }

    /// Fails if this host cannot enforce one of the limits.
    pub fn check(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        // The engine changes values, never whether there is a file for them.
        let engine = Overhead::default();
        Ok(settings::settings(self.version, resources, engine).map(drop)?)
    }

    /// The directory of the group that has a controller.
    fn dir(&self, controller: &str) -> Option<&Path> {
        let dir = self.dirs.iter().find(|dir| dir.has(controller))?;
        Some(&dir.path)
    }
}

fn host() -> Result<Hierarchies, CgroupError> {
    let host = Hierarchies::current().map_err(failed("find the hierarchies of", Path::new("/")))?;
    host.ok_or(CgroupError::NotMounted)
}

#[cfg(test)]
mod tests;
