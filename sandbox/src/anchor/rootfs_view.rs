//! The mount namespace of a container's anchor thread: a view of the container's root file system
//! for the host's tools.
//!
//! `podman cp` copies files in the mount namespace of a running container's pid, and other tools
//! read `/proc/PID/root`. Both must find the container's files there and none of the host's. The
//! view has the root and the volumes that the guest has, at the same paths. File systems that only
//! the guest has, such as a tmpfs or `/dev`, are empty read-only directories in the view, so that
//! no tool writes a file that the container never sees. So is `/proc`, which
//! [`super::synthetic_proc`] fills for Podman when a tool opens it. Where it is not filled, a tool
//! that looks for processes gets an error instead of an empty list.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind_recursive,
    mount_change, mount_move, open_tree, unmount,
};
use rustix::thread::UnshareFlags;
use rvm_protocol::SHARED_DIR;
use rvm_sys::beneath;
use rvm_sys::namespaces::unshare;

use crate::anchor::synthetic_proc;
use crate::host::read_only::set_read_only;
use crate::share::{ROOT, StorageError, at};
use crate::spec::mounts::is_below;

/// The mounts of a container's root file system that the host can show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootfsView {
    root: PathBuf,
    read_only: bool,
    mounts: Vec<ViewMount>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct ViewMount {
    /// As in config.json.
    destination: PathBuf,
    /// The source on the host; None for a file system that only the guest has.
    source: Option<PathBuf>,
    is_proc: bool,
}

impl RootfsView {
    /// The view of the container `id`. `spec` is the translated configuration, whose sources are in
    /// the shared directory.
    pub fn of(spec: &Spec, shared: &Path, id: &str) -> Self {
        let root = spec.root().as_ref();
        // The mounts below a volume come with it.
        let mounts = spec
            .mounts()
            .iter()
            .flatten()
            .filter(|mount| !is_below(mount));
        let view_mount = |mount: &oci_spec::runtime::Mount| {
            let source = mount.source().as_deref();
            let within = source.and_then(|source| source.strip_prefix(SHARED_DIR).ok());
            ViewMount {
                destination: mount.destination().clone(),
                source: within.map(|within| shared.join(within)),
                is_proc: mount.typ().as_deref() == Some("proc"),
            }
        };
        Self {
            root: shared.join(id).join(ROOT),
            read_only: root.and_then(|root| root.readonly()).unwrap_or(false),
            mounts: mounts.map(view_mount).collect(),
        }
    }

    /// Moves the calling thread into a new mount namespace with the view as its root. The guest
    /// must have created the mount points. Returns a writable mount of the view's `/proc`, if there
    /// is one and the host's kernel is not older than Linux 5.2.
    pub fn enter(&self) -> Result<Option<OwnedFd>, StorageError> {
        let here = Path::new("/");
        at(
            "make a mount namespace from",
            here,
            unshare(UnshareFlags::NEWNS),
        )?;
        let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        at("make a slave of", here, mount_change(here, slave))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&self.root, flags, Mode::empty());
        let root = at("open", &self.root, root)?;
        let mut proc = None;
        for mount in &self.mounts {
            proc = self.mount(&root, mount)?.or(proc);
        }
        if self.read_only {
            at(
                "make read-only",
                &self.root,
                set_read_only(&self.root, true, false),
            )?;
        }
        at("change the root to", &self.root, pivot(&root))?;
        Ok(proc)
    }

    fn mount(&self, root: &OwnedFd, mount: &ViewMount) -> Result<Option<OwnedFd>, StorageError> {
        let path = &mount.destination;
        let found = match open_in(root, path) {
            // Below a file system that only the guest has.
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            found => at("find", path, found)?,
        };
        let point = format!("/proc/thread-self/fd/{}", found.as_raw_fd());
        match &mount.source {
            Some(source) => {
                at("show", path, mount_bind_recursive(source, &point))?;
                Ok(None)
            }
            None => {
                let stat = at("examine", path, rustix::fs::fstat(&found))?;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => at("overmount", path, overmount(root, mount, &point)),
                    _ => Ok(None),
                }
            }
        }
    }
}

/// Mounts an empty read-only tmpfs. For a /proc, returns another mount of it, which is writable.
fn overmount(root: &OwnedFd, view_mount: &ViewMount, point: &str) -> io::Result<Option<OwnedFd>> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = match view_mount.is_proc {
        true => synthetic_proc::MOUNT_OPTIONS,
        false => c"mode=755,size=4k",
    };
    mount("rvm", point, "tmpfs", flags, Some(options))?;
    // `point` is a descriptor of the directory below the tmpfs.
    let top = open_in(root, &view_mount.destination)?;
    let mut writable = None;
    if view_mount.is_proc {
        // A link to itself makes reading /proc/1 an error until processes are written.
        rustix::fs::symlinkat("1", &top, "1")?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        writable = open_tree(&top, "", flags).ok();
    }
    if view_mount.destination == Path::new("/dev") {
        // Podman reads /dev/pts for the names of terminals, and fails without it.
        rustix::fs::mkdirat(&top, "pts", Mode::from_raw_mode(0o755))?;
    }
    let point = format!("/proc/thread-self/fd/{}", top.as_raw_fd());
    set_read_only(Path::new(&point), true, false)?;
    Ok(writable)
}

/// Opens a path below a root. Symbolic links of the image are resolved within the root.
fn open_in(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    beneath::open(root, path, OFlags::PATH, ResolveFlags::IN_ROOT)
}

fn pivot(root: &OwnedFd) -> Result<(), Errno> {
    rustix::process::fchdir(root)?;
    match rustix::process::pivot_root(c".", c".") {
        // The old root is now mounted on top of the new one.
        Ok(()) => unmount(c".", UnmountFlags::DETACH)?,
        // A host that runs in its initramfs has a root that cannot be pivoted, only overmounted.
        Err(Errno::INVAL) => mount_move(c".", c"/")?,
        Err(error) => return Err(error),
    }
    rustix::process::chroot(c".")?;
    rustix::process::chdir(c"/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::anchor::PidAnchor;
    use serde_json::json;
    use std::fs;

    struct Shared {
        _dir: tempfile::TempDir,
        path: PathBuf,
    }

    impl Shared {
        /// A root with a volume's mount point and an absolute link.
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().to_owned();
            let root = path.join("box/rootfs");
            for name in ["etc", "proc", "data"] {
                fs::create_dir_all(root.join(name)).unwrap();
            }
            std::os::unix::fs::symlink("/data", root.join("link")).unwrap();
            fs::write(root.join("etc/file"), "of the image").unwrap();
            fs::create_dir_all(path.join("box/mounts/0")).unwrap();
            fs::write(path.join("box/mounts/0/file"), "of the volume").unwrap();
            Self { _dir: dir, path }
        }

        fn view(&self, spec: serde_json::Value) -> PidAnchor {
            let spec: Spec = serde_json::from_value(spec).unwrap();
            let view = RootfsView::of(&spec, &self.path, "box");
            let root = view.root.clone();
            let anchor = PidAnchor::spawn();
            let enter = move || {
                unshare(UnshareFlags::NEWNS).unwrap();
                mount_change(
                    "/",
                    MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
                )
                .unwrap();
                // A mount, as in the shared directory.
                mount_bind_recursive(&root, &root).unwrap();
                view.enter()
            };
            anchor.run(enter).unwrap();
            anchor
        }
    }

    fn seen(anchor: &PidAnchor, path: &str) -> io::Result<String> {
        fs::read_to_string(format!("/proc/{}/root{path}", anchor.pid()))
    }

    fn spec(read_only: bool) -> serde_json::Value {
        json!({ "ociVersion": "1.2.0", "root": { "path": "rootfs", "readonly": read_only },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/link", "type": "bind",
                  "source": "/run/rvm/shared/box/mounts/0", "options": ["rbind"] },
                { "destination": "/proc/below", "type": "tmpfs", "source": "tmpfs" },
            ] })
    }

    #[test]
    fn the_containers_files_are_there_and_nothing_else() {
        let shared = Shared::new();
        let view = shared.view(spec(false));
        assert_eq!(seen(&view, "/etc/file").unwrap(), "of the image");
        assert_eq!(seen(&view, "/data/file").unwrap(), "of the volume");
        assert!(seen(&view, "/etc/os-release").is_err());
        let table = fs::read_to_string(format!("/proc/{}/mountinfo", view.pid())).unwrap();
        assert_eq!(table.lines().count(), 3, "{table}");
        let path = format!("/proc/{}/root/etc/file", view.pid());
        fs::write(path, "changed").unwrap();
        let file = shared.path.join("box/rootfs/etc/file");
        assert_eq!(fs::read_to_string(file).unwrap(), "changed");
    }

    #[test]
    fn a_file_system_of_the_guests_is_empty_and_read_only() {
        let shared = Shared::new();
        let view = shared.view(spec(false));
        let error = fs::write(format!("/proc/{}/root/proc/new", view.pid()), "").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        let error = seen(&view, "/proc/1/stat").unwrap_err();
        assert_eq!(Errno::from_io_error(&error), Some(Errno::LOOP));
    }

    #[test]
    fn a_read_only_root_is_read_only_and_its_volumes_are_not() {
        let shared = Shared::new();
        let view = shared.view(spec(true));
        let write = |path: &str| fs::write(format!("/proc/{}/root{path}", view.pid()), "");
        let error = write("/etc/file").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        write("/data/file").unwrap();
    }

    #[test]
    fn a_view_can_be_left() {
        let shared = Shared::new();
        let view = shared.view(spec(false));
        view.leave_rootfs().unwrap();
        let mounts = |path: &str| fs::read_link(path).unwrap();
        assert_eq!(
            mounts(&format!("/proc/{}/ns/mnt", view.pid())),
            mounts("/proc/thread-self/ns/mnt")
        );
    }
}
