//! Creates groups, writes limits to their files and lists their processes.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use super::hierarchy::Version;
use super::limits::Setting;
use super::{Cgroup, CgroupError, Dir, failed};
use rvm_sys::fault_point;

/// Creates a group and those above it, with the controllers that the kernel lets them have.
pub fn create(version: Version, dir: &Dir) -> Result<(), CgroupError> {
    let below = dir.path.strip_prefix(&dir.mount).unwrap_or(&dir.path);
    let mut at = dir.mount.clone();
    for name in below {
        if version == Version::Two {
            delegate_controllers(&at);
        }
        at.push(name);
        match fs::create_dir(&at) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.map_err(failed("create", &at))?,
        }
        fault_point!("cgroup.made").map_err(failed("create", &at))?;
        if version == Version::One && dir.has("cpuset") {
            inherit_cpuset(&at)?;
        }
    }
    Ok(())
}

/// Whether a group is frozen: a process that entered it would stand still.
pub fn are_frozen(cgroup: &Cgroup) -> bool {
    let reads = |controller, file, frozen| {
        let group = cgroup.dir(controller);
        let text = group.and_then(|group| fs::read_to_string(group.join(file)).ok());
        text.is_some_and(|text| text.trim() == frozen)
    };
    match cgroup.version {
        Version::One => reads("freezer", "freezer.state", "FROZEN"),
        Version::Two => reads("freezer", "cgroup.freeze", "1"),
    }
}

/// Lets the groups below use every controller. A controller that cannot be enabled fails the limit
/// that needs it, later.
fn delegate_controllers(group: &Path) {
    let Ok(controllers) = fs::read_to_string(group.join("cgroup.controllers")) else {
        return;
    };
    let delegated = fs::read_to_string(group.join("cgroup.subtree_control")).unwrap_or_default();
    let delegated: BTreeSet<&str> = delegated.split_whitespace().collect();
    let missing: Vec<String> = controllers
        .split_whitespace()
        .filter(|name| !delegated.contains(name))
        .map(|name| format!("+{name}"))
        .collect();
    let file = group.join("cgroup.subtree_control");
    if missing.is_empty() || fs::write(&file, missing.join(" ")).is_ok() {
        return;
    }
    // One write for all of them fails if one controller does.
    for controller in missing {
        if let Err(error) = fs::write(&file, &controller) {
            tracing::debug!("{controller} in {}: {error}", file.display());
        }
    }
}

/// A group of version 1's cpuset accepts no process before it has CPUs and memory nodes.
fn inherit_cpuset(group: &Path) -> Result<(), CgroupError> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = group.join(name);
        let own = fs::read_to_string(&file).map_err(failed("read", &file))?;
        let parent = group.parent().map(|parent| parent.join(name));
        if own.trim().is_empty()
            && let Some(parent) = parent
        {
            let value = fs::read_to_string(&parent).map_err(failed("read", &parent))?;
            fs::write(&file, value.trim()).map_err(failed("write", &file))?;
        }
    }
    Ok(())
}

/// Writes settings. The kernel may refuse a value until another one is written, so refused values
/// are written again at the end.
pub fn apply(cgroup: &Cgroup, settings: &[Setting]) -> Result<(), CgroupError> {
    let mut refused = Vec::new();
    for setting in settings {
        match write(cgroup, setting) {
            Err(CgroupError::Refused { source, .. })
                if source.kind() == io::ErrorKind::InvalidInput =>
            {
                refused.push(setting);
            }
            written => written?,
        }
    }
    refused
        .into_iter()
        .try_for_each(|setting| write(cgroup, setting))
}

fn write(cgroup: &Cgroup, setting: &Setting) -> Result<(), CgroupError> {
    let Some(group) = cgroup.dir(setting.controller) else {
        return missing(setting, Path::new(setting.controller));
    };
    for (file, value) in &setting.choices {
        let path = group.join(file);
        // Without O_CREAT: a file that the kernel does not have must not be created.
        let file = fs::File::options().write(true).open(&path);
        let written = match file {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file.and_then(|mut file| {
                fault_point!("cgroup.write")?;
                io::Write::write_all(&mut file, value.as_bytes())
            }),
        };
        return written.map_err(|source| CgroupError::Refused {
            field: setting.field,
            value: value.clone(),
            path,
            source,
        });
    }
    missing(setting, &group.join(&setting.choices[0].0))
}

fn missing(setting: &Setting, path: &Path) -> Result<(), CgroupError> {
    if setting.is_default {
        return Ok(());
    }
    Err(CgroupError::Refused {
        field: setting.field,
        value: setting.choices[0].1.clone(),
        path: path.to_owned(),
        source: io::Error::new(
            io::ErrorKind::NotFound,
            "the host's kernel has no such control",
        ),
    })
}

/// A group and those below it, children before their parents. Empty if the group does not exist.
pub fn tree(group: &Path) -> Result<Vec<std::path::PathBuf>, CgroupError> {
    let mut groups = Vec::new();
    let mut waiting = vec![group.to_owned()];
    while let Some(group) = waiting.pop() {
        let entries = match fs::read_dir(&group) {
            Err(error) if is_gone(&error) => continue,
            entries => entries.map_err(failed("list", &group))?,
        };
        for entry in entries {
            let entry = match entry {
                Err(error) if is_gone(&error) => break,
                entry => entry.map_err(failed("list", &group))?,
            };
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                waiting.push(entry.path());
            }
        }
        groups.push(group);
    }
    groups.reverse();
    Ok(groups)
}

/// The processes in a group and all below it.
pub fn processes(group: &Path) -> Result<BTreeSet<i32>, CgroupError> {
    let mut processes = BTreeSet::new();
    for group in tree(group)? {
        let file = group.join("cgroup.procs");
        let text = match fs::read_to_string(&file) {
            Err(error) if is_gone(&error) => continue,
            // A threaded group of version 2 lists none; its domain does.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => continue,
            text => text.map_err(failed("read", &file))?,
        };
        // A process outside this pid namespace appears as 0.
        let pids = text.lines().filter_map(|line| line.parse().ok());
        processes.extend(pids.filter(|pid: &i32| *pid > 0));
    }
    Ok(processes)
}

/// The error of a group that was removed meanwhile.
pub fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}
