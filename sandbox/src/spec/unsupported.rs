//! Fields that neither the guest nor the host supports. Pure.

use oci_spec::runtime::{
    Linux, LinuxResources, LinuxSchedulerPolicy, LinuxSeccomp, LinuxSeccompAction, Process, Spec,
};

use super::validate::FieldError;

/// Finds the first unsupported field.
pub fn find(spec: &Spec) -> Option<FieldError> {
    let others = first(&[
        ("windows", spec.windows().is_some(), PLATFORM),
        ("solaris", spec.solaris().is_some(), PLATFORM),
        ("zos", spec.zos().is_some(), PLATFORM),
    ]);
    others.or_else(|| spec.linux().as_ref().and_then(linux))
}

const PLATFORM: &str = "is of another platform and not supported";
const NO_MEANING: &str = "has no meaning for a virtual machine and is not supported";
const NOT_IN_GUEST: &str = "is not supported by the guest's kernel";

/// Finds the first field that is set.
pub(super) fn first(fields: &[(&str, bool, &str)]) -> Option<FieldError> {
    let (field, _, reason) = fields.iter().find(|(_, is_set, _)| *is_set)?;
    Some(FieldError {
        field: (*field).to_owned(),
        reason: (*reason).to_owned(),
    })
}

/// Finds the first unsupported field of a process object.
pub fn process(process: &Process) -> Option<FieldError> {
    let scheduler = process.scheduler().as_ref();
    let is_iso = scheduler.is_some_and(|s| *s.policy() == LinuxSchedulerPolicy::SchedIso);
    let is_set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    first(&[
        (
            "process.commandLine",
            is_set(process.command_line()),
            "is of another platform and not supported; process.args is this one's",
        ),
        (
            "process.user.username",
            is_set(process.user().username()),
            "is of another platform and not supported; process.user.uid is this one's",
        ),
        (
            "process.scheduler.policy",
            is_iso,
            "is SCHED_ISO, which no kernel has",
        ),
    ])
}

fn linux(linux: &Linux) -> Option<FieldError> {
    let personality = linux.personality().as_ref();
    let personality_flags = personality.and_then(|personality| personality.flags().as_ref());
    first(&[
        ("linux.intelRdt", linux.intel_rdt().is_some(), NO_MEANING),
        (
            "linux.personality.flags",
            personality_flags.is_some_and(|flags| !flags.is_empty()),
            "are not supported, as the specification has defined none",
        ),
    ])
    .or_else(|| linux.seccomp().as_ref().and_then(seccomp))
    .or_else(|| linux.resources().as_ref().and_then(resources))
}

fn seccomp(seccomp: &LinuxSeccomp) -> Option<FieldError> {
    let notify = |field: String| FieldError {
        field,
        reason: "is SCMP_ACT_NOTIFY, whose listener cannot be reached from a virtual machine"
            .to_owned(),
    };
    if seccomp.default_action() == LinuxSeccompAction::ScmpActNotify {
        return Some(notify("linux.seccomp.defaultAction".to_owned()));
    }
    if seccomp.listener_metadata().is_some() && seccomp.listener_path().is_none() {
        return first(&[(
            "linux.seccomp.listenerMetadata",
            true,
            "is there without a listenerPath",
        )]);
    }
    let calls = seccomp.syscalls().iter().flatten();
    let is_notify = |action: LinuxSeccompAction| action == LinuxSeccompAction::ScmpActNotify;
    let index = calls.map(|call| call.action()).position(is_notify)?;
    Some(notify(format!("linux.seccomp.syscalls[{index}].action")))
}

/// Finds the first unsupported field of `linux.resources`.
pub fn resources(resources: &LinuxResources) -> Option<FieldError> {
    let cpu = resources.cpu().as_ref();
    let memory = resources.memory().as_ref();
    let io = resources.block_io().as_ref();
    let network = resources.network().as_ref();
    let rdma = resources.rdma().as_ref();
    let leaf_weight = io.is_some_and(|io| {
        let devices = io.weight_device().iter().flatten();
        let mut weights = devices.map(|device| device.leaf_weight());
        io.leaf_weight().is_some_and(|weight| weight != 0)
            || weights.any(|weight| weight.is_some_and(|weight| weight != 0))
    });
    let priorities = network.and_then(|network| network.priorities().as_ref());
    first(&[
        (
            "linux.resources.cpu.realtimeRuntime",
            cpu.and_then(|cpu| cpu.realtime_runtime())
                .is_some_and(|us| us != 0),
            NOT_IN_GUEST,
        ),
        (
            "linux.resources.cpu.realtimePeriod",
            cpu.and_then(|cpu| cpu.realtime_period())
                .is_some_and(|us| us != 0),
            NOT_IN_GUEST,
        ),
        (
            "linux.resources.memory.disableOOMKiller",
            memory.and_then(|memory| memory.disable_oom_killer()) == Some(true),
            NOT_IN_GUEST,
        ),
        (
            "linux.resources.memory.useHierarchy",
            memory.and_then(|memory| memory.use_hierarchy()) == Some(false),
            "is false, which no kernel has any more",
        ),
        (
            "linux.resources.blockIO.leafWeight",
            leaf_weight,
            "is not supported, as no kernel has it any more",
        ),
        (
            "linux.resources.network.classID",
            network
                .and_then(|network| network.class_id())
                .is_some_and(|id| id != 0),
            NO_MEANING,
        ),
        (
            "linux.resources.network.priorities",
            priorities.is_some_and(|list| !list.is_empty()),
            NO_MEANING,
        ),
        (
            "linux.resources.rdma",
            rdma.is_some_and(|devices| !devices.is_empty()),
            NO_MEANING,
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn refused(pointer: &str, value: Value) -> Option<String> {
        let mut config = json!({
            "ociVersion": "1.2.0", "process": { "cwd": "/", "user": {} },
            "linux": { "resources": { "cpu": {}, "memory": {}, "network": {}, "blockIO": {} } },
        });
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap()[key] = value;
        let error = find(&serde_json::from_value(config).unwrap())?;
        Some(error.field)
    }

    #[test]
    fn unsupported_fields_are_named() {
        for (pointer, value) in [
            ("/zos", json!({})),
            ("/linux/intelRdt", json!({ "closID": "x" })),
            ("/linux/resources/rdma", json!({ "mlx": {} })),
            ("/linux/resources/cpu/realtimeRuntime", json!(1)),
            ("/linux/resources/cpu/realtimePeriod", json!(1)),
            ("/linux/resources/memory/disableOOMKiller", json!(true)),
            ("/linux/resources/memory/useHierarchy", json!(false)),
            ("/linux/resources/network/classID", json!(7)),
            (
                "/linux/resources/network/priorities",
                json!([{ "name": "eth0", "priority": 1 }]),
            ),
        ] {
            let field = pointer[1..].replace('/', ".");
            assert_eq!(refused(pointer, value), Some(field));
        }
        for (pointer, value, field) in [
            (
                "/linux/resources/blockIO/weightDevice",
                json!([{ "major": 8, "minor": 0, "leafWeight": 10 }]),
                "linux.resources.blockIO.leafWeight",
            ),
            (
                "/linux/personality",
                json!({ "domain": "LINUX", "flags": ["X"] }),
                "linux.personality.flags",
            ),
            (
                "/linux/seccomp",
                json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                    { "names": ["read"], "action": "SCMP_ACT_ERRNO" },
                    { "names": ["mount"], "action": "SCMP_ACT_NOTIFY" },
                ] }),
                "linux.seccomp.syscalls[1].action",
            ),
        ] {
            assert_eq!(refused(pointer, value).as_deref(), Some(field));
        }
    }

    #[test]
    fn zeros_that_engines_write_are_accepted() {
        for (pointer, value) in [
            ("/linux/resources/network/classID", json!(0)),
            ("/linux/resources/memory/disableOOMKiller", json!(false)),
            ("/linux/resources/cpu/realtimePeriod", json!(0)),
            ("/linux/resources/blockIO/leafWeight", json!(0)),
        ] {
            assert_eq!(refused(pointer, value), None, "{pointer}");
        }
    }
}
