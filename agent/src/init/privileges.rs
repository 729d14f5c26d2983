//! The privileges of the process: limits, scheduling, capabilities, user and system call filter.

use rustix::fs::Mode;
use rustix::process::{Gid, Uid};
use rustix::thread::CpuSet;
use rvm_sys::{check, seccomp};

use super::plan::ProcessPlan;
use crate::sys::{Doing as _, OsError, caps, sched};

/// The hard limit of open files where config.json has none: what engines ask for at most, in
/// practice.
pub const HARD_NOFILE: u64 = 1 << 20;

/// The soft limit: select(2) breaks above it, so programs that can do more raise it themselves.
const SOFT_NOFILE: u64 = 1024;

/// `<linux/capability.h>`, as a bit.
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Confines the process to the CPUs of `execCPUAffinity.initial`.
pub fn set_initial_affinity(process: &ProcessPlan) -> Result<(), OsError> {
    set_affinity(process.cpu_affinity.as_ref().map(|(initial, _)| initial))
}

/// Confines the process to the CPUs of `execCPUAffinity.final`.
pub fn set_final_affinity(process: &ProcessPlan) -> Result<(), OsError> {
    set_affinity(process.cpu_affinity.as_ref().map(|(_, last)| last))
}

fn set_affinity(cpus: Option<&Vec<u32>>) -> Result<(), OsError> {
    let Some(cpus) = cpus.filter(|cpus| !cpus.is_empty()) else {
        return Ok(());
    };
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu as usize);
    }
    rustix::thread::sched_setaffinity(None, &set).doing(|| "set process.execCPUAffinity")
}

/// Sets the scheduling policy, the I/O priority and the execution domain.
pub fn set_scheduling(process: &ProcessPlan) -> Result<(), OsError> {
    if let Some(scheduler) = &process.scheduler {
        sched::set_scheduler(scheduler).doing(|| "set process.scheduler")?;
    }
    if let Some((class, level)) = process.io_priority {
        sched::set_io_priority(class, level).doing(|| "set process.ioPriority")?;
    }
    if let Some(domain) = process.personality {
        sched::set_personality(domain).doing(|| "set linux.personality")?;
    }
    Ok(())
}

/// Sets no_new_privs: from here on execve(2) grants nothing.
pub fn set_no_new_privileges(process: &ProcessPlan) -> Result<(), OsError> {
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).doing(|| "set no_new_privs")?;
    }
    Ok(())
}

/// Sets the resource limits, of open files in any case: the process has inherited the agent's.
pub fn set_rlimits(process: &ProcessPlan) -> Result<(), OsError> {
    if !process
        .rlimits
        .iter()
        .any(|limit| limit.resource == libc::RLIMIT_NOFILE)
    {
        set_rlimit(libc::RLIMIT_NOFILE, SOFT_NOFILE, HARD_NOFILE)?;
    }
    for limit in &process.rlimits {
        set_rlimit(limit.resource, limit.soft, limit.hard)?;
    }
    Ok(())
}

#[allow(unsafe_code)]
fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Result<(), OsError> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the structure lives across the call.
    let set = unsafe { libc::setrlimit64(resource, &raw const limit) };
    check(libc::c_long::from(set))
        .map(drop)
        .doing(|| format!("error setting rlimits: resource {resource} to soft {soft}, hard {hard}"))
}

/// Installs the system call filter, if there is one.
pub fn install_filter(process: &ProcessPlan, filter: &[u8]) -> Result<(), OsError> {
    let Some(flags) = process.seccomp_flags else {
        return Ok(());
    };
    seccomp::install(filter, flags).doing(|| "install the seccomp filter")
}

/// Becomes the user, with the capabilities of the plan and no others but [`for_the_filter`].
///
/// A change of the user from root clears the permitted set unless the process keeps its
/// capabilities; execve(2) resets that flag.
pub fn set_user_and_capabilities(process: &ProcessPlan) -> Result<(), OsError> {
    let sets = process.capabilities;
    caps::limit_bounding_set(sets.bounding).doing(|| "limit the bounding set")?;
    rustix::thread::set_keep_capabilities(true).doing(|| "keep capabilities")?;
    set_ids(process)?;
    rustix::thread::set_keep_capabilities(false).doing(|| "stop keeping capabilities")?;
    rustix::process::umask(Mode::from_raw_mode(process.umask));
    let kept = for_the_filter(process);
    caps::set(
        sets.effective | kept,
        sets.permitted | kept,
        sets.inheritable,
    )
    .doing(|| "apply process.capabilities")?;
    caps::set_ambient(sets.ambient).doing(|| "apply process.capabilities.ambient")
}

/// What it takes to install a system call filter right before execve(2): without no_new_privs,
/// CAP_SYS_ADMIN (seccomp(2)). The program does not get it: execve(2) computes the permitted and
/// the effective set anew, from the other sets and from the file (capabilities(7)).
fn for_the_filter(process: &ProcessPlan) -> u64 {
    match process.seccomp_flags {
        Some(_) if !process.no_new_privileges => CAP_SYS_ADMIN,
        _ => 0,
    }
}

fn set_ids(process: &ProcessPlan) -> Result<(), OsError> {
    let groups: Vec<_> = process
        .groups
        .iter()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    rustix::thread::set_thread_groups(&groups).doing(|| "set process.user.additionalGids")?;
    let gid = Gid::from_raw(process.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .doing(|| format!("set process.user.gid {}", process.gid))?;
    let uid = Uid::from_raw(process.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid)
        .doing(|| format!("set process.user.uid {}", process.uid))
}
