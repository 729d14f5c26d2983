//! Kernel settings that suit a machine whose only work is containers.

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::cgroup::parent;
use crate::sys::{Doing as _, OsError};

/// Hard limit of open files that containers inherit: what engines ask for at most, in practice.
pub const HARD_NOFILE: u64 = 1 << 20;
/// Soft limit of open files for containers: select(2) breaks above it, so programs raise it
/// themselves if they can do more.
pub const SOFT_NOFILE: u64 = 1024;

/// Settings below /proc/sys.
///
/// The limits that protect the users of one kernel from one another have no purpose here: the
/// host's limits on the machine as a whole take their place.
const SYSCTLS: [(&str, &str); 5] = [
    // A crashed guest is to end, and be seen as such, not to hang.
    ("kernel/panic", "-1"),
    ("kernel/pid_max", "4194304"),
    // 2^30, as systemd has it: containers are given the limit that the host's engine has.
    ("fs/nr_open", "1073741816"),
    ("fs/inotify/max_user_instances", "8192"),
    ("vm/max_map_count", "1048576"),
];

/// What the kernel keeps free, in KiB, for allocations that cannot wait: its own measure. With huge pages
/// it keeps a good deal more, so that they stay easy to find, at the expense of what containers may use.
fn free_kib(total_kib: u64) -> u64 {
    (16 * total_kib).isqrt()
}

fn keep_less_free() -> Result<(), OsError> {
    let path = "/proc/sys/vm/min_free_kbytes";
    let wanted = free_kib(rustix::system::sysinfo().totalram as u64 >> 10);
    let now = std::fs::read_to_string(path).doing(|| format!("read {path}"))?;
    if now.trim().parse().is_ok_and(|now: u64| now > wanted) {
        std::fs::write(path, wanted.to_string()).doing(|| format!("write {wanted} to {path}"))?;
    }
    Ok(())
}

/// Applies the settings, the resource limits and the agent's own protection from the OOM killer, and
/// makes the cgroup for containers.
pub fn apply() -> Result<(), OsError> {
    for (name, value) in SYSCTLS {
        let path = format!("/proc/sys/{name}");
        // None is worth not booting for: a kernel may be built without.
        if let Err(error) = std::fs::write(&path, value) {
            log::warn!("write {value} to {path}: {error}");
        }
    }
    std::fs::write("/proc/self/oom_score_adj", "-1000")
        .doing(|| "write /proc/self/oom_score_adj")?;
    let nofile = Rlimit {
        current: Some(HARD_NOFILE),
        maximum: Some(HARD_NOFILE),
    };
    setrlimit(Resource::Nofile, nofile).doing(|| "raise the limit of open files")?;
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    setrlimit(Resource::Nproc, unlimited).doing(|| "raise the limit of processes")?;
    rustix::system::sethostname(b"rvm").doing(|| "set the host name")?;
    keep_less_free()?;
    parent::prepare()?;
    parent::limit_memory()
}
