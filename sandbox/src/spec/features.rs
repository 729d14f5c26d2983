//! What rvm can do, as features.md of the runtime specification describes it. `rvm features` prints
//! it, and the shim tells it to containerd.

use serde_json::{Value, json};

use super::{SPEC_VERSION, pod};

/// The mount options that the agent knows.
const MOUNT_OPTIONS: &str = "\
    async atime bind defaults dev diratime dirsync exec idmap iversion lazytime loud mand \
    noatime nodev nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime \
    nosuid nosymfollow private ratime rbind rdev rdiratime relatime remount rexec ridmap \
    rnoatime rnodev rnodiratime rnoexec rnorelatime rnostrictatime rnosuid rnosymfollow ro \
    rprivate rrelatime rro rrw rshared rslave rstrictatime rsuid rsymfollow runbindable rw \
    shared silent slave strictatime suid symfollow sync tmpcopyup unbindable";

const MEMORY_POLICIES: &str = "\
    MPOL_DEFAULT MPOL_BIND MPOL_INTERLEAVE MPOL_WEIGHTED_INTERLEAVE MPOL_PREFERRED \
    MPOL_PREFERRED_MANY MPOL_LOCAL";

/// The capabilities of Linux, in the order of their numbers.
const CAPABILITIES: &str = "\
    CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID \
    CAP_SETUID CAP_SETPCAP CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST \
    CAP_NET_ADMIN CAP_NET_RAW CAP_IPC_LOCK CAP_IPC_OWNER CAP_SYS_MODULE CAP_SYS_RAWIO \
    CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_PACCT CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_NICE \
    CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_MKNOD CAP_LEASE CAP_AUDIT_WRITE \
    CAP_AUDIT_CONTROL CAP_SETFCAP CAP_MAC_OVERRIDE CAP_MAC_ADMIN CAP_SYSLOG CAP_WAKE_ALARM \
    CAP_BLOCK_SUSPEND CAP_AUDIT_READ CAP_PERFMON CAP_BPF CAP_CHECKPOINT_RESTORE";

/// The document of features.md.
pub fn features() -> Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": [
            "prestart", "createRuntime", "createContainer", "startContainer", "poststart",
            "poststop",
        ],
        "mountOptions": words(MOUNT_OPTIONS),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": words(CAPABILITIES),
            "cgroup": {
                "v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": false,
            },
            "seccomp": seccomp(),
            // The guest's kernel has neither; labels are accepted and have no effect.
            "apparmor": { "enabled": false },
            "selinux": { "enabled": false },
            "memoryPolicy": {
                "modes": words(MEMORY_POLICIES),
                "flags": words("MPOL_F_NUMA_BALANCING MPOL_F_RELATIVE_NODES MPOL_F_STATIC_NODES"),
            },
            "intelRdt": { "enabled": false, "schemata": false, "monitoring": false },
            "mountExtensions": { "idmap": { "enabled": true } },
            "netDevices": { "enabled": true },
        },
        "annotations": {
            "io.rvm.version": env!("CARGO_PKG_VERSION"),
            // By this name engines know that there are the verbs.
            "org.opencontainers.runc.checkpoint.enabled": "true",
        },
        // A container with these runs in the virtual machine of another.
        "potentiallyUnsafeConfigAnnotations": pod::annotations(),
    })
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

fn seccomp() -> Value {
    json!({
        "enabled": true,
        "actions": [
            "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
            "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
        ],
        "operators": [
            "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
            "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE",
        ],
        "archs": ["SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"],
        "knownFlags": [
            "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
            "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
        ],
        "supportedFlags": [
            "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
            "SECCOMP_FILTER_FLAG_LOG",
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{Capability, Features};
    use std::collections::BTreeSet;

    #[test]
    fn the_document_is_one_of_the_specification() {
        let read: Features = serde_json::from_value(features()).unwrap();
        assert_eq!(
            read.linux()
                .clone()
                .unwrap()
                .namespaces()
                .clone()
                .unwrap()
                .len(),
            8
        );
        for name in words(CAPABILITIES) {
            assert!(
                serde_json::from_value::<Capability>(name.into()).is_ok(),
                "{name}"
            );
        }
    }

    const CONFORMANCE: &str = include_str!("../../../docs/oci-conformance.md");

    fn schema(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    fn strings(list: &Value) -> BTreeSet<&str> {
        let list = list.as_array().unwrap();
        list.iter().map(|text| text.as_str().unwrap()).collect()
    }

    /// Where docs/oci-conformance.md says that a field is honoured.
    fn place(field: &str) -> &'static str {
        let row = |line: &&str| line.starts_with(&format!("| `{field}` | "));
        let row = CONFORMANCE.lines().find(row).unwrap();
        row.split(" | ").nth(1).unwrap()
    }

    #[test]
    fn the_document_has_what_the_schema_has_and_no_more() {
        let whole = schema(include_str!(
            "../../../tests/oci-schema/features-schema.json"
        ));
        let linux = schema(include_str!(
            "../../../tests/oci-schema/features-linux.json"
        ));
        let document = features();
        for (has, may) in [
            (&document, &whole["properties"]),
            (&document["linux"], &linux["linux"]["properties"]),
            (
                &document["linux"]["cgroup"],
                &linux["linux"]["properties"]["cgroup"]["properties"],
            ),
            (
                &document["linux"]["seccomp"],
                &linux["linux"]["properties"]["seccomp"]["properties"],
            ),
        ] {
            let keys = |value: &Value| -> BTreeSet<String> {
                value.as_object().unwrap().keys().cloned().collect()
            };
            assert_eq!(keys(has), keys(may));
        }
    }

    #[test]
    fn what_is_listed_is_the_schemas_without_what_is_refused_or_without_effect() {
        let defs = schema(include_str!("../../../tests/oci-schema/defs-linux.json"));
        let config = schema(include_str!("../../../tests/oci-schema/config-schema.json"));
        let listed = |name: &str| strings(&defs["definitions"][name]["enum"]);
        let document = features();
        let (linux, seccomp) = (&document["linux"], &document["linux"]["seccomp"]);
        assert_eq!(strings(&linux["namespaces"]), listed("NamespaceType"));
        assert_eq!(strings(&seccomp["operators"]), listed("SeccompOperators"));
        assert_eq!(strings(&seccomp["knownFlags"]), listed("SeccompFlag"));
        let policy = &linux["memoryPolicy"];
        assert_eq!(strings(&policy["modes"]), listed("MemoryPolicyMode"));
        assert_eq!(strings(&policy["flags"]), listed("MemoryPolicyFlag"));
        let missing = |name, has: &Value| -> Vec<String> {
            let all = listed(name);
            let missing = all.difference(&strings(has)).copied().collect::<Vec<_>>();
            missing.into_iter().map(str::to_owned).collect()
        };
        assert_eq!(
            missing("SeccompAction", &seccomp["actions"]),
            ["SCMP_ACT_NOTIFY"]
        );
        let passed_over = missing("SeccompFlag", &seccomp["supportedFlags"]);
        assert_eq!(passed_over, ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]);
        assert!(CONFORMANCE.contains("WAIT_KILLABLE_RECV is about notifications"));
        let hooks = config["properties"]["hooks"]["properties"]
            .as_object()
            .unwrap();
        let hooks: BTreeSet<&str> = hooks.keys().map(String::as_str).collect();
        assert_eq!(strings(&document["hooks"]), hooks);
    }

    #[test]
    fn what_is_enabled_is_what_the_table_of_fields_says_is_honoured() {
        let document = features();
        for (pointer, field) in [
            ("/linux/apparmor/enabled", "process.apparmorProfile"),
            ("/linux/selinux/enabled", "process.selinuxLabel"),
            ("/linux/intelRdt/enabled", "linux.intelRdt"),
            ("/linux/netDevices/enabled", "linux.netDevices"),
            ("/linux/cgroup/rdma", "linux.resources.rdma"),
            ("/linux/seccomp/enabled", "linux.seccomp"),
            (
                "/linux/mountExtensions/idmap/enabled",
                "mounts[].{uidMappings,gidMappings}",
            ),
        ] {
            let is_honoured = ["guest", "host", "both"].contains(&place(field));
            assert_eq!(
                document.pointer(pointer),
                Some(&is_honoured.into()),
                "{field}"
            );
        }
    }

    /// Every option in the agent's source, and its recursive form with an r before it if there is
    /// one.
    fn agents_options() -> BTreeSet<String> {
        let source = include_str!("../../../agent/src/container/mount_options.rs");
        let code = source.split("#[cfg(test)]").next().unwrap();
        let mut options = BTreeSet::new();
        for line in code.lines() {
            let Some((patterns, meaning)) = line.split_once("=>") else {
                continue;
            };
            // The names before the arrow, and those that opposite_flag() maps to.
            let names = patterns
                .split('"')
                .skip(1)
                .step_by(2)
                .filter(|name| !name.is_empty());
            for name in names {
                options.insert(name.to_owned());
                if ["Set(", "Clear(", "Atime("]
                    .iter()
                    .any(|kind| meaning.contains(kind))
                {
                    options.insert(format!("r{name}"));
                }
            }
        }
        options
    }

    #[test]
    fn the_mount_options_are_those_of_the_agent() {
        let listed = words(MOUNT_OPTIONS).into_iter().map(str::to_owned);
        let listed: BTreeSet<String> = listed.collect();
        assert_eq!(listed, agents_options());
    }
}
