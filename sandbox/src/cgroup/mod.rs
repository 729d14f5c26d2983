//! The control groups of a container on the host: the processes that run its machine and its monitor
//! are in them, so that the host holds the whole to the container's limits, and whoever reads the
//! group of the reported pid finds what the container costs.
//!
//! The rules of config.json's device list are not applied here: the machine's processes have no
//! device but the descriptors that they were handed, and the container's devices are the guest's.

mod files;
mod hierarchy;
mod limits;
mod place;
mod remove;
mod stats;
mod systemd;
mod v1;
mod v2;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use rustix::io::Errno;
use rvm_protocol::agent::StatsResponse;
use serde::{Deserialize, Serialize};

use hierarchy::Host;

pub use hierarchy::Version;
pub use limits::{LimitError, Overhead, overhead};
pub use place::Driver;
pub use systemd::SystemdError;

/// A container's groups could not be made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// None at all.
    #[error("no control group hierarchy is mounted on this host")]
    NotMounted,
    /// The root group is everybody's.
    #[error("config.json: linux.cgroupsPath names the root of the control groups")]
    Root,
    /// Not in the form that the systemd driver takes.
    #[error(
        "config.json: linux.cgroupsPath must be slice:prefix:name where --systemd-cgroup is given, \
         got {0:?}"
    )]
    ScopePath(PathBuf),
    /// Not the name of a slice.
    #[error("config.json: linux.cgroupsPath: {0:?} is not the name of a slice of systemd's")]
    Slice(String),
    /// Somebody else's processes are in it.
    #[error("the container's cgroup {} is not empty: {count} processes found", path.display())]
    Used {
        /// The group.
        path: PathBuf,
        /// How many.
        count: usize,
    },
    /// A file or directory.
    #[error("cannot {action} cgroup {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A limit that this host cannot have.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// A value that the kernel refuses.
    #[error("config.json: linux.resources.{field}: cannot write {value:?} to {}", path.display())]
    Refused {
        /// The field below `linux.resources`.
        field: &'static str,
        /// What was written.
        value: String,
        /// Where to.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// systemd.
    #[error("cannot have systemd {action} {unit}")]
    Systemd {
        /// What was asked of it.
        action: &'static str,
        /// About which unit.
        unit: String,
        /// The reason.
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
    /// The hierarchy, as /proc/self/cgroup calls it: its controllers, or nothing for version 2.
    hierarchy: String,
    /// Where it is mounted.
    mount: PathBuf,
    /// The group.
    path: PathBuf,
}

impl Dir {
    fn has(&self, controller: &str) -> bool {
        // Version 2 has all of them in one.
        self.hierarchy.is_empty() || self.hierarchy.split(',').any(|name| name == controller)
    }
}

/// A container's groups, one in each hierarchy. It can be written down and outlives its processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    version: Version,
    dirs: Vec<Dir>,
    /// systemd's unit, if it makes them, and the slice that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<(String, String)>,
}

impl Cgroup {
    /// The groups that the container `id` is to have. Nothing is made; it is an error if there are
    /// processes in one already.
    pub fn find(
        driver: Driver,
        cgroups_path: Option<&Path>,
        id: &str,
    ) -> Result<Self, CgroupError> {
        let host = host()?;
        let place = place::find(&host, driver, cgroups_path, id)?;
        let found = Self {
            version: host.version,
            dirs: place.dirs,
            scope: place.scope.map(|scope| (scope.slice, scope.unit)),
        };
        found.check_unused()?;
        Ok(found)
    }

    /// The groups that this process is in.
    pub fn own() -> Result<Self, CgroupError> {
        let host = host()?;
        let dirs = host.hierarchies.into_iter().map(|hierarchy| Dir {
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

    /// Makes the groups and puts processes into them, whose children will be in them too. The
    /// machine is confined to CPUs and memory nodes from here on; see [`Self::limit`] for the rest.
    pub fn create(
        &self,
        processes: &[i32],
        resources: Option<&LinuxResources>,
    ) -> Result<(), CgroupError> {
        if let Some((slice, unit)) = &self.scope {
            systemd::start(slice, unit, processes)?;
        }
        for dir in &self.dirs {
            files::make(self.version, dir)?;
        }
        if let Some(resources) = resources {
            files::apply(self, &limits::placement(resources))?;
        }
        processes.iter().try_for_each(|process| self.add(*process))
    }

    /// Puts this process into groups that it was in before. If they are gone or have been divided
    /// meanwhile, into the root.
    pub fn take_back(&self) -> Result<(), CgroupError> {
        let own = rustix::process::getpid().as_raw_nonzero().to_string();
        for dir in &self.dirs {
            let enter = |group: &Path| std::fs::write(group.join("cgroup.procs"), &own);
            enter(&dir.path)
                .or_else(|_| enter(&dir.mount))
                .map_err(failed("enter", &dir.path))?;
        }
        Ok(())
    }

    /// Puts a process into the groups.
    pub fn add(&self, process: i32) -> Result<(), CgroupError> {
        for dir in &self.dirs {
            let procs = dir.path.join("cgroup.procs");
            match std::fs::write(&procs, process.to_string()) {
                // It has ended already, which is told elsewhere.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::SRCH) => {}
                entered => entered.map_err(failed("enter", &dir.path))?,
            }
        }
        Ok(())
    }

    /// Holds the machine to a container's limits. Called when its guest is up: a share of a CPU
    /// that is enough for a program is too little to boot with.
    pub fn limit(&self, resources: &LinuxResources, engine: Overhead) -> Result<(), CgroupError> {
        let settings = self.settings(resources, engine)?;
        if let Some((_, unit)) = &self.scope {
            systemd::set_limits(unit, self.version, resources, engine)?;
        }
        files::apply(self, &settings)
    }

    /// Changes the limits of a container that runs. What `resources` does not name stays.
    pub fn update(&self, resources: &LinuxResources, engine: Overhead) -> Result<(), CgroupError> {
        files::apply(self, &limits::placement(resources))?;
        self.limit(resources, engine)
    }

    /// What the container costs the host, as the agent tells what it costs the guest.
    pub fn stats(&self) -> StatsResponse {
        stats::read(self)
    }

    /// The processes in the groups and below.
    pub fn processes(&self) -> Result<BTreeSet<i32>, CgroupError> {
        let mut processes = BTreeSet::new();
        for dir in &self.dirs {
            processes.extend(files::processes(&dir.path)?);
        }
        Ok(processes)
    }

    /// Ends whatever is in the groups, but for this process, and removes them. Nothing there is no
    /// error.
    pub fn remove(&self) -> Result<(), CgroupError> {
        remove::remove(self)
    }

    /// Says what of `resources` this host cannot hold a container to.
    pub fn check(resources: &LinuxResources) -> Result<(), CgroupError> {
        // What the engine takes changes numbers alone.
        let engine = Overhead::default();
        match host()?.version {
            Version::One => v1::settings(resources, engine)?,
            Version::Two => v2::settings(resources, engine)?,
        };
        Ok(())
    }

    fn settings(
        &self,
        resources: &LinuxResources,
        engine: Overhead,
    ) -> Result<Vec<limits::Setting>, CgroupError> {
        Ok(match self.version {
            Version::One => v1::settings(resources, engine)?,
            Version::Two => v2::settings(resources, engine)?,
        })
    }

    fn check_unused(&self) -> Result<(), CgroupError> {
        for dir in &self.dirs {
            let count = files::processes(&dir.path)?.len();
            if count > 0 {
                return Err(CgroupError::Used {
                    path: dir.path.clone(),
                    count,
                });
            }
        }
        Ok(())
    }

    /// The group that a controller is in.
    fn dir(&self, controller: &str) -> Option<&Path> {
        let dir = self.dirs.iter().find(|dir| dir.has(controller))?;
        Some(&dir.path)
    }
}

fn host() -> Result<Host, CgroupError> {
    let host = Host::current().map_err(failed("find the hierarchies of", Path::new("/")))?;
    host.ok_or(CgroupError::NotMounted)
}

/// Whether a file of `linux.resources.unified` is about what the host alone has: its disks, its CPUs
/// and its memory nodes. All others are the guest's.
pub fn is_hosts(file: &str) -> bool {
    file.starts_with("io.") || file.starts_with("cpuset.")
}

#[cfg(test)]
mod tests;
