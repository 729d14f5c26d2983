//! The root file system of a container: mounts that containerd's snapshotter describes, each
//! mounted over the one before.

mod disks;
mod options;
mod filesystem;
mod mapped;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use containerd_shim_protos::api::Mount;
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, UnmountFlags, mount_bind, mount_bind_recursive, mount_change, mount_remount,
    unmount,
};
use rvm_sys::error_chain::chain;

pub use disks::{DiskMountError, stack};
use options::Options;

/// The directory in the bundle on which the root file system is mounted.
pub const ROOTFS: &str = "rootfs";

#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct RootfsError {
    action: String,
    path: PathBuf,
    source: io::Error,
}

fn failed<E: Into<io::Error>>(
    action: impl Into<String>,
    path: &Path,
) -> impl FnOnce(E) -> RootfsError {
    let (action, path) = (action.into(), path.to_owned());
    move |source| RootfsError {
        action,
        path,
        source: source.into(),
    }
}

/// Mounts the root file system of a bundle. If one mount fails, those before it are undone.
pub fn mount_all(bundle: &Path, mounts: &[Mount]) -> Result<(), RootfsError> {
    if mounts.is_empty() {
        return Ok(());
    }
    let rootfs = bundle.join(ROOTFS);
    fs::create_dir_all(&rootfs).map_err(failed("create", &rootfs))?;
    let mounted = mounts.iter().try_for_each(|wanted| {
        let target = rootfs.join(wanted.target.trim_start_matches('/'));
        mount_one(wanted, &target)
    });
    mounted.inspect_err(|_| {
        if let Err(error) = unmount_all(bundle) {
            tracing::warn!("{}", chain(&error));
        }
    })
}

/// Unmounts everything from a bundle's root. It is no error if nothing is mounted.
pub fn unmount_all(bundle: &Path) -> Result<(), RootfsError> {
    unmount_path(&bundle.join(ROOTFS))
}

/// Unmounts everything from a path. It is no error if nothing is mounted.
pub fn unmount_path(path: &Path) -> Result<(), RootfsError> {
    loop {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(failed("unmount", path)(errno)),
        }
    }
}

fn mount_one(wanted: &Mount, target: &Path) -> Result<(), RootfsError> {
    let options = Options::parse(&wanted.options);
    let what = format!("mount {} as the root file system at", wanted.type_);
    let mounted = match options.id_maps.is_empty() {
        true => mount_as_it_is(wanted, target, &options).map_err(io::Error::from),
        false => mount_mapped(wanted, target, &options),
    };
    mounted
        .and_then(|()| match options.propagation {
            Some(flags) => Ok(mount_change(target, flags)?),
            None => Ok(()),
        })
        .map_err(failed(what, target))
}

fn mount_mapped(wanted: &Mount, target: &Path, options: &Options) -> io::Result<()> {
    let mapper = mapped::mapper(&options.id_maps)?;
    if wanted.type_ == "overlay" {
        return mapped::mount_overlay(&wanted.source, target, options, &mapper);
    }
    mount_as_it_is(wanted, target, options)?;
    let recursive = options.bind == Some(true) || wanted.type_ == "rbind";
    mapped::remap(target, recursive, &mapper)
}

fn mount_as_it_is(wanted: &Mount, target: &Path, options: &Options) -> rustix::io::Result<()> {
    match (wanted.type_.as_str(), options.bind) {
        ("bind" | "rbind", recursive) => {
            let recursive = recursive.unwrap_or(wanted.type_ == "rbind");
            bind(&wanted.source, target, recursive, options.flags)
        }
        (_, Some(recursive)) => bind(&wanted.source, target, recursive, options.flags),
        (kind, None) => filesystem::mount(kind, &wanted.source, target, options),
    }
}

fn bind(source: &str, target: &Path, recursive: bool, flags: MountFlags) -> rustix::io::Result<()> {
    match recursive {
        true => mount_bind_recursive(source, target)?,
        false => mount_bind(source, target)?,
    }
    // mount(2) ignores other flags in the call that makes a bind mount; a remount sets them.
    match flags.is_empty() {
        true => Ok(()),
        false => mount_remount(target, flags | MountFlags::BIND, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, chown};

    fn wanted(kind: &str, source: &Path, options: &[&str]) -> Mount {
        Mount {
            type_: kind.to_owned(),
            source: source.to_str().unwrap().to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_bind_mount_is_made_and_goes_again() {
        let (bundle, source) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(source.path().join("file"), "contents").unwrap();
        let mounts = [wanted("bind", source.path(), &["rbind", "ro"])];
        mount_all(bundle.path(), &mounts).unwrap();
        let file = bundle.path().join("rootfs/file");
        assert_eq!(fs::read_to_string(&file).unwrap(), "contents");
        let error = fs::write(&file, "").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        unmount_all(bundle.path()).unwrap();
        unmount_all(bundle.path()).unwrap();
        assert!(!file.exists());
    }

    /// Overlay needs a file system that takes its attributes, such as tmpfs.
    fn overlay(layers: usize) -> Result<(), RootfsError> {
        let (bundle, source) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let options = Some(c"mode=755");
        rustix::mount::mount(
            "layers",
            source.path(),
            "tmpfs",
            MountFlags::empty(),
            options,
        )
        .unwrap();
        let path = |name: &str| source.path().join(name);
        let names: Vec<_> = (0..layers).map(|n| format!("layer-{n:0>30}")).collect();
        for name in &names {
            fs::create_dir(path(name)).unwrap();
            fs::write(path(name).join(name), "").unwrap();
        }
        fs::create_dir(path("upper")).unwrap();
        fs::create_dir(path("work")).unwrap();
        let lower: Vec<_> = names
            .iter()
            .map(|n| path(n).display().to_string())
            .collect();
        let options = [
            format!("lowerdir={}", lower.join(":")),
            format!("upperdir={}", path("upper").display()),
            format!("workdir={}", path("work").display()),
        ];
        let options = options.each_ref().map(String::as_str);
        let mounted = mount_all(
            bundle.path(),
            &[wanted("overlay", Path::new("overlay"), &options)],
        );
        if mounted.is_ok() {
            let found = fs::read_dir(bundle.path().join(ROOTFS)).unwrap().count();
            assert_eq!(found, layers);
        }
        unmount_all(bundle.path()).unwrap();
        unmount(source.path(), UnmountFlags::DETACH).unwrap();
        mounted
    }

    #[test]
    fn an_overlay_may_have_more_layers_than_mount_takes_options() {
        overlay(2).unwrap();
        overlay(60).unwrap();
        overlay(200).unwrap();
    }

    /// Directories on a file system that takes an overlay's attributes and maps ids.
    fn layers(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let none = MountFlags::empty();
        rustix::mount::mount("layers", dir.path(), "tmpfs", none, None).unwrap();
        for name in names {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join(name), "").unwrap();
        }
        dir
    }

    fn owner(path: &Path) -> (u32, u32) {
        let found = fs::metadata(path).unwrap();
        (found.uid(), found.gid())
    }

    #[test]
    fn of_an_overlay_with_maps_the_lower_layers_are_mapped() {
        let (bundle, dir) = (
            tempfile::tempdir().unwrap(),
            layers(&["a", "b", "upper", "work"]),
        );
        let path = |name: &str| dir.path().join(name);
        let mapped = (1000, 2000);
        chown(path("upper"), Some(mapped.0), Some(mapped.1)).unwrap();
        let options = [
            format!("lowerdir={}:{}", path("b").display(), path("a").display()),
            format!("upperdir={}", path("upper").display()),
            format!("workdir={}", path("work").display()),
            "uidmap=0:1000:10".to_owned(),
            "gidmap=0:2000:10".to_owned(),
        ];
        let options = options.each_ref().map(String::as_str);
        let overlay = wanted("overlay", Path::new("overlay"), &options);
        mount_all(bundle.path(), &[overlay]).unwrap();
        let root = bundle.path().join(ROOTFS);
        for name in ["", "a", "b"] {
            assert_eq!(owner(&root.join(name)), mapped, "{name:?}");
        }
        chown(root.join("a"), Some(1003), None).unwrap();
        assert_eq!(owner(&path("upper/a")), (1003, 2000));
        assert_eq!(owner(&path("a/a")), (0, 0), "the layer is as it was");
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let places = table.matches(bundle.path().to_str().unwrap()).count();
        assert_eq!(places, 1, "nothing but the overlay is mounted");
        unmount_all(bundle.path()).unwrap();
        unmount(dir.path(), UnmountFlags::DETACH).unwrap();
    }

    #[test]
    fn of_any_other_root_with_maps_the_whole_is_mapped() {
        let (bundle, dir) = (tempfile::tempdir().unwrap(), layers(&["a"]));
        let maps = ["rbind", "ro", "uidmap=0:1000:10", "gidmap=0:2000:10"];
        mount_all(
            bundle.path(),
            &[wanted("bind", &dir.path().join("a"), &maps)],
        )
        .unwrap();
        let file = bundle.path().join("rootfs/a");
        assert_eq!(owner(&file), (1000, 2000));
        assert!(fs::write(&file, "").is_err());
        unmount_all(bundle.path()).unwrap();
        assert!(!file.exists());
        for maps in [&maps[..3], &["uidmap=0:1:x", "gidmap=0:1:1"]] {
            let mounts = [wanted("bind", &dir.path().join("a"), maps)];
            assert!(mount_all(bundle.path(), &mounts).is_err(), "{maps:?}");
            assert!(!file.exists(), "what was mounted is undone");
        }
        unmount(dir.path(), UnmountFlags::DETACH).unwrap();
    }

    #[test]
    fn what_fails_says_where_and_leaves_nothing_mounted() {
        let (bundle, source) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mounts = [
            wanted("bind", source.path(), &["rbind"]),
            wanted("bind", Path::new("/nonexistent"), &["rbind"]),
        ];
        let error = mount_all(bundle.path(), &mounts).unwrap_err();
        assert!(error.to_string().contains("rootfs"), "{error}");
        assert_eq!(
            unmount(bundle.path().join(ROOTFS), UnmountFlags::DETACH),
            Err(Errno::INVAL)
        );
    }
}
