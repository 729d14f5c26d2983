//! The NUMA memory policy of a machine: `linux.memoryPolicy`. The nodes are the host's, so the
//! policy is that of the processes whose memory the guest has.

use std::io;

use oci_spec::runtime::{LinuxMemoryPolicy, MemoryPolicyFlagType, MemoryPolicyModeType};
use rvm_sys::cpu_list::CpuList;
use rvm_sys::mempolicy::{MAX_NODES, Policy, mode};

/// A policy for the memory of processes that this one starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPolicy(Policy);

impl MemoryPolicy {
    /// Fails with the member that is wrong, and the reason.
    pub fn of(policy: &LinuxMemoryPolicy) -> Result<Self, (&'static str, String)> {
        let number = mode_number(policy.mode());
        let list = policy.nodes().as_deref().map(str::trim).unwrap_or_default();
        let takes_nodes = ![mode::DEFAULT, mode::LOCAL].contains(&number);
        match (takes_nodes, list.is_empty()) {
            (true, true) if number != mode::PREFERRED => {
                return Err((
                    "nodes",
                    format!("is missing, which {} needs", policy.mode()),
                ));
            }
            (false, false) => {
                return Err((
                    "nodes",
                    format!("is there, which {} excludes", policy.mode()),
                ));
            }
            _ => {}
        }
        let nodes = match list {
            "" => Vec::new(),
            list => CpuList::parse(list)
                .and_then(|list| list.cpus_up_to(MAX_NODES - 1))
                .ok_or_else(|| ("nodes", format!("is no list of memory nodes: {list:?}")))?,
        };
        let flags = policy.flags().iter().flatten().map(|flag| flag_bit(*flag));
        let policy = Policy::new(flags.fold(number, |mode, flag| mode | flag), nodes);
        let policy = policy.ok_or_else(|| ("nodes", "has too high a node".to_owned()))?;
        Ok(Self(policy))
    }

    /// Calls `work`, which starts processes, with the policy as that of the calling thread. Fails
    /// if the kernel does not take it: then `work` is not called.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        let before = Policy::current()?;
        self.0.apply()?;
        let done = work();
        before.apply()?;
        Ok(done)
    }
}

fn mode_number(name: MemoryPolicyModeType) -> i32 {
    match name {
        MemoryPolicyModeType::MpolDefault => mode::DEFAULT,
        MemoryPolicyModeType::MpolBind => mode::BIND,
        MemoryPolicyModeType::MpolInterleave => mode::INTERLEAVE,
        MemoryPolicyModeType::MpolWeightedInterleave => mode::WEIGHTED_INTERLEAVE,
        MemoryPolicyModeType::MpolPreferred => mode::PREFERRED,
        MemoryPolicyModeType::MpolPreferredMany => mode::PREFERRED_MANY,
        MemoryPolicyModeType::MpolLocal => mode::LOCAL,
    }
}

fn flag_bit(flag: MemoryPolicyFlagType) -> i32 {
    match flag {
        MemoryPolicyFlagType::MpolFNumaBalancing => mode::NUMA_BALANCING,
        MemoryPolicyFlagType::MpolFRelativeNodes => mode::RELATIVE_NODES,
        MemoryPolicyFlagType::MpolFStaticNodes => mode::STATIC_NODES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parsed(policy: Value) -> Result<MemoryPolicy, (&'static str, String)> {
        MemoryPolicy::of(&serde_json::from_value(policy).unwrap())
    }

    #[test]
    fn modes_flags_and_nodes_are_the_kernels() {
        let policy = json!({ "mode": "MPOL_INTERLEAVE", "nodes": "0-1,3",
                             "flags": ["MPOL_F_STATIC_NODES"] });
        let mode = mode::INTERLEAVE | mode::STATIC_NODES;
        let expected = Policy::new(mode, [0, 1, 3]).unwrap();
        assert_eq!(parsed(policy).unwrap().0, expected);
        assert_eq!(
            parsed(json!({ "mode": "MPOL_LOCAL" })).unwrap().0,
            Policy::new(4, []).unwrap()
        );
    }

    #[test]
    fn nodes_are_there_where_the_mode_needs_them() {
        for (policy, reason) in [
            (json!({ "mode": "MPOL_BIND" }), "is missing"),
            (json!({ "mode": "MPOL_DEFAULT", "nodes": "0" }), "excludes"),
            (
                json!({ "mode": "MPOL_BIND", "nodes": "0-9999999" }),
                "no list",
            ),
            (json!({ "mode": "MPOL_BIND", "nodes": "x" }), "no list"),
        ] {
            let (member, found) = parsed(policy).unwrap_err();
            assert!(member == "nodes" && found.contains(reason), "{found}");
        }
    }

    #[test]
    fn a_process_has_the_policy_and_this_one_has_its_own_again() {
        let policy = parsed(json!({ "mode": "MPOL_BIND", "nodes": "0" })).unwrap();
        let before = Policy::current().unwrap();
        let maps = || {
            std::process::Command::new("cat")
                .arg("/proc/self/numa_maps")
                .output()
        };
        let output = policy.during(maps).unwrap().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.stdout.is_empty() || text.contains(" bind:0 "),
            "{text}"
        );
        assert_eq!(Policy::current().unwrap(), before);
    }
}
