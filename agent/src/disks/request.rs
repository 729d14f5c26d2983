//! What a request asks for, within bounds. Pure.

use std::path::{Component, Path, PathBuf};

use rvm_protocol::agent as api;
use rvm_protocol::{DISK_SLOT, MAX_DISKS, SHARED_DIR};

use super::device_map::Number;

/// The most disks of a container, and the most file systems.
const MAX: usize = 256;

/// The most options of a file system, and the most bytes of each: fsconfig(2) takes no more.
const MAX_OPTIONS: usize = 64;
const MAX_OPTION: usize = 255;

/// The most bytes of the name of a file system.
const MAX_KIND: usize = 32;

/// A request that no host makes.
#[derive(Debug, thiserror::Error)]
#[error("the request for disks is wrong: {0}")]
pub struct InvalidDisks(&'static str);

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) disks: Vec<Disk>,
    pub(super) file_systems: Vec<FileSystem>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Disk {
    /// Plugged into a virtio-mmio slot.
    Slot {
        slot: usize,
        /// The number of a block device of the host.
        host: Option<Number>,
    },
    /// An image file.
    Image { path: PathBuf, read_only: bool },
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct FileSystem {
    pub(super) kind: String,
    pub(super) source: Source,
    pub(super) options: Vec<(String, Option<String>)>,
    pub(super) read_only: bool,
    pub(super) new_directories: Vec<NewDirectory>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The disks, by their indices.
    Disks(Vec<usize>),
    Bind(Directory),
    Overlay {
        lower: Vec<Directory>,
        /// The upper layer and the work directory.
        upper: Option<(Directory, Directory)>,
    },
}

/// A directory of an earlier file system; the path is relative and of names alone.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Directory {
    pub(super) file_system: usize,
    pub(super) path: PathBuf,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct NewDirectory {
    pub(super) directory: Directory,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Plan {
    pub(super) fn parse(request: &api::MountDisksRequest) -> Result<Self, InvalidDisks> {
        if request.disks.len() > MAX || request.file_systems.len() > MAX {
            return Err(InvalidDisks("too many"));
        }
        let disks = request.disks.iter().map(disk);
        let disks = disks.collect::<Result<Vec<_>, _>>()?;
        let file_systems = request.file_systems.iter().enumerate();
        let file_systems = file_systems
            .map(|(index, file_system)| parse(file_system, index, disks.len()))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            disks,
            file_systems,
        })
    }
}

fn disk(disk: &api::Disk) -> Result<Disk, InvalidDisks> {
    let slot = disk.slot as usize;
    match (slot, disk.image.as_str()) {
        (0, image) if !image.is_empty() => Ok(Disk::Image {
            path: Path::new(SHARED_DIR).join(relative(image)?),
            read_only: disk.read_only,
        }),
        (slot, "") if (DISK_SLOT..DISK_SLOT + MAX_DISKS).contains(&slot) => {
            let number = disk.number.as_ref();
            let host = number.map(|number| (number.major, number.minor));
            Ok(Disk::Slot { slot, host })
        }
        _ => Err(InvalidDisks("a disk is neither in a slot nor an image")),
    }
}

/// The file system `index`, which may refer to those before it.
fn parse(it: &api::FileSystem, index: usize, disks: usize) -> Result<FileSystem, InvalidDisks> {
    if it.kind.is_empty() || it.kind.len() > MAX_KIND {
        return Err(InvalidDisks("the kind of a file system"));
    }
    if it.options.len() > MAX_OPTIONS || it.options.iter().any(|one| one.len() > MAX_OPTION) {
        return Err(InvalidDisks("the options of a file system"));
    }
    let directory = |it: &api::Directory| directory(it, index);
    let lower = it
        .lower
        .iter()
        .map(directory)
        .collect::<Result<Vec<_>, _>>();
    let source = match (it.kind.as_str(), lower?) {
        ("bind", mut lower) if lower.len() == 1 => Source::Bind(lower.remove(0)),
        ("overlay", lower) if (1..=MAX).contains(&lower.len()) => Source::Overlay {
            lower,
            upper: match (it.upper.as_ref(), it.work.as_ref()) {
                (Some(upper), Some(work)) => Some((directory(upper)?, directory(work)?)),
                (None, None) => None,
                _ => return Err(InvalidDisks("only one of upper and work directory")),
            },
        },
        ("bind" | "overlay", _) => return Err(InvalidDisks("the layers of a file system")),
        _ => {
            let indices = [it.disk].into_iter().chain(it.more_disks.iter().copied());
            let indices: Vec<usize> = indices.map(|index| index as usize).collect();
            if indices.len() > MAX || indices.iter().any(|index| *index >= disks) {
                return Err(InvalidDisks("a disk that is not there"));
            }
            Source::Disks(indices)
        }
    };
    let options = it.options.iter().map(|one| match one.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (one.clone(), None),
    });
    if it.new_directories.len() > MAX {
        return Err(InvalidDisks("too many directories"));
    }
    let new_directories = it.new_directories.iter().map(|new| {
        Ok(NewDirectory {
            directory: directory(new.directory.get_or_default())?,
            mode: new.mode & 0o7777,
            uid: new.uid,
            gid: new.gid,
        })
    });
    Ok(FileSystem {
        kind: it.kind.clone(),
        source,
        options: options.collect(),
        read_only: it.read_only,
        new_directories: new_directories.collect::<Result<_, _>>()?,
    })
}

fn directory(it: &api::Directory, before: usize) -> Result<Directory, InvalidDisks> {
    let file_system = it.file_system as usize;
    if file_system >= before {
        return Err(InvalidDisks("a file system that is not there yet"));
    }
    Ok(Directory {
        file_system,
        path: relative(&it.path)?,
    })
}

/// A path of names alone, so that nothing but links leads out of a directory.
fn relative(path: &str) -> Result<PathBuf, InvalidDisks> {
    let path = Path::new(path);
    let is_name = |part| matches!(part, Component::Normal(_));
    match path.components().all(is_name) {
        true => Ok(path.to_owned()),
        false => Err(InvalidDisks("a path that is not relative")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(path: &str) -> api::Disk {
        api::Disk {
            image: path.to_owned(),
            ..Default::default()
        }
    }

    fn on_disk(kind: &str, disk: u32) -> api::FileSystem {
        api::FileSystem {
            kind: kind.to_owned(),
            disk,
            ..Default::default()
        }
    }

    fn overlay(lower: &[(u32, &str)]) -> api::FileSystem {
        let directory = |(file_system, path): &(u32, &str)| api::Directory {
            file_system: *file_system,
            path: (*path).to_owned(),
            ..Default::default()
        };
        api::FileSystem {
            kind: "overlay".to_owned(),
            lower: lower.iter().map(directory).collect(),
            ..Default::default()
        }
    }

    fn plan(
        disks: Vec<api::Disk>,
        file_systems: Vec<api::FileSystem>,
    ) -> Result<Plan, InvalidDisks> {
        Plan::parse(&api::MountDisksRequest {
            disks,
            file_systems,
            ..Default::default()
        })
    }

    #[test]
    fn layers_are_directories_of_earlier_file_systems() {
        let layers = [on_disk("erofs", 0), overlay(&[(0, "")])];
        let made = plan(vec![image("c/disks/0")], layers.to_vec()).unwrap();
        let path = PathBuf::from("/run/rvm/shared/c/disks/0");
        let read_only = false;
        assert_eq!(made.disks, [Disk::Image { path, read_only }]);
        let directory = Directory {
            file_system: 0,
            path: PathBuf::new(),
        };
        let upper = None;
        let lower = vec![directory];
        assert_eq!(
            made.file_systems[1].source,
            Source::Overlay { lower, upper }
        );
    }

    #[test]
    fn nothing_refers_to_what_is_not_there() {
        let erofs = || on_disk("erofs", 0);
        for wrong in [
            plan(vec![], vec![erofs()]),
            plan(vec![image("a")], vec![on_disk("erofs", 1)]),
            plan(vec![image("a")], vec![overlay(&[(0, "")])]),
            plan(vec![image("a")], vec![erofs(), overlay(&[])]),
            plan(vec![image("a")], vec![erofs(), overlay(&[(1, "")])]),
            plan(vec![image("a")], vec![erofs(), on_disk("bind", 0)]),
            plan(vec![image("a"); MAX + 1], vec![]),
        ] {
            assert!(wrong.is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn no_path_leads_out_and_no_slot_is_another_devices() {
        for path in ["/etc", "../x", "a/../../x"] {
            assert!(plan(vec![image(path)], vec![]).is_err(), "{path}");
            let layers = vec![on_disk("erofs", 0), overlay(&[(0, path)])];
            assert!(plan(vec![image("a")], layers).is_err(), "{path}");
        }
        for slot in [0, 1, DISK_SLOT - 1, DISK_SLOT + MAX_DISKS] {
            let disk = api::Disk {
                slot: slot as u32,
                ..Default::default()
            };
            assert!(plan(vec![disk], vec![]).is_err(), "{slot}");
        }
    }
}
