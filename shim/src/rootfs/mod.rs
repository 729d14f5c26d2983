//! The root file system of a container: mounts that containerd's snapshotter describes, each
//! mounted over the one before.

mod options;
mod filesystem;

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
    let mounted = match (wanted.type_.as_str(), options.bind) {
        ("bind" | "rbind", recursive) => {
            let recursive = recursive.unwrap_or(wanted.type_ == "rbind");
            bind(&wanted.source, target, recursive, options.flags)
        }
        (_, Some(recursive)) => bind(&wanted.source, target, recursive, options.flags),
        (kind, None) => filesystem::mount(kind, &wanted.source, target, &options),
    };
    mounted
        .and_then(|()| match options.propagation {
            Some(flags) => mount_change(target, flags),
            None => Ok(()),
        })
        .map_err(failed(what, target))
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
