//! A mount's options by their names in mount(8).

use rustix::mount::{MountFlags, MountPropagationFlags};

/// The options of one mount.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    pub flags: MountFlags,
    pub propagation: Option<MountPropagationFlags>,
    /// Whether it is a bind mount, and then whether a recursive one.
    pub bind: Option<bool>,
    /// The file system's own options.
    pub data: Vec<String>,
}

impl Options {
    pub fn parse(options: &[String]) -> Self {
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
        let later = Options::parse(&["ro".to_owned(), "rw".to_owned()]);
        assert_eq!(later.flags, MountFlags::empty(), "the last one counts");
    }
}
