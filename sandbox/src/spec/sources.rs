//! Classifies the sources of bind mounts, and those of mounts of disks.
//!
//! Files and directories are shared with the guest. A device is not: the guest uses its own device
//! with the same number. A part of procfs, sysfs or devtmpfs is replaced by the guest's. Sockets
//! and FIFOs connect processes of one kernel, so they are refused.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};

use super::mounts::{is_bind, is_of_mount, is_read_only, maps_ids, options};
use super::pod::Role;
use super::validate::FieldError;
use crate::disk;
use crate::host::mount_table::{self, BoundMount, Entry};
use crate::share;

/// The most mounts in a volume that the guest gets as mounts. Each takes a few requests to the file
/// server when the container starts.
const MAX_MOUNTS: usize = 512;

/// The kind of a mount's source.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A file or directory to share.
    Files {
        path: PathBuf,
        /// The mount that holds it, and those below it.
        mounts: Vec<BoundMount>,
    },
    /// A volume that its owner updates atomically; the guest gets a copy, see [`crate::share`].
    Volume(PathBuf),
    /// A block device or image file with a file system that the guest mounts.
    Disk(PathBuf),
    /// An overlay of directories of the host, by the options of its file system.
    Overlay(String),
    /// A device, by its link in the guest's /sys/dev. The agent finds the node.
    Device(PathBuf),
    /// A path in procfs, sysfs or devtmpfs, where the guest has its own.
    Kernel(PathBuf),
    /// /sys/fs/cgroup.
    Cgroups,
    /// A hierarchy of version 1, which the guest does not have.
    CgroupV1,
    /// An engine's tmpfs for /dev/shm, by its size in bytes.
    SharedMemory(u64),
}

/// Classifies the source of every mount; None for those of file systems without a disk.
pub fn classify(dir: &Path, spec: &Spec, role: &Role) -> Result<Vec<Option<Source>>, FieldError> {
    let mounts = spec.mounts().iter().flatten().enumerate();
    let table = mount_table::read().map_err(|error| FieldError {
        field: "mounts".to_owned(),
        reason: format!("cannot be compared with those of the host: {error}"),
    })?;
    let table: Vec<Entry> = mount_table::parse(&table).collect();
    mounts
        .map(|(index, mount)| match mount.source() {
            Some(source) if is_bind(mount) => classify_one(&dir.join(source), mount, role, &table)
                .map(Some)
                .map_err(|reason| FieldError {
                    field: format!("mounts[{index}].source"),
                    reason: format!("{}{reason}", source.display()),
                }),
            Some(source) if is_of_disk(mount) => {
                let path = dir.join(source);
                let is_disk = disk::is_disk(&path).map_err(|error| format!(": {error}"));
                let checked = is_disk.and_then(|is_disk| match is_disk {
                    true => Ok(Some(Source::Disk(path))),
                    false => Err(" is neither a block device nor an image file".to_owned()),
                });
                checked.map_err(|reason| FieldError {
                    field: format!("mounts[{index}].source"),
                    reason: format!("{}{reason}", source.display()),
                })
            }
            _ if mount.typ().as_deref() == Some("overlay") => {
                overlay(mount).map(Some).map_err(|reason| FieldError {
                    field: format!("mounts[{index}].options"),
                    reason,
                })
            }
            _ => Ok(None),
        })
        .collect()
}

/// The host stacks the directories, which are its own, and shares the result.
fn overlay(mount: &Mount) -> Result<Source, String> {
    let of_file_system: Vec<&str> = options(mount)
        .filter(|option| !is_of_mount(option))
        .collect();
    let directory = |name: &str| {
        let mut options = of_file_system.iter();
        options.find_map(|option| option.strip_prefix(name))
    };
    if directory("lowerdir=").is_none() {
        return Err("have no lowerdir, which an overlay needs".to_owned());
    }
    let names = ["lowerdir=", "upperdir=", "workdir="];
    let mut named = names.into_iter().filter_map(directory);
    match named.find(|path| !path.starts_with('/')) {
        Some(path) => Err(format!("have {path:?}, which is no absolute path")),
        None => Ok(Source::Overlay(of_file_system.join(","))),
    }
}

fn is_of_disk(mount: &Mount) -> bool {
    mount
        .typ()
        .as_deref()
        .is_some_and(disk::is_disk_file_system)
}

fn classify_one(
    path: &Path,
    mount: &Mount,
    role: &Role,
    table: &[Entry],
) -> Result<Source, String> {
    let status = std::fs::metadata(path).map_err(|error| format!(": {error}"))?;
    let kind = status.file_type();
    if kind.is_socket() {
        return Err(" is a socket, which cannot be reached from a virtual machine".to_owned());
    }
    if kind.is_fifo() {
        return Err(" is a FIFO, which cannot be reached from a virtual machine".to_owned());
    }
    if kind.is_char_device() || kind.is_block_device() {
        return Ok(Source::Device(device(&status)));
    }
    let real = path.canonicalize().map_err(|error| format!(": {error}"))?;
    Ok(match kernel_file_system(&real) {
        Some(source) => source,
        None => match engine_shm(&real, mount, role) {
            Some(bytes) => Source::SharedMemory(bytes),
            None if is_copied(&real, mount) => Source::Volume(real),
            None => Source::Files {
                path: path.to_owned(),
                mounts: shared_mounts(table, &real),
            },
        },
    })
}

/// The mounts of a directory or file that is shared, without those of the kernel's own file
/// systems, of which the guest has others.
fn shared_mounts(table: &[Entry], path: &Path) -> Vec<BoundMount> {
    let mut mounts = mount_table::bound_mounts(table, path);
    mounts.retain(|mount| kernel_file_system(&path.join(&mount.below)).is_none());
    if mounts.len() > MAX_MOUNTS {
        tracing::warn!(
            "{}: of {} mounts, those after the first {MAX_MOUNTS} have the options of the volume",
            path.display(),
            mounts.len()
        );
        mounts.truncate(MAX_MOUNTS);
    }
    mounts
}

/// A container with write access must get the volume itself, not a copy.
fn is_copied(path: &Path, mount: &Mount) -> bool {
    is_read_only(mount) && !maps_ids(mount) && share::is_atomic_volume(path)
}

/// The link of a device in sysfs.
fn device(status: &Metadata) -> PathBuf {
    let kind = match status.file_type().is_block_device() {
        true => "block",
        false => "char",
    };
    let number = status.rdev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    format!("/sys/dev/{kind}/{major}:{minor}").into()
}

/// The guest's replacement for a path in a kernel's file system.
fn kernel_file_system(path: &Path) -> Option<Source> {
    let is_below = |parent: &str| path.starts_with(parent);
    if path == Path::new("/sys/fs/cgroup") {
        return Some(Source::Cgroups);
    }
    if is_below("/sys/fs/cgroup") {
        return Some(Source::CgroupV1);
    }
    // Only /dev/shm holds ordinary files.
    let is_device_tree = is_below("/dev") && !is_below("/dev/shm");
    (is_device_tree || is_below("/proc") || is_below("/sys"))
        .then(|| Source::Kernel(path.to_owned()))
}

/// The size in bytes of an engine's tmpfs for /dev/shm: an empty tmpfs called `shm`, which engines
/// mount for each container. A tmpfs of the guest is faster and behaves as memory. Containers of
/// a pod share theirs, so it stays the host's.
fn engine_shm(path: &Path, mount: &Mount, role: &Role) -> Option<u64> {
    let is_shm = *role == Role::Alone
        && mount.destination() == Path::new("/dev/shm")
        && path.file_name() == Some("shm".as_ref());
    let device = |path: &Path| Some(path.metadata().ok()?.dev());
    if !is_shm || path.parent().and_then(device) == device(path) {
        return None;
    }
    let is_empty = std::fs::read_dir(path).ok()?.next().is_none();
    let status = rustix::fs::statfs(path).ok()?;
    let bytes = status
        .f_blocks
        .checked_mul(u64::try_from(status.f_bsize).ok()?)?;
    (is_empty && status.f_type == libc::TMPFS_MAGIC).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(source: &str, destination: &str) -> Result<Source, String> {
        let spec = serde_json::from_value(json!({ "ociVersion": "1.2.0", "mounts": [
            { "destination": destination, "type": "bind", "source": source },
        ] }));
        match classify(Path::new("/"), &spec.unwrap(), &Role::Alone) {
            Ok(mut sources) => Ok(sources.remove(0).unwrap()),
            Err(error) => Err(format!("{} {}", error.field, error.reason)),
        }
    }

    #[test]
    fn an_overlay_is_of_absolute_directories() {
        let found = |options: &[&str]| {
            let spec = json!({ "ociVersion": "1.2.0", "mounts": [
                { "destination": "/x", "type": "overlay", "source": "overlay",
                  "options": options },
            ] });
            let spec = serde_json::from_value(spec).unwrap();
            classify(Path::new("/"), &spec, &Role::Alone)
                .map(|sources| sources[0].clone())
                .map_err(|error| format!("{} {}", error.field, error.reason))
        };
        let directories = "lowerdir=/a:/b,upperdir=/c,workdir=/d";
        let overlay = Some(Source::Overlay(format!("{directories},metacopy=on")));
        assert_eq!(
            found(&["ro", directories, "private", "metacopy=on"]),
            Ok(overlay)
        );
        for (options, reason) in [
            (&["upperdir=/c"][..], "have no lowerdir"),
            (&["lowerdir=a"], "\"a\""),
            (&["lowerdir=/a", "upperdir=c"], "\"c\""),
        ] {
            let error = found(options).unwrap_err();
            assert!(error.starts_with("mounts[0].options have "), "{error}");
            assert!(error.contains(reason), "{error}");
        }
    }

    fn is_files(found: Result<Source, String>, at: &str) -> bool {
        matches!(found, Ok(Source::Files { path, .. }) if path == Path::new(at))
    }

    #[test]
    fn files_and_directories_are_shared() {
        for path in ["/etc/passwd", "/etc", "/dev/shm"] {
            assert!(is_files(found(path, "/x"), path));
        }
    }

    #[test]
    fn a_device_is_the_guests_by_its_number() {
        let device = Source::Device("/sys/dev/char/1:3".into());
        assert_eq!(found("/dev/null", "/x/null"), Ok(device));
    }

    #[test]
    fn kernel_file_systems_are_the_guests() {
        for path in ["/proc", "/sys/kernel", "/dev", "/dev/pts"] {
            assert_eq!(found(path, "/x"), Ok(Source::Kernel(path.into())));
        }
        assert_eq!(
            found("/sys/fs/cgroup", "/sys/fs/cgroup"),
            Ok(Source::Cgroups)
        );
    }

    #[test]
    fn sockets_and_fifos_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        for (path, what) in [
            (socket, "socket"),
            (fifo, "FIFO"),
            ("/nonexistent".into(), "No such"),
        ] {
            let message = found(path.to_str().unwrap(), "/x").unwrap_err();
            assert!(message.starts_with("mounts[0].source /"), "{message}");
            assert!(message.contains(what), "{message}");
        }
    }

    #[test]
    fn an_engines_shm_is_a_tmpfs_of_the_guest() {
        let dir = tempfile::tempdir().unwrap();
        let shm = dir.path().join("shm");
        std::fs::create_dir(&shm).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("shm", &shm, "tmpfs", flags, Some(c"size=64m")).unwrap();
        let path = shm.to_str().unwrap();
        assert_eq!(found(path, "/dev/shm"), Ok(Source::SharedMemory(64 << 20)));
        assert!(is_files(found(path, "/other"), path));
        std::fs::write(shm.join("file"), "").unwrap();
        assert!(is_files(found(path, "/dev/shm"), path));
        rustix::mount::unmount(&shm, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}
