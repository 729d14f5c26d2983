//! A mount's options by their names in mount(8).

use rustix::mount::{MountFlags, MountPropagationFlags};

/// The options of one mount.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    pub flags: MountFlags,
    pub propagation: Option<MountPropagationFlags>,
    /// Whether it is a bind mount, and then whether a recursive one.
    pub bind: Option<bool>,
    /// Lines of `id on disk, id in the mount, count` from `uidmap=` and `gidmap=`.
    pub id_maps: IdMaps,
    /// The file system's own options.
    pub data: Vec<String>,
}

/// The maps that a snapshotter names for a container in a user namespace, as `0:100000:65536`;
/// empty without. Several are separated by commas.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct IdMaps {
    pub uids: String,
    pub gids: String,
}

impl IdMaps {
    pub fn is_empty(&self) -> bool {
        self.uids.is_empty() && self.gids.is_empty()
    }
}

impl Options {
    pub fn parse(options: &[String]) -> Self {
        let mut parsed = Self {
            flags: MountFlags::empty(),
            propagation: None,
            bind: None,
            id_maps: IdMaps::default(),
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
        } else if let Some(map) = name.strip_prefix("uidmap=") {
            self.id_maps.uids = lines(map);
        } else if let Some(map) = name.strip_prefix("gidmap=") {
            self.id_maps.gids = lines(map);
        } else {
            self.data.push(name.to_owned());
        }
    }
}

/// In the form of /proc/pid/uid_map, which the kernel checks.
fn lines(map: &str) -> String {
    let line = |one: &str| format!("{}\n", one.replace(':', " "));
    map.split(',').map(line).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(options.id_maps.is_empty());
        let later = Options::parse(&["ro".to_owned(), "rw".to_owned()]);
        assert_eq!(later.flags, MountFlags::empty(), "the last one counts");
    }

    #[test]
    fn maps_of_ids_are_not_the_file_systems() {
        let list = [
            "uidmap=0:1000:10,10:5000:1",
            "gidmap=0:2000:10",
            "index=off",
        ];
        let options = Options::parse(&list.map(str::to_owned));
        assert_eq!(options.id_maps.uids, "0 1000 10\n10 5000 1\n");
        assert_eq!(options.id_maps.gids, "0 2000 10\n");
        assert_eq!(options.data, ["index=off"]);
    }
}
