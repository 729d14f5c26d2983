//! Taking a container's groups away.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{Cgroup, CgroupError, failed, files, systemd};
use crate::host::process::ProcessId;

/// How long the processes of a group may take to end after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// How long the kernel may hold on to groups whose processes have ended. On a busy host that is seconds.
const RELEASE_LIMIT: Duration = Duration::from_secs(10);

/// Between two looks at what tells nobody when it changes.
const PAUSE: Duration = Duration::from_millis(5);

/// Ends whatever is in the groups and removes them.
pub fn remove(cgroup: &Cgroup) -> Result<(), CgroupError> {
    thaw(cgroup);
    end_processes(cgroup)?;
    if let Some((_, unit)) = &cgroup.scope {
        systemd::stop(unit)?;
    }
    let start = Instant::now();
    // One that stays keeps no other.
    let mut removed = Ok(());
    for dir in &cgroup.dirs {
        removed = removed.and(remove_tree(&dir.path, start));
    }
    removed
}

fn remove_tree(path: &Path, start: Instant) -> Result<(), CgroupError> {
    let groups = files::tree(path)?;
    groups
        .iter()
        .try_for_each(|group| remove_group(group, start))
}

/// With version 1 a frozen process does not even die.
fn thaw(cgroup: &Cgroup) {
    let state = cgroup.dir("freezer").map(|dir| dir.join("freezer.state"));
    if let Some(state) = state
        && fs::read_to_string(&state).is_ok_and(|state| state.trim() != "THAWED")
    {
        // What stays frozen is noticed below.
        let _ = fs::write(&state, "THAWED");
    }
}

fn end_processes(cgroup: &Cgroup) -> Result<(), CgroupError> {
    let start = Instant::now();
    let own = rustix::process::getpid().as_raw_nonzero().get();
    loop {
        let mut processes = cgroup.processes()?;
        processes.remove(&own);
        let Some(first) = cgroup.dirs.first().filter(|_| !processes.is_empty()) else {
            return Ok(());
        };
        if start.elapsed() > KILL_LIMIT {
            return Err(failed("empty", &first.path)(io::ErrorKind::TimedOut.into()));
        }
        for process in processes {
            end(process).map_err(failed("empty", &first.path))?;
        }
        std::thread::sleep(PAUSE);
    }
}

fn end(pid: i32) -> io::Result<()> {
    let Some(process) = ProcessId::of(pid).ok().and_then(ProcessId::open) else {
        return Ok(());
    };
    process.signal(Signal::KILL)?;
    process.wait(KILL_LIMIT).map(drop)
}

fn remove_group(group: &Path, start: Instant) -> Result<(), CgroupError> {
    loop {
        match fs::remove_dir(group) {
            Err(error) if files::is_gone(&error) => return Ok(()),
            // A process that has ended takes a moment to leave.
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy
                    && start.elapsed() < RELEASE_LIMIT =>
            {
                std::thread::sleep(PAUSE);
            }
            removed => return removed.map_err(failed("remove", group)),
        }
    }
}
