//! The host's control group hierarchies, and this process's group in each.
//!
//! Version 2 has one hierarchy for all controllers. Version 1 has several, and each container gets
//! a group in every one of them. Where both are mounted, version 1 has the controllers.

use std::io;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::host::mount_table::{self, Entry};

/// The version of the hierarchies that have the host's controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Version {
    /// Several hierarchies, each with some of the controllers.
    One,
    /// The unified hierarchy.
    Two,
}

/// The mount point of version 2 where it is the only one.
const UNIFIED: &str = "/sys/fs/cgroup";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its name in /proc/self/cgroup: its controllers or `name=…`; empty for version 2.
    pub name: String,
    pub mount: PathBuf,
    /// The directory of this process's group.
    pub own: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchies {
    pub version: Version,
    /// A single one with version 2.
    pub list: Vec<Hierarchy>,
}

impl Hierarchies {
    /// Reads them from /proc. None if no hierarchy is mounted.
    pub fn current() -> io::Result<Option<Self>> {
        let mounts = mount_table::read()?;
        let groups = std::fs::read_to_string("/proc/self/cgroup")?;
        Ok(Self::parse(&mounts, &groups))
    }

    /// Parses /proc/self/mountinfo and /proc/self/cgroup.
    fn parse(mounts: &str, groups: &str) -> Option<Self> {
        let mounts: Vec<Entry> = mount_table::parse(mounts).collect();
        let unified = mounts.iter().rfind(|mount| mount.kind == "cgroup2");
        let only_unified = unified.is_some_and(|mount| mount.point == Path::new(UNIFIED));
        let version_one: Vec<Hierarchy> = groups
            .lines()
            .filter_map(|line| version_one(line, &mounts))
            .collect();
        if !only_unified && !version_one.is_empty() {
            return Some(Self {
                version: Version::One,
                list: version_one,
            });
        }
        let unified = unified?;
        let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
        Some(Self {
            version: Version::Two,
            list: vec![Hierarchy {
                name: String::new(),
                mount: unified.point.clone(),
                own: directory_of(unified, own),
            }],
        })
    }
}

/// Parses a line of /proc/self/cgroup, `id:controllers:path`. None if that hierarchy is not
/// mounted.
fn version_one(line: &str, mounts: &[Entry]) -> Option<Hierarchy> {
    let mut fields = line.splitn(3, ':');
    let (_, name, path) = (fields.next()?, fields.next()?, fields.next()?);
    let first = name.split(',').next().filter(|name| !name.is_empty())?;
    let mount = mounts.iter().find(|mount| {
        mount.kind == "cgroup" && mount.data.split(',').any(|option| option == first)
    })?;
    Some(Hierarchy {
        name: name.to_owned(),
        mount: mount.point.clone(),
        own: directory_of(mount, path),
    })
}

/// The directory of a group. In a container the mount may begin below the hierarchy's root.
fn directory_of(mount: &Entry, group: &str) -> PathBuf {
    let group = Path::new(group);
    let below = group.strip_prefix(&mount.root).unwrap_or(group);
    mount.point.join(clean(below))
}

/// The path relative to some directory, which `..` does not leave.
pub fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => drop(cleaned.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /docker/x /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn version_one_has_a_directory_for_every_mounted_hierarchy() {
        let groups = "9:name=systemd:/\n4:memory:/docker/x/y\n2:pids:/\n1:cpu,cpuacct:/a\n0::/\n";
        let host = Hierarchies::parse(ONE, groups).unwrap();
        assert_eq!(host.version, Version::One);
        let own: Vec<_> = host
            .list
            .iter()
            .map(|h| (h.name.as_str(), h.own.to_str().unwrap()))
            .collect();
        assert_eq!(
            own,
            [
                ("name=systemd", "/sys/fs/cgroup/systemd/"),
                ("memory", "/sys/fs/cgroup/memory/y"),
                ("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/a"),
            ]
        );
    }

    #[test]
    fn version_two_has_one() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let host = Hierarchies::parse(mounts, "0::/system.slice/x.service\n").unwrap();
        assert_eq!(host.version, Version::Two);
        let own = Path::new("/sys/fs/cgroup/system.slice/x.service");
        assert_eq!(host.list[0].own, own);
    }

    #[test]
    fn nothing_mounted_is_nothing() {
        assert_eq!(
            Hierarchies::parse("1 0 0:1 / / rw - ext4 /dev/x rw\n", "0::/\n"),
            None
        );
    }

    #[test]
    fn a_path_leads_nowhere_but_down() {
        assert_eq!(clean(Path::new("/../a/../../b/./c")), Path::new("b/c"));
    }
}
