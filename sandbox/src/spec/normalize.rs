//! Rewrites a configuration that oci-spec cannot parse.
//!
//! Engines name capabilities of newer kernels, which runc ignores with a warning. And oci-spec has
//! other names for a few values than the runtime specification.

use oci_spec::runtime::Capability;
use serde_json::Value;

/// Scheduler flags: the specification's names and oci-spec's.
const SCHEDULER_FLAGS: [(&str, &str); 2] = [
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

/// Normalizes a configuration or a process object. Returns the unknown capabilities that it
/// removed.
pub fn normalize(config: &mut Value) -> Vec<String> {
    let process = match config.get_mut("process") {
        Some(process) => process,
        None => config,
    };
    normalize_scheduler(process);
    normalize_affinity(process);
    remove_unknown_capabilities(process)
}

fn normalize_scheduler(process: &mut Value) {
    let flags = process.pointer_mut("/scheduler/flags");
    for flag in flags.and_then(Value::as_array_mut).into_iter().flatten() {
        let known = |(name, _): &&(&str, &str)| *flag == *name;
        if let Some((_, spelled)) = SCHEDULER_FLAGS.iter().find(known) {
            *flag = Value::from(*spelled);
        }
    }
}

/// The specification allows spaces in a list of CPUs, and an empty list; oci-spec does not.
fn normalize_affinity(process: &mut Value) {
    let affinity = process.get_mut("execCPUAffinity");
    if let Some(affinity) = affinity.and_then(Value::as_object_mut) {
        for list in affinity.values_mut() {
            if let Some(text) = list.as_str() {
                *list = text.replace(' ', "").into();
            }
        }
        affinity.retain(|_, list| *list != "");
    }
}

fn remove_unknown_capabilities(process: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    let sets = process.get_mut("capabilities");
    let sets = sets.and_then(Value::as_object_mut).into_iter().flatten();
    for names in sets.filter_map(|(_, set)| set.as_array_mut()) {
        names.retain(|name| {
            let is_known = serde_json::from_value::<Capability>(name.clone()).is_ok();
            if let (false, Some(name)) = (is_known, name.as_str()) {
                unknown.push(name.to_owned());
            }
            // Parsing reports a value that is not a string.
            is_known || !name.is_string()
        });
    }
    unknown.sort();
    unknown.dedup();
    unknown
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn capabilities_of_newer_kernels_are_left_out() {
        let mut config = json!({ "process": { "capabilities": {
            "bounding": ["CAP_KILL", "CAP_FLY"], "effective": ["CAP_FLY", "CAP_CHOWN"],
        } } });
        assert_eq!(normalize(&mut config), ["CAP_FLY"]);
        assert_eq!(
            config["process"]["capabilities"],
            json!({ "bounding": ["CAP_KILL"], "effective": ["CAP_CHOWN"] })
        );
    }

    #[test]
    fn every_name_of_the_specification_can_be_read_afterwards() {
        let flags = [
            "SCHED_FLAG_RESET_ON_FORK",
            "SCHED_FLAG_RECLAIM",
            "SCHED_FLAG_DL_OVERRUN",
            "SCHED_FLAG_KEEP_POLICY",
            "SCHED_FLAG_KEEP_PARAMS",
            "SCHED_FLAG_UTIL_CLAMP_MIN",
            "SCHED_FLAG_UTIL_CLAMP_MAX",
        ];
        let mut process = json!({
            "cwd": "/", "user": {}, "args": ["x"],
            "scheduler": { "policy": "SCHED_OTHER", "flags": flags },
            "execCPUAffinity": { "initial": "0-1, 3", "final": "" },
        });
        normalize(&mut process);
        let process: oci_spec::runtime::Process = serde_json::from_value(process).unwrap();
        let scheduler = process.scheduler().clone().unwrap();
        assert_eq!(scheduler.flags().clone().unwrap().len(), flags.len());
        let affinity = process.exec_cpu_affinity().clone().unwrap();
        assert_eq!(affinity.initial().as_deref(), Some("0-1,3"));
        assert_eq!(affinity.cpu_affinity_final(), &None);
    }
}
