//! Translates the process object, of config.json or of an exec.

use oci_spec::runtime::{
    Capabilities, Capability, IOPriorityClass, Linux, LinuxCapabilities, LinuxPersonalityDomain,
    LinuxSchedulerFlag, LinuxSchedulerPolicy, PosixRlimit, PosixRlimitType, Scheduler,
};
use rvm_sys::cpu_list::CpuList;

use super::config::Process;
use super::{SpecError, path_text};
use crate::init::plan::{CapabilityPlan, CpuAffinity, ProcessPlan, RlimitPlan, TerminalPlan};
use crate::sys::sched::SchedAttr;

const DEFAULT_UMASK: u32 = 0o022;

/// The highest CPU that a `cpu_set_t` holds.
const MAX_CPU: u32 = 1023;

/// The container's init process.
pub fn init_process(process: &Process) -> Result<ProcessPlan, SpecError> {
    translate(
        process,
        &ProcessPlan {
            umask: DEFAULT_UMASK,
            ..ProcessPlan::default()
        },
    )
}

/// A process that joins, from its JSON. As with runc, capabilities, limits, scheduling, CPUs and
/// umask are the container's where the object has none; the seccomp filter always is the
/// container's.
pub fn exec_process(json: &[u8], defaults: &ProcessPlan) -> Result<ProcessPlan, SpecError> {
    let process: Process =
        serde_json::from_slice(json).map_err(|error| SpecError::Malformed(error.to_string()))?;
    let mut plan = translate(&process, defaults)?;
    plan.cpu_affinity = plan.cpu_affinity.or(defaults.cpu_affinity.clone());
    plan.personality = defaults.personality;
    plan.keyring.clone_from(&defaults.keyring);
    plan.seccomp_flags = defaults.seccomp_flags;
    Ok(plan)
}

fn translate(process: &Process, defaults: &ProcessPlan) -> Result<ProcessPlan, SpecError> {
    let args = process.args.clone().unwrap_or_default();
    if args.is_empty() {
        return Err(SpecError::invalid("process.args", "is empty"));
    }
    let env = process.env.clone().unwrap_or_default();
    if args.iter().chain(&env).any(|text| text.contains('\0')) {
        return Err(SpecError::invalid(
            "process.args",
            "or process.env contains a NUL",
        ));
    }
    let cwd = path_text("process.cwd", &process.cwd)?;
    if !cwd.starts_with('/') {
        return Err(SpecError::invalid("process.cwd", "is not an absolute path"));
    }
    note_labels(process);
    let user = &process.user;
    let capabilities = process.capabilities.as_ref();
    let rlimits = process
        .rlimits
        .as_deref()
        .filter(|limits| !limits.is_empty());
    let scheduler = process.scheduler.as_ref().map(scheduler).transpose()?;
    Ok(ProcessPlan {
        args,
        env,
        cwd,
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        umask: user.umask().unwrap_or(defaults.umask),
        capabilities: capabilities.map_or(defaults.capabilities, capability_plan),
        no_new_privileges: process.no_new_privileges.unwrap_or(false),
        rlimits: match rlimits {
            Some(limits) => limits.iter().map(rlimit).collect(),
            None => defaults.rlimits.clone(),
        },
        scheduler: scheduler.or(defaults.scheduler),
        io_priority: io_priority(process)?.or(defaults.io_priority),
        cpu_affinity: cpu_affinity(process)?,
        // The caller sets the terminal, and what comes from the container.
        terminal: process
            .console_size
            .filter(|_| process.terminal.unwrap_or(false))
            .map(|size| TerminalPlan {
                rows: clamp(size.height()),
                cols: clamp(size.width()),
                ..TerminalPlan::default()
            }),
        ..ProcessPlan::default()
    })
}

fn clamp(size: u64) -> u16 {
    u16::try_from(size).unwrap_or(u16::MAX)
}

fn note_labels(process: &Process) {
    for (field, label) in [
        ("apparmorProfile", &process.apparmor_profile),
        ("selinuxLabel", &process.selinux_label),
    ] {
        if label
            .as_ref()
            .is_some_and(|label| !label.is_empty() && label != "unconfined")
        {
            log::info!("process.{field} has no meaning in the guest");
        }
    }
}

fn capability_plan(sets: &LinuxCapabilities) -> CapabilityPlan {
    let bits = |set: &Option<Capabilities>| {
        set.iter()
            .flatten()
            .fold(0, |bits, capability| bits | 1 << number(*capability))
    };
    CapabilityPlan {
        bounding: bits(sets.bounding()),
        effective: bits(sets.effective()),
        inheritable: bits(sets.inheritable()),
        permitted: bits(sets.permitted()),
        ambient: bits(sets.ambient()),
    }
}

/// The kernel's number, from `<linux/capability.h>`.
fn number(capability: Capability) -> u32 {
    match capability {
        Capability::Chown => 0,
        Capability::DacOverride => 1,
        Capability::DacReadSearch => 2,
        Capability::Fowner => 3,
        Capability::Fsetid => 4,
        Capability::Kill => 5,
        Capability::Setgid => 6,
        Capability::Setuid => 7,
        Capability::Setpcap => 8,
        Capability::LinuxImmutable => 9,
        Capability::NetBindService => 10,
        Capability::NetBroadcast => 11,
        Capability::NetAdmin => 12,
        Capability::NetRaw => 13,
        Capability::IpcLock => 14,
        Capability::IpcOwner => 15,
        Capability::SysModule => 16,
        Capability::SysRawio => 17,
        Capability::SysChroot => 18,
        Capability::SysPtrace => 19,
        Capability::SysPacct => 20,
        Capability::SysAdmin => 21,
        Capability::SysBoot => 22,
        Capability::SysNice => 23,
        Capability::SysResource => 24,
        Capability::SysTime => 25,
        Capability::SysTtyConfig => 26,
        Capability::Mknod => 27,
        Capability::Lease => 28,
        Capability::AuditWrite => 29,
        Capability::AuditControl => 30,
        Capability::Setfcap => 31,
        Capability::MacOverride => 32,
        Capability::MacAdmin => 33,
        Capability::Syslog => 34,
        Capability::WakeAlarm => 35,
        Capability::BlockSuspend => 36,
        Capability::AuditRead => 37,
        Capability::Perfmon => 38,
        Capability::Bpf => 39,
        Capability::CheckpointRestore => 40,
    }
}

fn rlimit(limit: &PosixRlimit) -> RlimitPlan {
    let resource = match limit.typ() {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    };
    RlimitPlan {
        resource,
        soft: limit.soft(),
        hard: limit.hard(),
    }
}

fn scheduler(scheduler: &Scheduler) -> Result<SchedAttr, SpecError> {
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => libc::SCHED_OTHER,
        LinuxSchedulerPolicy::SchedFifo => libc::SCHED_FIFO,
        LinuxSchedulerPolicy::SchedRr => libc::SCHED_RR,
        LinuxSchedulerPolicy::SchedBatch => libc::SCHED_BATCH,
        LinuxSchedulerPolicy::SchedIdle => libc::SCHED_IDLE,
        LinuxSchedulerPolicy::SchedDeadline => libc::SCHED_DEADLINE,
        // Reserved by the kernel and never written.
        LinuxSchedulerPolicy::SchedIso => {
            return Err(SpecError::unsupported("process.scheduler.policy SCHED_ISO"));
        }
    };
    let flag = |flag: &LinuxSchedulerFlag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    };
    let priority = scheduler.priority().unwrap_or(0);
    Ok(SchedAttr {
        policy: policy as u32,
        flags: scheduler
            .flags()
            .iter()
            .flatten()
            .fold(0, |flags, one| flags | flag(one)),
        nice: scheduler.nice().unwrap_or(0),
        priority: u32::try_from(priority).map_err(|_| {
            SpecError::invalid("process.scheduler.priority", format!("is {priority}"))
        })?,
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
        ..SchedAttr::default()
    })
}

fn io_priority(process: &Process) -> Result<Option<(u16, u16)>, SpecError> {
    let Some(priority) = &process.io_priority else {
        return Ok(None);
    };
    let class = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u16::try_from(priority.priority()) {
        Ok(level @ 0..=7) => Ok(Some((class, level))),
        _ => {
            let problem = format!("is {}, not between 0 and 7", priority.priority());
            Err(SpecError::invalid("process.ioPriority.priority", problem))
        }
    }
}

fn cpu_affinity(process: &Process) -> Result<Option<CpuAffinity>, SpecError> {
    let Some(affinity) = &process.exec_cpu_affinity else {
        return Ok(None);
    };
    let list = |text: &Option<String>| match text.as_deref() {
        None | Some("") => Ok(Vec::new()),
        Some(text) => CpuList::parse(text)
            .and_then(|list| list.cpus_up_to(MAX_CPU))
            .ok_or_else(|| SpecError::invalid("process.execCPUAffinity", format!("has {text:?}"))),
    };
    Ok(Some((list(&affinity.initial)?, list(&affinity.last)?)))
}

/// `linux.personality`.
pub fn personality(linux: &Linux) -> Result<Option<u32>, SpecError> {
    let Some(personality) = linux.personality() else {
        return Ok(None);
    };
    if personality
        .flags()
        .as_ref()
        .is_some_and(|flags| !flags.is_empty())
    {
        return Err(SpecError::unsupported("linux.personality.flags"));
    }
    Ok(Some(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exec_has_its_containers_capabilities_where_it_is_silent() {
        let defaults = ProcessPlan {
            capabilities: CapabilityPlan {
                bounding: 1,
                ..CapabilityPlan::default()
            },
            umask: 0o077,
            seccomp_flags: Some(0),
            ..ProcessPlan::default()
        };
        let json = br#"{"args":["sh"],"cwd":"/","user":{"uid":5,"gid":6}}"#;
        let plan = exec_process(json, &defaults).unwrap();
        assert_eq!(plan.capabilities.bounding, 1);
        assert_eq!((plan.umask, plan.seccomp_flags), (0o077, Some(0)));
        let json =
            br#"{"args":["sh"],"cwd":"/","user":{},"capabilities":{"bounding":["CAP_KILL"]}}"#;
        assert_eq!(
            exec_process(json, &defaults).unwrap().capabilities.bounding,
            1 << 5
        );
    }

    #[test]
    fn an_exec_without_arguments_is_refused() {
        let error = exec_process(
            br#"{"args":[],"cwd":"/","user":{}}"#,
            &ProcessPlan::default(),
        );
        assert_eq!(
            error.unwrap_err().to_string(),
            "config.json: process.args is empty"
        );
    }
}
