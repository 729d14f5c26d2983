//! A /proc/meminfo for each container that shows its own limit and use, as LXCFS does, and not the
//! machine's, which is larger and which a pod's containers share.
//!
//! The container has a file of the guest mounted there. Whoever reads it waits, by a permission
//! event of fanotify(7), until the agent has written the numbers of that moment. Nothing is read
//! or computed unless somebody reads.

mod text;

use std::collections::HashMap;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rvm_protocol::ContainerId;
use rvm_sys::fanotify::AccessRequests;
use rvm_sys::mount::{AttrChange, attr};

use crate::cgroup::{self, Cgroup};
use crate::init::plan::{CapabilityPlan, ContainerPlan, MountPlan, MountSource};

/// The containers' files, by id, in the guest.
const FILES: &str = "/run/rvm/meminfo";

/// The machine's own numbers.
const MACHINES: &str = "/proc/meminfo";

/// The bit of CAP_SYS_ADMIN, see capabilities(7).
const SYS_ADMIN: u64 = 1 << 21;

/// How long what was written counts as current: the second read(2) of a program, which finds the
/// end, costs little, and a container that does nothing but read does not keep the agent busy.
const CURRENT: Duration = Duration::from_millis(10);

/// The files of all containers. A copy is another handle.
#[derive(Clone, Default)]
pub struct Meminfo(Arc<Mutex<Served>>);

#[derive(Default)]
struct Served {
    /// None until the first container, and after a failure.
    requests: Option<Arc<AccessRequests>>,
    /// By inode number.
    files: HashMap<u64, Numbers>,
}

/// One container's file and where its contents come from.
struct Numbers {
    file: File,
    cgroup: OwnedFd,
    written: Option<Instant>,
}

/// A container's file. Dropped, it goes, once the container's mounts are gone too.
pub struct Shown {
    all: Meminfo,
    inode: u64,
    path: PathBuf,
}

impl Meminfo {
    /// Makes the file of a container, and plans its mount. None if the container has no /proc of
    /// its own or a file of the engine's there, and where it fails: the container then sees the
    /// machine's numbers.
    ///
    /// Neither has it a privileged container, with CAP_SYS_ADMIN and nothing hidden in its /proc:
    /// the kernel refuses a new /proc in a user namespace below one with a file that is covered,
    /// and such a container may well make containers.
    pub fn show(
        &self,
        id: &ContainerId,
        cgroup: &Cgroup,
        capabilities: &CapabilityPlan,
        plan: &mut ContainerPlan,
    ) -> Option<Shown> {
        let is_admin = capabilities.bounding & SYS_ADMIN != 0;
        if !has_own_proc(plan) || (is_admin && plan.masked_paths.is_empty()) {
            return None;
        }
        let shown = self.make(id, cgroup);
        let shown = shown.inspect_err(|error| log::warn!("container {id}: {MACHINES}: {error}"));
        let shown = shown.ok()?;
        plan.mounts.push(MountPlan {
            destination: MACHINES.to_owned(),
            source: MountSource::Bind {
                path: shown.path.to_str()?.to_owned(),
                recursive: false,
                may_be_missing: false,
                prepared: None,
            },
            attributes: AttrChange {
                set: attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC,
                ..AttrChange::default()
            },
            ..MountPlan::default()
        });
        Some(shown)
    }

    fn make(&self, id: &ContainerId, cgroup: &Cgroup) -> io::Result<Shown> {
        match std::fs::create_dir(FILES) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let path = PathBuf::from(format!("{FILES}/{id}"));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)?;
        let shown = Shown {
            all: self.clone(),
            inode: file.metadata()?.ino(),
            path,
        };
        file.set_permissions(Permissions::from_mode(0o444))?;
        self.requests()?.watch_reads(file.as_fd())?;
        let numbers = Numbers {
            file,
            cgroup: cgroup.directory().try_clone_to_owned()?,
            written: None,
        };
        self.lock().files.insert(shown.inode, numbers);
        Ok(shown)
    }

    /// The queue of readers, which a task serves from the first call on.
    fn requests(&self) -> io::Result<Arc<AccessRequests>> {
        let mut served = self.lock();
        if let Some(requests) = &served.requests {
            return Ok(requests.clone());
        }
        let requests = Arc::new(AccessRequests::new()?);
        served.requests = Some(requests.clone());
        tokio::spawn(self.clone().serve(requests.clone()));
        Ok(requests)
    }

    async fn serve(self, requests: Arc<AccessRequests>) {
        loop {
            match requests.next().await {
                Ok(request) => {
                    let written = request.file().and_then(|file| self.write(file));
                    if let Err(error) = written {
                        log::debug!("{MACHINES} of a container: {error}");
                    }
                    request.allow();
                }
                // The kernel has denied a reader for want of memory or a descriptor.
                Err(error) if is_shortage(&error) => {}
                Err(error) => {
                    log::warn!("{MACHINES} of containers is not kept current: {error}");
                    // The last handle but this task's: readers no longer wait.
                    self.lock().requests = None;
                    return;
                }
            }
        }
    }

    /// Writes the numbers of a container into its file.
    fn write(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        let inode = rustix::fs::fstat(file)?.st_ino;
        match self.lock().files.get_mut(&inode) {
            Some(numbers) => numbers.write(),
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Served> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Numbers {
    fn write(&mut self) -> io::Result<()> {
        if self.written.is_some_and(|at| at.elapsed() < CURRENT) {
            return Ok(());
        }
        let machine = std::fs::read_to_string(MACHINES)?;
        let read = |file: &str| cgroup::read_file(&self.cgroup, file).unwrap_or_default();
        let text = text::render(&machine, &read);
        self.file.write_all_at(text.as_bytes(), 0)?;
        self.file.set_len(text.len() as u64)?;
        self.written = Some(Instant::now());
        Ok(())
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.all.lock().files.remove(&self.inode);
        let _ = std::fs::remove_file(&self.path);
    }
}

fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)
    )
}

/// Whether the container's /proc is a new one, with the kernel's own meminfo.
fn has_own_proc(plan: &ContainerPlan) -> bool {
    let at = |mount: &&MountPlan, path| mount.destination.trim_end_matches('/') == path;
    let proc = plan.mounts.iter().rfind(|mount| at(mount, "/proc"));
    let is_new = proc.is_some_and(
        |mount| matches!(&mount.source, MountSource::Filesystem { kind, .. } if kind == "proc"),
    );
    is_new && !plan.mounts.iter().any(|mount| at(&mount, MACHINES))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(destination: &str, source: MountSource) -> MountPlan {
        MountPlan {
            destination: destination.to_owned(),
            source,
            ..MountPlan::default()
        }
    }

    fn proc(kind: &str) -> MountPlan {
        let source = MountSource::Filesystem {
            kind: kind.to_owned(),
            source: kind.to_owned(),
            data: Vec::new(),
            copy_up: false,
            idmap: None,
        };
        mount("/proc", source)
    }

    #[test]
    fn only_a_new_proc_without_a_file_of_the_engines_is_covered() {
        let bind = |destination| {
            let source = MountSource::Bind {
                path: "/run/rvm/shared/0".to_owned(),
                recursive: true,
                may_be_missing: false,
                prepared: None,
            };
            mount(destination, source)
        };
        let verdict = |mounts| {
            has_own_proc(&ContainerPlan {
                mounts,
                ..ContainerPlan::default()
            })
        };
        assert!(verdict(vec![proc("proc"), bind("/data")]));
        assert!(!verdict(vec![proc("proc"), bind("/proc/meminfo")]));
        assert!(!verdict(vec![proc("proc"), bind("/proc/")]));
        assert!(!verdict(vec![bind("/proc")]));
        assert!(!verdict(vec![]));
    }
}
