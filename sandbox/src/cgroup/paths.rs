//! From config.json's `linux.cgroupsPath` to the directories of a container's groups. Pure.

use std::path::{Path, PathBuf};

use super::hierarchy::{Hierarchies, Version, clean};
use super::{CgroupError, Dir};

/// What creates the groups of containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// rvm, by file.
    #[default]
    Cgroupfs,
    /// systemd, in a scope for each container.
    Systemd,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    pub slice: String,
    /// The name of the scope's unit.
    pub unit: String,
}

/// The directories of a container's groups.
#[derive(Debug, PartialEq, Eq)]
pub struct CgroupPaths {
    /// One for each hierarchy.
    pub dirs: Vec<Dir>,
    /// The scope that they belong to, with the systemd driver.
    pub scope: Option<Scope>,
}

/// The groups of the container `id`.
pub fn resolve(
    host: &Hierarchies,
    driver: Driver,
    cgroups_path: Option<&Path>,
    id: &str,
) -> Result<CgroupPaths, CgroupError> {
    let wanted = cgroups_path.filter(|path| !path.as_os_str().is_empty());
    match driver {
        Driver::Cgroupfs => Ok(CgroupPaths {
            dirs: by_path(host, wanted.unwrap_or(Path::new(id)))?,
            scope: None,
        }),
        Driver::Systemd => {
            let scope = scope(wanted, id)?;
            let path = Path::new("/")
                .join(expand_slice(&scope.slice)?)
                .join(&scope.unit);
            Ok(CgroupPaths {
                dirs: by_path(host, &path)?,
                scope: Some(scope),
            })
        }
    }
}

/// An absolute path begins at the root. A relative one begins, as in runc, at the group of the
/// calling process; with version 2 beside that group, because a group that has processes cannot
/// have groups below it.
fn by_path(host: &Hierarchies, path: &Path) -> Result<Vec<Dir>, CgroupError> {
    let below = clean(path);
    if below.as_os_str().is_empty() {
        return Err(CgroupError::Root);
    }
    let dirs = host.list.iter().map(|hierarchy| {
        let own = match host.version {
            Version::One => hierarchy.own.clone(),
            Version::Two if hierarchy.own == hierarchy.mount => hierarchy.own.clone(),
            Version::Two => hierarchy.own.parent().unwrap_or(&hierarchy.own).to_owned(),
        };
        Dir {
            hierarchy: hierarchy.name.clone(),
            mount: hierarchy.mount.clone(),
            path: match path.is_absolute() {
                true => hierarchy.mount.join(&below),
                false => own.join(&below),
            },
        }
    });
    Ok(dirs.collect())
}

/// Parses `slice:prefix:name`, as engines write it for the systemd driver.
fn scope(cgroups_path: Option<&Path>, id: &str) -> Result<Scope, CgroupError> {
    let Some(path) = cgroups_path else {
        return Ok(Scope {
            slice: "system.slice".to_owned(),
            unit: format!("rvm-{id}.scope"),
        });
    };
    let malformed = || CgroupError::ScopePath(path.to_owned());
    let parts: Vec<&str> = path.to_str().ok_or_else(malformed)?.split(':').collect();
    let [slice, prefix, name] = parts[..] else {
        return Err(malformed());
    };
    let legal = |text: &str| !text.contains('/') && !text.contains('\0');
    if name.is_empty() || !parts.iter().all(|part| legal(part)) {
        return Err(malformed());
    }
    let unit = match prefix {
        "" => format!("{name}.scope"),
        prefix => format!("{prefix}-{name}.scope"),
    };
    Ok(Scope {
        slice: match slice {
            "" => "system.slice".to_owned(),
            slice => slice.to_owned(),
        },
        unit,
    })
}

/// The path of a slice: `a-b.slice` is in `a.slice`; see systemd.slice(5).
fn expand_slice(slice: &str) -> Result<PathBuf, CgroupError> {
    let malformed = || CgroupError::Slice(slice.to_owned());
    let name = slice.strip_suffix(".slice").ok_or_else(malformed)?;
    if name == "-" {
        return Ok(PathBuf::new());
    }
    if name.is_empty() || name.contains('/') {
        return Err(malformed());
    }
    let mut path = PathBuf::new();
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return Err(malformed());
        }
        path.push(format!("{prefix}{part}.slice"));
        prefix = format!("{prefix}{part}-");
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::super::hierarchy::Hierarchy;
    use super::*;

    fn host(version: Version, own: &str) -> Hierarchies {
        let mount = PathBuf::from("/cg");
        Hierarchies {
            version,
            list: vec![Hierarchy {
                name: String::new(),
                own: mount.join(own),
                mount,
            }],
        }
    }

    fn found(host: &Hierarchies, driver: Driver, path: Option<&str>) -> String {
        let paths = resolve(host, driver, path.map(Path::new), "box");
        paths.unwrap().dirs[0].path.to_str().unwrap().to_owned()
    }

    #[test]
    fn an_absolute_path_begins_at_the_root() {
        for version in [Version::One, Version::Two] {
            let host = host(version, "own");
            let path = found(&host, Driver::Cgroupfs, Some("/docker/abc"));
            assert_eq!(path, "/cg/docker/abc");
            let path = found(&host, Driver::Cgroupfs, Some("/../../abc"));
            assert_eq!(path, "/cg/abc", "and does not leave it");
        }
    }

    #[test]
    fn a_relative_path_and_none_begin_where_the_caller_is() {
        let one = host(Version::One, "user/shell");
        assert_eq!(
            found(&one, Driver::Cgroupfs, Some("abc")),
            "/cg/user/shell/abc"
        );
        assert_eq!(found(&one, Driver::Cgroupfs, None), "/cg/user/shell/box");
        let two = host(Version::Two, "user/shell");
        assert_eq!(found(&two, Driver::Cgroupfs, Some("abc")), "/cg/user/abc");
        let root = host(Version::Two, "");
        assert_eq!(found(&root, Driver::Cgroupfs, Some("")), "/cg/box");
    }

    #[test]
    fn the_root_itself_is_refused() {
        let host = host(Version::Two, "");
        for path in ["/", "/..", "."] {
            let error = resolve(&host, Driver::Cgroupfs, Some(Path::new(path)), "box");
            assert!(matches!(error, Err(CgroupError::Root)), "{path}");
        }
    }

    #[test]
    fn a_scope_lies_in_its_slice() {
        let host = host(Version::Two, "");
        let found = |path| found(&host, Driver::Systemd, path);
        assert_eq!(
            found(Some("kubepods-burstable-pod1.slice:cri-containerd:abc")),
            "/cg/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/\
             cri-containerd-abc.scope"
        );
        assert_eq!(found(Some("-.slice::abc")), "/cg/abc.scope");
        assert_eq!(
            found(Some(":docker:abc")),
            "/cg/system.slice/docker-abc.scope"
        );
        assert_eq!(found(None), "/cg/system.slice/rvm-box.scope");
    }

    #[test]
    fn a_path_that_names_no_scope_says_what_is_expected() {
        let host = host(Version::Two, "");
        for path in [
            "/docker/abc",
            "a:b",
            "a:b:c:d",
            "system.slice:docker:",
            "x/y.slice:p:n",
        ] {
            let error = resolve(&host, Driver::Systemd, Some(Path::new(path)), "box").unwrap_err();
            assert!(error.to_string().contains("slice:prefix:name"), "{error}");
        }
        for path in ["a:b:c", "a--b.slice:p:n", ".slice:p:n"] {
            let error = resolve(&host, Driver::Systemd, Some(Path::new(path)), "box").unwrap_err();
            assert!(error.to_string().contains("slice"), "{error}");
        }
    }
}
