//! An OOM kill by the guest's kernel, made known to engines.
//!
//! Docker (through containerd's shim for runc), Podman and CRI-O (through conmon) watch the group
//! of a container's pid on the host, and only the host's kernel can tell them something there: by
//! `memory.events` of version 2, or by a notification of version 1's `memory.oom_control`. So the
//! host's kernel gets a process to kill, in the group itself: version 2 has no groups with memory
//! limits below one with processes, and version 1 does not notify those above.
//!
//! The group's limit is lowered to a little more than the group uses, and the process asks for more
//! than that. Its OOM score makes it the one that the kernel kills. What it had is free then, for
//! the moment until the group has its limit back, so nothing else in the group is in danger. That
//! holds where the machine has ended: a machine that runs could use up that much.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::ptr;
use std::time::Duration;

use rustix::io::retry_on_intr;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::hierarchy::Version;
use super::{CgroupError, failed};
use crate::host::process::ProcessId;

/// How much memory the group gets beyond what it uses, in bytes.
const SLACK: u64 = 16 << 20;

/// How much memory the process asks for, in bytes: more than [`SLACK`], because the kernel may find
/// page cache to reclaim first.
const APPETITE: usize = 64 << 20;

/// How long the kernel may take to kill the process.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Has the host's kernel count an OOM kill in the group `dir`.
pub fn count(version: Version, dir: &Path) -> Result<(), CgroupError> {
    let not_killed = |reason| CgroupError::NoOomKill {
        path: dir.to_owned(),
        reason,
    };
    let panic = fs::read_to_string("/proc/sys/vm/panic_on_oom").unwrap_or_default();
    if panic.trim() == "2" {
        return Err(not_killed("vm.panic_on_oom is 2"));
    }
    let (usage, limit) = match version {
        Version::One => ("memory.usage_in_bytes", "memory.limit_in_bytes"),
        Version::Two => ("memory.current", "memory.max"),
    };
    reclaim(version, dir);
    let usage = number(&dir.join(usage)).map_err(failed("read the memory of", dir))?;
    let lowered = lower(dir.join(limit), usage.saturating_add(SLACK));
    let _lowered = lowered.map_err(failed("limit the memory of", dir))?;
    // Else the kernel kills all processes of the group with one of them.
    let alone = lower(dir.join("memory.oom.group"), 0);
    let _alone = match alone {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        alone => alone.map_err(failed("keep together the processes of", dir))?,
    };
    match is_victim_killed(dir).map_err(failed("start a process in", dir))? {
        true => Ok(()),
        false => Err(not_killed("a process got the memory that it asked for")),
    }
}

/// Frees page cache in the group. Not all of it can be freed, and not every kernel has the file.
fn reclaim(version: Version, dir: &Path) {
    let (file, bytes) = match version {
        Version::One => ("memory.force_empty", "0"),
        Version::Two => ("memory.reclaim", "1T"),
    };
    if let Err(error) = write(&dir.join(file), bytes) {
        tracing::debug!("{} in {}: {error}", file, dir.display());
    }
}

/// A file's value before it was changed, which it gets back on drop.
struct Lowered {
    path: PathBuf,
    before: String,
}

/// Writes a number that is less than the one in the file.
fn lower(path: PathBuf, to: u64) -> io::Result<Option<Lowered>> {
    if number(&path)? <= to {
        return Ok(None);
    }
    let before = fs::read_to_string(&path)?;
    write(&path, &to.to_string())?;
    Ok(Some(Lowered { path, before }))
}

impl Drop for Lowered {
    fn drop(&mut self) {
        if let Err(error) = write(&self.path, self.before.trim()) {
            tracing::warn!("{} was {}: {error}", self.path.display(), self.before);
        }
    }
}

/// The number in a file; `max` is the greatest.
fn number(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    match text.trim() {
        "max" => Ok(u64::MAX),
        number => number
            .parse()
            .map_err(|_| io::ErrorKind::InvalidData.into()),
    }
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    // Without O_CREAT: a file that the kernel does not have must not be created.
    let mut file = File::options().write(true).open(path)?;
    file.write_all(value.as_bytes())
}

/// Runs a process that wants more memory than there is. False if it got it, or if the kernel did
/// not decide in time.
fn is_victim_killed(dir: &Path) -> io::Result<bool> {
    let pid = fork_victim(&File::options().write(true).open(dir.join("cgroup.procs"))?)?;
    let id = ProcessId::of(pid.as_raw_nonzero().get());
    let in_time = match id.and_then(ProcessId::open) {
        Ok(Some(process)) => process.wait(KILL_TIMEOUT).unwrap_or(false),
        // It is a zombie already.
        Ok(None) => true,
        Err(_) => false,
    };
    // It is not reaped yet, so the pid is still its own.
    if !in_time {
        kill_process(pid, Signal::KILL)?;
    }
    let ended = retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()))?;
    let signal = ended.and_then(|(_, status)| status.terminating_signal());
    Ok(in_time && signal == Some(libc::SIGKILL))
}

/// Forks a process that enters the group of this cgroup.procs, fills [`APPETITE`] bytes of memory
/// and exits.
#[expect(unsafe_code, reason = "fork")]
fn fork_victim(group: &File) -> io::Result<Pid> {
    // SAFETY: the child makes system calls alone, and ends in this function.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // The process that writes.
            let entered = rustix::io::write(group, b"0").is_ok();
            let score = b"1000";
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let filled = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
            // SAFETY: the strings are static, and nothing uses the new memory.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY);
                if entered && libc::write(file, score.as_ptr().cast(), score.len()) > 0 {
                    // Locked, so that it is not swapped out, where this is allowed.
                    for flags in [filled | libc::MAP_LOCKED, filled] {
                        libc::mmap(ptr::null_mut(), APPETITE, protection, flags, -1, 0);
                    }
                }
                libc::_exit(0)
            }
        }
        pid => Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_lowered_for_a_while_and_never_raised() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory.max");
        for (before, to, during) in [("max\n", 7, "7"), ("9\n", 7, "7"), ("5\n", 7, "5\n")] {
            fs::write(&path, before).unwrap();
            let lowered = lower(path.clone(), to).unwrap();
            let now = fs::read_to_string(&path).unwrap();
            assert!(now.starts_with(during), "{now}");
            drop(lowered);
            let after = fs::read_to_string(&path).unwrap();
            assert_eq!(after.trim(), before.trim());
        }
    }
}
