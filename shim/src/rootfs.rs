//! The root file system, as containerd's snapshotter describes it: mounts, one upon the other.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use containerd_shim_protos::api::Mount;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount,
    mount_bind, mount_bind_recursive, mount_change, mount_remount, move_mount, unmount,
};
use rustix::thread::UnshareFlags;
use rvm_sys::namespaces::unshare;

/// The directory in the bundle that they are mounted on.
pub const ROOTFS: &str = "rootfs";

/// The most that mount(2) takes of a file system's options: a page, with the zero at its end.
const MAX_DATA: usize = 4095;

/// A mount failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct RootfsError {
    action: String,
    path: PathBuf,
    #[source]
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

/// Mounts the root file system of a bundle. What was mounted is gone if one fails.
pub fn mount_all(bundle: &Path, mounts: &[Mount]) -> Result<(), RootfsError> {
    if mounts.is_empty() {
        return Ok(());
    }
    let rootfs = bundle.join(ROOTFS);
    fs::create_dir_all(&rootfs).map_err(failed("create", &rootfs))?;
    let mounted = mounts.iter().try_for_each(|wanted| {
        let place = rootfs.join(wanted.target.trim_start_matches('/'));
        mount_one(wanted, &place)
    });
    mounted.inspect_err(|_| {
        if let Err(error) = unmount_all(bundle) {
            tracing::warn!("{}", crate::error::chain(&error));
        }
    })
}

/// Unmounts whatever is mounted on a bundle's root. Nothing is no error.
pub fn unmount_all(bundle: &Path) -> Result<(), RootfsError> {
    unmount_path(&bundle.join(ROOTFS))
}

/// Unmounts whatever is mounted on a path. Nothing is no error.
pub fn unmount_path(path: &Path) -> Result<(), RootfsError> {
    loop {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(failed("unmount", path)(errno)),
        }
    }
}

/// A mount's options, as mount(8) has them.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    flags: MountFlags,
    propagation: Option<MountPropagationFlags>,
    bind: Option<bool>,
    data: Vec<String>,
}

impl Options {
    fn parse(options: &[String]) -> Self {
        let mut parsed = Self {
            flags: MountFlags::empty(),
            propagation: None,
            bind: None,
            data: Vec::new(),
        };
        for option in options {
            match option.as_str() {
                "bind" => parsed.bind = Some(parsed.bind.unwrap_or(false)),
                "rbind" => parsed.bind = Some(true),
                "defaults" => {}
                name => parsed.add(name),
            }
        }
        parsed
    }

    fn add(&mut self, name: &str) {
        if let Some((_, flag, on)) = FLAGS.iter().find(|(known, _, _)| *known == name) {
            self.flags.set(*flag, *on);
        } else if let Some((_, flags)) = PROPAGATIONS.iter().find(|(known, _)| *known == name) {
            self.propagation = Some(*flags);
        } else {
            self.data.push(name.to_owned());
        }
    }
}

const FLAGS: &[(&str, MountFlags, bool)] = &[
    ("ro", MountFlags::RDONLY, true),
    ("rw", MountFlags::RDONLY, false),
    ("nosuid", MountFlags::NOSUID, true),
    ("suid", MountFlags::NOSUID, false),
    ("nodev", MountFlags::NODEV, true),
    ("dev", MountFlags::NODEV, false),
    ("noexec", MountFlags::NOEXEC, true),
    ("exec", MountFlags::NOEXEC, false),
    ("sync", MountFlags::SYNCHRONOUS, true),
    ("async", MountFlags::SYNCHRONOUS, false),
    ("dirsync", MountFlags::DIRSYNC, true),
    ("noatime", MountFlags::NOATIME, true),
    ("atime", MountFlags::NOATIME, false),
    ("nodiratime", MountFlags::NODIRATIME, true),
    ("diratime", MountFlags::NODIRATIME, false),
    ("relatime", MountFlags::RELATIME, true),
    ("norelatime", MountFlags::RELATIME, false),
    ("strictatime", MountFlags::STRICTATIME, true),
    ("nostrictatime", MountFlags::STRICTATIME, false),
];

const PROPAGATIONS: &[(&str, MountPropagationFlags)] = &[
    ("private", MountPropagationFlags::PRIVATE),
    (
        "rprivate",
        MountPropagationFlags::PRIVATE.union(MountPropagationFlags::REC),
    ),
    ("slave", MountPropagationFlags::DOWNSTREAM),
    (
        "rslave",
        MountPropagationFlags::DOWNSTREAM.union(MountPropagationFlags::REC),
    ),
    ("shared", MountPropagationFlags::SHARED),
    (
        "rshared",
        MountPropagationFlags::SHARED.union(MountPropagationFlags::REC),
    ),
];

fn mount_one(wanted: &Mount, place: &Path) -> Result<(), RootfsError> {
    let options = Options::parse(&wanted.options);
    let what = format!("mount {} as the root file system at", wanted.type_);
    let mounted = match (wanted.type_.as_str(), options.bind) {
        ("bind" | "rbind", recursive) => {
            let recursive = recursive.unwrap_or(wanted.type_ == "rbind");
            bind(&wanted.source, place, recursive, options.flags)
        }
        (_, Some(recursive)) => bind(&wanted.source, place, recursive, options.flags),
        (kind, None) => mount_filesystem(kind, &wanted.source, place, &options),
    };
    mounted
        .and_then(|()| match options.propagation {
            Some(flags) => mount_change(place, flags),
            None => Ok(()),
        })
        .map_err(failed(what, place))
}

fn bind(source: &str, place: &Path, recursive: bool, flags: MountFlags) -> rustix::io::Result<()> {
    match recursive {
        true => mount_bind_recursive(source, place)?,
        false => mount_bind(source, place)?,
    }
    // The options of a bind mount are its own only after it is there.
    match flags.is_empty() {
        true => Ok(()),
        false => mount_remount(place, flags | MountFlags::BIND, ""),
    }
}

fn mount_filesystem(
    kind: &str,
    source: &str,
    place: &Path,
    options: &Options,
) -> rustix::io::Result<()> {
    let place = std::path::absolute(place).map_err(|_| Errno::INVAL)?;
    match mount_by_options(kind, source, &place, options.flags, &options.data) {
        Err(Errno::TOOBIG) => mount_many_layers(kind, source, &place, options),
        other => other,
    }
}

fn mount_by_options(
    kind: &str,
    source: &str,
    place: &Path,
    flags: MountFlags,
    data: &[String],
) -> rustix::io::Result<()> {
    let data = CString::new(data.join(",")).map_err(|_| Errno::INVAL)?;
    if data.count_bytes() > MAX_DATA {
        return Err(Errno::TOOBIG);
    }
    mount(source, place, kind, flags, Some(data.as_c_str()))
}

/// An image of many layers has more options than mount(2) takes. The layers lie in one directory,
/// from where their names are short; a thread of its own goes there.
fn mount_many_layers(
    kind: &str,
    source: &str,
    place: &Path,
    options: &Options,
) -> rustix::io::Result<()> {
    let (dir, layers) = common_directory(options).ok_or(Errno::TOOBIG)?;
    let mut data = vec![format!("lowerdir={}", layers.join(":"))];
    let others = options.data.iter().filter(|option| !is_lower(option));
    data.extend(others.cloned());
    let mount = || {
        unshare(UnshareFlags::FS)?;
        rustix::process::chdir(&dir)?;
        match mount_by_options(kind, source, place, options.flags, &data) {
            Err(Errno::TOOBIG) => mount_one_by_one(kind, source, place, &layers, options),
            other => other,
        }
    };
    std::thread::scope(|scope| scope.spawn(mount).join()).unwrap_or(Err(Errno::INVAL))
}

fn is_lower(option: &str) -> bool {
    option.starts_with("lowerdir=")
}

/// The directory that all layers are in, and each layer's path from there.
fn common_directory(options: &Options) -> Option<(PathBuf, Vec<String>)> {
    let lower = options
        .data
        .iter()
        .find_map(|option| option.strip_prefix("lowerdir="))?;
    let layers: Vec<&Path> = lower.split(':').map(Path::new).collect();
    let mut dir = layers.first()?.parent()?;
    while !layers.iter().all(|layer| layer.starts_with(dir)) {
        dir = dir.parent()?;
    }
    let short = |layer: &&Path| Some(layer.strip_prefix(dir).ok()?.to_str()?.to_owned());
    Some((
        dir.to_owned(),
        layers.iter().map(short).collect::<Option<_>>()?,
    ))
}

/// Gives every layer in a call of its own, which Linux takes from 6.8 on.
fn mount_one_by_one(
    kind: &str,
    source: &str,
    place: &Path,
    layers: &[String],
    options: &Options,
) -> rustix::io::Result<()> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let context = context.as_fd();
    fsconfig_set_string(context, "source", source)?;
    for layer in layers {
        fsconfig_set_string(context, "lowerdir+", layer.as_str())?;
    }
    for option in options.data.iter().filter(|option| !is_lower(option)) {
        match option.split_once('=') {
            Some((name, value)) => fsconfig_set_string(context, name, value)?,
            None => fsconfig_set_flag(context, option.as_str())?,
        }
    }
    fsconfig_create(context)?;
    let attributes = attributes(options.flags);
    let made = fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let from_descriptor = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(made.as_fd(), "", CWD, place, from_descriptor)
}

fn attributes(flags: MountFlags) -> MountAttrFlags {
    let mut attributes = MountAttrFlags::empty();
    for (flag, attribute) in [
        (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
        (
            MountFlags::NODIRATIME,
            MountAttrFlags::MOUNT_ATTR_NODIRATIME,
        ),
    ] {
        attributes.set(attribute, flags.contains(flag));
    }
    attributes
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
    fn options_are_flags_or_the_file_systems_own() {
        let list = [
            "rbind",
            "ro",
            "nosuid",
            "rprivate",
            "lowerdir=/a:/b",
            "index=off",
        ];
        let options = Options::parse(&list.map(str::to_owned));
        assert_eq!(options.bind, Some(true));
        assert_eq!(options.flags, MountFlags::RDONLY | MountFlags::NOSUID);
        assert_eq!(options.data, ["lowerdir=/a:/b", "index=off"]);
        let later = Options::parse(&["ro".to_owned(), "rw".to_owned()]);
        assert_eq!(later.flags, MountFlags::empty(), "the last one counts");
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
        mount(
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
