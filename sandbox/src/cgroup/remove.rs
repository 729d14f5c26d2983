//! Removes a container's groups.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{Cgroup, CgroupError, failed, files, shared, systemd};
use crate::host::process::{KILL_TIMEOUT, ProcessId};
use rvm_sys::fault_point;

/// The time that the kernel has to release groups whose processes have ended: seconds on a busy
/// host.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// Nothing notifies of these changes, so they are polled.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Kills the processes in the groups and removes the groups.
pub fn remove(cgroup: &Cgroup) -> Result<(), CgroupError> {
    if shared::is_marked(cgroup) {
        return remove_if_empty(cgroup);
    }
    thaw(cgroup);
    kill_processes(cgroup)?;
    if let Some((_, unit)) = &cgroup.scope {
        systemd::stop(unit)?;
    }
    let start = Instant::now();
    // A group that cannot be removed does not keep the others.
    let mut removed = Ok(());
    for dir in &cgroup.dirs {
        removed = removed.and(remove_tree(&dir.path, start));
    }
    removed
}

/// Removes groups that the container has shared, unless others are in them still.
fn remove_if_empty(cgroup: &Cgroup) -> Result<(), CgroupError> {
    match cgroup.processes()?.len() {
        0 => {}
        count => {
            tracing::warn!("container's cgroup stays: {count} other process(es) found");
            return Ok(());
        }
    }
    let start = Instant::now();
    cgroup
        .dirs
        .iter()
        .try_for_each(|dir| remove_tree(&dir.path, start))
}

fn remove_tree(path: &Path, start: Instant) -> Result<(), CgroupError> {
    let groups = files::tree(path)?;
    groups
        .iter()
        .try_for_each(|group| remove_group(group, start))
}

/// See [`Cgroup::thaw`].
pub fn thaw(cgroup: &Cgroup) {
    let state = cgroup.dir("freezer").map(|dir| dir.join("freezer.state"));
    if let Some(state) = state
        && fs::read_to_string(&state).is_ok_and(|state| state.trim() != "THAWED")
    {
        // A process that stays frozen fails the kill below.
        let _ = fs::write(&state, "THAWED");
    }
}

fn kill_processes(cgroup: &Cgroup) -> Result<(), CgroupError> {
    let start = Instant::now();
    let own = rustix::process::getpid().as_raw_nonzero().get();
    loop {
        let mut processes = cgroup.processes()?;
        processes.remove(&own);
        let Some(first) = cgroup.dirs.first().filter(|_| !processes.is_empty()) else {
            return Ok(());
        };
        if start.elapsed() > KILL_TIMEOUT {
            return Err(failed("empty", &first.path)(io::ErrorKind::TimedOut.into()));
        }
        for process in processes {
            kill(process).map_err(failed("empty", &first.path))?;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn kill(pid: i32) -> io::Result<()> {
    let process = match ProcessId::of(pid) {
        // It has ended, or will be found again.
        Err(_) => None,
        Ok(id) => id.open()?,
    };
    let Some(process) = process else {
        return Ok(());
    };
    process.signal(Signal::KILL)?;
    process.wait(KILL_TIMEOUT).map(drop)
}

fn remove_group(group: &Path, start: Instant) -> Result<(), CgroupError> {
    loop {
        match fault_point!("cgroup.remove").and_then(|()| fs::remove_dir(group)) {
            Err(error) if files::is_gone(&error) => return Ok(()),
            // The kernel removes an ended process from its group with a delay.
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy
                    && start.elapsed() < RELEASE_TIMEOUT =>
            {
                std::thread::sleep(POLL_INTERVAL);
            }
            removed => return removed.map_err(failed("remove", group)),
        }
    }
}
