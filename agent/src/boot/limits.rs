//! Kernel settings that suit a machine whose only work is containers.

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::cgroup::parent;
use crate::init::HARD_NOFILE;
use crate::sys::{Doing as _, OsError};

/// Settings below /proc/sys.
///
/// Limits that protect the users of one kernel from one another serve no purpose here: the host
/// limits the machine as a whole.
const SYSCTLS: [(&str, &str); 5] = [
    // A crashed guest ends at once: the host sees the reset.
    ("kernel/panic", "-1"),
    ("kernel/pid_max", "4194304"),
    // 2^30, as in systemd: engines pass the host's limit on to containers.
    ("fs/nr_open", "1073741816"),
    ("fs/inotify/max_user_instances", "8192"),
    ("vm/max_map_count", "1048576"),
];

/// The kernel's default for min_free_kbytes, which it keeps free for allocations that cannot wait.
/// With huge pages the kernel raises it a good deal, at the expense of containers' memory.
fn free_kib(total_kib: u64) -> u64 {
    (16 * total_kib).isqrt()
}

fn lower_min_free() -> Result<(), OsError> {
    let path = "/proc/sys/vm/min_free_kbytes";
    let wanted = free_kib(rustix::system::sysinfo().totalram as u64 >> 10);
    let now = std::fs::read_to_string(path).doing(|| format!("read {path}"))?;
    if now.trim().parse().is_ok_and(|now: u64| now > wanted) {
        std::fs::write(path, wanted.to_string()).doing(|| format!("write {wanted} to {path}"))?;
    }
    Ok(())
}

/// Applies the settings and resource limits, protects the agent from the OOM killer, and makes the
/// parent cgroup of containers.
pub fn apply() -> Result<(), OsError> {
    for (name, value) in SYSCTLS {
        let path = format!("/proc/sys/{name}");
        // A guest boots without any of them: the kernel may lack the setting.
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
    lower_min_free()?;
    parent::prepare()?;
    parent::limit_memory()
}
