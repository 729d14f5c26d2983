//! The mount namespace of a container's stand-in: what the host's tools find behind the container's
//! pid.
//!
//! Podman copies files to and from a container that runs in the mount namespace of its pid, and others
//! look below `/proc/PID/root`. Both must find the container's files there and nothing of the host's. The
//! view has the root and the volumes that the guest has, at the same places. What the guest alone has,
//! such as a tmpfs or `/dev`, is an empty directory that cannot be written, so that nothing is put
//! where the container never sees it. So is `/proc`, which [`crate::anchor::synthetic_proc`] fills for Podman when
//! somebody looks into it. Where it cannot, whoever looks for processes there meets an error, which is better than
//! finding none.

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

use crate::anchor::synthetic_proc;
use crate::host::read_only::make_read_only;
use crate::share::ROOT;

/// The view could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {} for the host's tools", path.display())]
pub struct ViewError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn at<T, E: Into<io::Error>>(
    action: &'static str,
    path: &Path,
    result: Result<T, E>,
) -> Result<T, ViewError> {
    result.map_err(|source| ViewError {
        action,
        path: path.to_owned(),
        source: source.into(),
    })
}

/// What a container's files are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    root: PathBuf,
    read_only: bool,
    mounts: Vec<Place>,
}

/// Something mounted in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// Where, as the configuration says.
    destination: PathBuf,
    /// What of the host is there, if anything.
    source: Option<PathBuf>,
    /// Whether processes are looked for there.
    is_proc: bool,
}

impl View {
    /// That of the container `id`, whose files are in the shared directory as its translated
    /// configuration says.
    pub fn of(spec: &Spec, shared: &Path, id: &str) -> Self {
        let root = spec.root().as_ref();
        let mounts = spec.mounts().iter().flatten();
        let place = |mount: &oci_spec::runtime::Mount| {
            let source = mount.source().as_deref();
            let within = source.and_then(|source| source.strip_prefix(SHARED_DIR).ok());
            Place {
                destination: mount.destination().clone(),
                source: within.map(|within| shared.join(within)),
                is_proc: mount.typ().as_deref() == Some("proc"),
            }
        };
        Self {
            root: shared.join(id).join(ROOT),
            read_only: root.and_then(|root| root.readonly()).unwrap_or(false),
            mounts: mounts.map(place).collect(),
        }
    }

    /// Moves the calling thread into a new mount namespace that shows it. The mount points are there:
    /// the guest has made them. Returns a writable mount of its `/proc`, if it has one and the host's
    /// kernel is not older than Linux 5.2.
    pub fn enter(&self) -> Result<Option<OwnedFd>, ViewError> {
        let here = Path::new("/");
        at("make a mount namespace from", here, unshare())?;
        let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        at("let go of", here, mount_change(here, slave))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&self.root, flags, Mode::empty());
        let root = at("open", &self.root, root)?;
        let mut processes = None;
        for place in &self.mounts {
            processes = self.mount(&root, place)?.or(processes);
        }
        if self.read_only {
            at(
                "make read-only",
                &self.root,
                make_read_only(&self.root, false),
            )?;
        }
        at("change the root to", &self.root, pivot(&root))?;
        Ok(processes)
    }

    fn mount(&self, root: &OwnedFd, place: &Place) -> Result<Option<OwnedFd>, ViewError> {
        let path = &place.destination;
        let found = match open_in(root, path) {
            // Below something that is the guest's.
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            found => at("find", path, found)?,
        };
        let point = format!("/proc/thread-self/fd/{}", found.as_raw_fd());
        match &place.source {
            Some(source) => {
                at("show", path, mount_bind_recursive(source, &point))?;
                Ok(None)
            }
            None => {
                let stat = at("examine", path, rustix::fs::fstat(&found))?;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => at("cover", path, cover(root, place, &point)),
                    _ => Ok(None),
                }
            }
        }
    }
}

/// Mounts an empty directory that cannot be written. Returns, of a place for processes, a mount of it
/// that can.
fn cover(root: &OwnedFd, place: &Place, point: &str) -> io::Result<Option<OwnedFd>> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let limits = match place.is_proc {
        true => synthetic_proc::LIMITS,
        false => c"mode=755,size=4k",
    };
    mount("rvm", point, "tmpfs", flags, Some(limits))?;
    // `point` still leads below it.
    let top = open_in(root, &place.destination)?;
    let mut writable = None;
    if place.is_proc {
        // The first process is nowhere to be found: a link to itself.
        rustix::fs::symlinkat("1", &top, "1")?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        writable = open_tree(&top, "", flags).ok();
    }
    if place.destination == Path::new("/dev") {
        // Terminals are looked for there, and it is an error if it is not there.
        rustix::fs::mkdirat(&top, "pts", Mode::from_raw_mode(0o755))?;
    }
    let point = format!("/proc/thread-self/fd/{}", top.as_raw_fd());
    make_read_only(Path::new(&point), false)?;
    Ok(writable)
}

/// Opens a path in a root. Links in the image lead nowhere but into the image.
fn open_in(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    beneath::open(root, path, OFlags::PATH, ResolveFlags::IN_ROOT)
}

fn pivot(root: &OwnedFd) -> Result<(), Errno> {
    rustix::process::fchdir(root)?;
    match rustix::process::pivot_root(c".", c".") {
        // The old root is mounted over the new one now.
        Ok(()) => unmount(c".", UnmountFlags::DETACH)?,
        // A host that lives in its initramfs has a root that cannot be exchanged, only covered.
        Err(Errno::INVAL) => mount_move(c".", c"/")?,
        Err(error) => return Err(error),
    }
    rustix::process::chroot(c".")?;
    rustix::process::chdir(c"/")
}

#[expect(unsafe_code, reason = "unshare can break what relies on shared state")]
fn unshare() -> Result<(), Errno> {
    // SAFETY: CLONE_NEWNS, with the CLONE_FS that it implies, gives this thread a root and a working
    // directory of its own and nothing else.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::anchor::StandIn;
    use serde_json::json;
    use std::fs;

    struct Shared {
        _dir: tempfile::TempDir,
        path: PathBuf,
    }

    impl Shared {
        /// A root with a volume's mount point and a link that leads out of it.
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

        fn view(&self, spec: serde_json::Value) -> StandIn {
            let spec: Spec = serde_json::from_value(spec).unwrap();
            let view = View::of(&spec, &self.path, "box");
            let root = view.root.clone();
            let stand_in = StandIn::spawn().unwrap();
            let enter = move || {
                unshare().unwrap();
                mount_change(
                    "/",
                    MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
                )
                .unwrap();
                // A mount, as in the shared directory.
                mount_bind_recursive(&root, &root).unwrap();
                view.enter()
            };
            stand_in.have(enter).unwrap().unwrap();
            stand_in
        }
    }

    fn seen(stand_in: &StandIn, path: &str) -> io::Result<String> {
        fs::read_to_string(format!("/proc/{}/root{path}", stand_in.pid()))
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
    fn what_is_the_guests_alone_is_empty_and_cannot_be_written() {
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
        view.leave_view().unwrap();
        let mounts = |path: &str| fs::read_link(path).unwrap();
        assert_eq!(
            mounts(&format!("/proc/{}/ns/mnt", view.pid())),
            mounts("/proc/thread-self/ns/mnt")
        );
    }
}
