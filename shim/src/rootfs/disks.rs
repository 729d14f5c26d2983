//! Roots on disks: mounts of block devices and image files, and overlays of them, as containerd's
//! blockfile, devmapper and erofs snapshotters describe them. The guest mounts them, the host does
//! not.
//!
//! A mount refers to an earlier one by a template in its source and options, and its type names
//! what is to be done before it is mounted: `format/mkdir/overlay` (containerd's mounts.md).

use std::path::Path;

use containerd_shim_protos::api::Mount;
use rvm_protocol::agent::{Directory, FileSystem, NewDirectory};
use rvm_sandbox::disk::{Disk, Stack, is_disk_file_system};

/// Options that say what containerd's mount manager has done, or has left to be done.
const MKDIR: &str = "X-containerd.mkdir.path=";
const MKFS: &str = "X-containerd.mkfs.";

/// A mount that cannot be honoured. It names the option or field.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("mount {index} of the root file system ({kind}): {reason}")]
pub struct DiskMountError {
    index: usize,
    kind: String,
    reason: String,
}

/// The disks and file systems of a root; none if no mount is one of a disk.
pub fn stack(mounts: &[Mount]) -> Result<Stack, DiskMountError> {
    let mut stack = Stack::default();
    if !mounts.iter().any(|mount| is_disk_file_system(base(mount))) {
        return Ok(stack);
    }
    let mut mounted = Vec::new();
    for (index, mount) in mounts.iter().enumerate() {
        let added = add(&mut stack, &mounted, mount);
        mounted.push(added.map_err(|reason| DiskMountError {
            index,
            kind: mount.type_.clone(),
            reason,
        })?);
    }
    Ok(stack)
}

/// A mount's type without what is to be done before.
fn base(mount: &Mount) -> &str {
    let kind = mount.type_.as_str();
    kind.rsplit_once('/').map_or(kind, |(_, base)| base)
}

/// Adds a mount's file system, whose templates refer to those `mounted`. Returns its index.
fn add(stack: &mut Stack, mounted: &[u32], mount: &Mount) -> Result<u32, String> {
    let before = mount.type_.split('/').rev().skip(1);
    for word in before {
        if !["format", "mkdir", "mkfs"].contains(&word) {
            return Err(format!("{word} is not supported"));
        }
    }
    if !matches!(mount.target.as_str(), "" | "/") {
        let target = &mount.target;
        return Err(format!(
            "its target {target} is not the root, which is on disks"
        ));
    }
    let mut file_system = FileSystem {
        kind: base(mount).to_owned(),
        ..Default::default()
    };
    let mut more_disks = Vec::new();
    for option in &mount.options {
        match option.as_str() {
            "ro" => file_system.read_only = true,
            "rw" => file_system.read_only = false,
            "loop" | "bind" | "rbind" | "defaults" => {}
            option => own_option(&mut file_system, &mut more_disks, mounted, option)?,
        }
    }
    match base(mount) {
        "overlay" if file_system.lower.is_empty() => return Err("it has no lowerdir".to_owned()),
        "overlay" => {}
        "bind" => file_system.lower.push(directory(mounted, &mount.source)?),
        kind if is_disk_file_system(kind) => {
            let disk = Disk::new(image(&mount.source)?, kind, file_system.read_only);
            file_system.read_only = disk.read_only;
            file_system.disk = stack.add_disk(disk);
            for path in more_disks {
                let disk = Disk::new(path, kind, true);
                file_system.more_disks.push(stack.add_disk(disk));
            }
        }
        kind => {
            return Err(format!(
                "a file system of type {kind} cannot be stacked with disks"
            ));
        }
    }
    Ok(stack.add(file_system))
}

/// Takes an option of a file system.
fn own_option(
    file_system: &mut FileSystem,
    more_disks: &mut Vec<std::path::PathBuf>,
    mounted: &[u32],
    option: &str,
) -> Result<(), String> {
    let named = |name: &str| option.strip_prefix(name);
    if let Some(list) = named("lowerdir=") {
        file_system.lower = directories(mounted, list)?;
    } else if let Some(path) = named("upperdir=") {
        file_system.upper = Some(directory(mounted, path)?).into();
    } else if let Some(path) = named("workdir=") {
        file_system.work = Some(directory(mounted, path)?).into();
    } else if let Some(path) = named("device=") {
        more_disks.push(image(path)?);
    } else if let Some(new) = named(MKDIR) {
        file_system
            .new_directories
            .push(new_directory(mounted, new)?);
    } else if named(MKFS).is_some() {
        // containerd has made the file system: it does not leave that to the shim.
    } else if named("X-").is_some() || named("uidmap=").is_some() || named("gidmap=").is_some() {
        return Err(format!(
            "the option {option} is not supported for a root on disks"
        ));
    } else {
        file_system.options.push(option.to_owned());
    }
    Ok(())
}

fn image(source: &str) -> Result<std::path::PathBuf, String> {
    match Path::new(source).is_absolute() {
        true => Ok(source.into()),
        false => Err(format!("its source {source} is not the path of a disk")),
    }
}

/// The directories of a list such as `{{ overlay 0 2 }}:{{ mount 3 }}/fs`.
fn directories(mounted: &[u32], list: &str) -> Result<Vec<Directory>, String> {
    let mut found = Vec::new();
    for part in list.split(':') {
        match template(part) {
            Some((words, "")) if words.starts_with("overlay ") => {
                found.extend(range(mounted, &words)?);
            }
            _ => found.push(directory(mounted, part)?),
        }
    }
    Ok(found)
}

/// The roots of the mounts that `overlay START END` names, in this order.
fn range(mounted: &[u32], words: &str) -> Result<Vec<Directory>, String> {
    let numbers = words.split(' ').skip(1).map(str::parse::<usize>);
    let numbers: Vec<usize> = numbers.filter_map(Result::ok).collect();
    let &[start, end] = &numbers[..] else {
        return Err(format!("the template {words} is not understood"));
    };
    let indices: Vec<usize> = match start <= end {
        true if end < mounted.len() => (start..=end).collect(),
        false if start < mounted.len() => (end..=start).rev().collect(),
        _ => {
            return Err(format!(
                "the template {words} names a mount that is not there"
            ));
        }
    };
    Ok(indices
        .into_iter()
        .map(|it| below(mounted[it], ""))
        .collect())
}

/// The directory of a path such as `{{ mount 0 }}/upper`.
fn directory(mounted: &[u32], path: &str) -> Result<Directory, String> {
    let Some((words, rest)) = template(path) else {
        return Err(format!(
            "{path} is a directory of the host, which the guest cannot stack with disks; the erofs \
             snapshotter makes a disk of it with default_size"
        ));
    };
    let number = words
        .strip_prefix("mount ")
        .and_then(|it| it.parse::<usize>().ok());
    let number = number.ok_or_else(|| format!("the template {words} is not understood"))?;
    match mounted.get(number) {
        Some(file_system) => Ok(below(*file_system, rest)),
        None => Err(format!(
            "the template {words} names a mount that is not there"
        )),
    }
}

fn below(file_system: u32, path: &str) -> Directory {
    Directory {
        file_system,
        path: path.trim_matches('/').to_owned(),
        ..Default::default()
    }
}

/// The words of a template at the start of a text, separated by one space, and what follows it.
fn template(text: &str) -> Option<(String, &str)> {
    let (inside, rest) = text.strip_prefix("{{")?.split_once("}}")?;
    let words: Vec<&str> = inside.split_whitespace().collect();
    Some((words.join(" "), rest))
}

/// `PATH`, `PATH:MODE` or `PATH:MODE:UID:GID`.
fn new_directory(mounted: &[u32], text: &str) -> Result<NewDirectory, String> {
    let wrong = || format!("the option {MKDIR}{text} is not understood");
    let parts: Vec<&str> = text.split(':').collect();
    let mode = |text: &str| u32::from_str_radix(text, 8).map_err(|_| wrong());
    let id = |text: &str| text.parse::<u32>().map_err(|_| wrong());
    let (path, mode, uid, gid) = match parts[..] {
        [path] => (path, 0o700, 0, 0),
        [path, bits] => (path, mode(bits)?, 0, 0),
        [path, bits, uid, gid] => (path, mode(bits)?, id(uid)?, id(gid)?),
        _ => return Err(wrong()),
    };
    Ok(NewDirectory {
        directory: Some(directory(mounted, path)?).into(),
        mode,
        uid,
        gid,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        Mount {
            type_: kind.to_owned(),
            source: source.to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Default::default()
        }
    }

    fn layers(directories: &[Directory]) -> Vec<(u32, &str)> {
        let layer = |it: &Directory| (it.file_system, it.path.clone().leak() as &str);
        directories.iter().map(layer).collect()
    }

    fn reason(mounts: &[Mount]) -> String {
        stack(mounts).unwrap_err().to_string()
    }

    #[test]
    fn directories_of_the_host_are_none_of_disks() {
        let overlay = mount("overlay", "overlay", &["lowerdir=/a:/b", "upperdir=/c"]);
        let bind = mount("bind", "/var/snapshots/1/fs", &["rbind", "ro"]);
        for mounts in [vec![], vec![overlay], vec![bind]] {
            assert!(stack(&mounts).unwrap().is_empty());
        }
    }

    #[test]
    fn a_snapshot_of_blockfile_or_devmapper_is_one_disk() {
        for (kind, source, options) in [
            ("ext4", "/var/blockfile/3", &["loop"][..]),
            ("xfs", "/dev/mapper/snap-3", &["nouuid", "discard"]),
        ] {
            let stack = stack(&[mount(kind, source, options)]).unwrap();
            let [disk] = stack.disks() else { panic!() };
            assert_eq!(*disk, Disk::new(source.into(), kind, false));
            let own: Vec<&str> = stack.file_systems()[0]
                .options
                .iter()
                .map(|it| &**it)
                .collect();
            assert_eq!(
                own,
                options
                    .iter()
                    .filter(|it| **it != "loop")
                    .copied()
                    .collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn layers_of_erofs_are_stacked_below_a_disk_that_is_written() {
        let size = "X-containerd.mkfs.size=67108864";
        let mounts = [
            mount(
                "mkfs/ext4",
                "/s/9/rwlayer.img",
                &["X-containerd.mkfs.fs=ext4", size, "rw", "loop"],
            ),
            mount("erofs", "/s/8/layer.erofs", &["ro", "loop"]),
            mount(
                "erofs",
                "/s/7/layer.erofs",
                &["ro", "loop", "device=/s/6/blob"],
            ),
            mount(
                "format/mkdir/overlay",
                "overlay",
                &[
                    "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
                    "X-containerd.mkdir.path={{mount 0}}/work:0755:1:2",
                    "workdir={{ mount 0 }}/work",
                    "upperdir={{ mount 0 }}/upper",
                    "lowerdir={{ overlay 1 2 }}",
                    "index=off",
                ],
            ),
        ];
        let stack = stack(&mounts).unwrap();
        let read_only: Vec<bool> = stack.disks().iter().map(|disk| disk.read_only).collect();
        assert_eq!(read_only, [false, true, true, true]);
        let [upper, _, merged, overlay] = stack.file_systems() else {
            panic!()
        };
        assert_eq!((upper.kind.as_str(), upper.options.len()), ("ext4", 0));
        assert_eq!((merged.disk, &merged.more_disks[..]), (2, &[3][..]));
        assert_eq!(layers(&overlay.lower), [(1, ""), (2, "")]);
        assert_eq!(layers(&[overlay.upper.clone().unwrap()]), [(0, "upper")]);
        assert_eq!(overlay.options, ["index=off"]);
        let work = &overlay.new_directories[1];
        assert_eq!((work.mode, work.uid, work.gid), (0o755, 1, 2));
    }

    #[test]
    fn a_range_may_count_down_and_a_root_may_be_a_directory_of_a_disk() {
        let erofs = || mount("erofs", "/s/1/layer.erofs", &["ro"]);
        let overlay = mount("format/overlay", "overlay", &["lowerdir={{ overlay 1 0 }}"]);
        let made = stack(&[erofs(), erofs(), overlay]).unwrap();
        assert_eq!(layers(&made.file_systems()[2].lower), [(1, ""), (0, "")]);
        let bind = mount("format/mkdir/bind", "{{ mount 0 }}/upper", &["rbind"]);
        let made = stack(&[mount("ext4", "/s/1/rw.img", &[]), bind]).unwrap();
        assert_eq!(layers(&made.file_systems()[1].lower), [(0, "upper")]);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_with_its_name() {
        let erofs = |option: &str| mount("erofs", "/s/1/layer.erofs", &["ro", option]);
        let over = |option: &str| {
            let overlay = mount(
                "format/overlay",
                "overlay",
                &["lowerdir={{ mount 0 }}", option],
            );
            [erofs("loop"), overlay]
        };
        for (mounts, words) in [
            (
                &over("upperdir=/s/2/fs")[..],
                "/s/2/fs is a directory of the host",
            ),
            (&over("upperdir={{ mount 3 }}/fs"), "mount 3"),
            (&over("lowerdir={{ overlay 0 7 }}"), "overlay 0 7"),
            (&over("lowerdir={{ exec 0 }}"), "exec 0"),
            (
                &[erofs("X-containerd.dmverity=/s/1/meta")],
                "X-containerd.dmverity",
            ),
            (&[erofs("uidmap=0:1000:10")], "uidmap"),
            (&[erofs(""), mount("verity/erofs", "/s", &[])], "verity"),
            (&[erofs(""), mount("tmpfs", "tmpfs", &[])], "tmpfs"),
            (&[mount("ext4", "relative.img", &[])], "relative.img"),
        ] {
            let reason = reason(mounts);
            assert!(reason.contains(words), "{reason}");
        }
        let mut submount = mount("ext4", "/s/1/rw.img", &[]);
        submount.target = "/data".to_owned();
        assert!(reason(&[submount]).contains("/data"));
    }
}
