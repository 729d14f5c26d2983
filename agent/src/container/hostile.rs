//! A config.json of the host's that holds anything: it is refused, or becomes a plan that the init
//! process reads as it was written.

use rvm_fuzz_input::{CONFIG, CONFIG_WORDS, Decisions, edited};

use super::{seccomp, spec};
use crate::cgroup;
use crate::disks::DeviceMap;
use crate::init::plan::{ContainerPlan, MountSource, Plan, Role};

/// Fields that the host applies, and takes out before it sends the rest to the guest.
const HOSTS: [&str; 2] = ["memoryPolicy", "netDevices"];

/// Translates a configuration of these bytes, or ours with edits that they decide on; then the same
/// as the process object of an exec.
pub fn configuration(input: &[u8]) {
    let mut decisions = Decisions(input);
    let json = match decisions.choose(2) {
        0 => decisions.0.to_vec(),
        _ => {
            let mut config: serde_json::Value = serde_json::from_str(CONFIG).unwrap();
            let linux = config["linux"].as_object_mut().unwrap();
            linux.retain(|name, _| !HOSTS.contains(&name.as_str()));
            config.as_object_mut().unwrap().remove("vm");
            config["process"]
                .as_object_mut()
                .unwrap()
                .remove("scheduler");
            edited(&config.to_string(), &CONFIG_WORDS, &mut decisions)
                .to_string()
                .into_bytes()
        }
    };
    let Ok(translated) = spec::translate("web", &json) else {
        return;
    };
    assert!((-1000..=1000).contains(&translated.oom_score_adj));
    check(&translated.container);
    if let Some(mut resources) = translated.resources {
        DeviceMap::of([((8, 0), (254, 0))]).translate(&mut resources);
        let _ = cgroup::translated(&resources);
    }
    let _ = translated.seccomp.map(|profile| seccomp::compile(&profile));
    let config: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let exec = serde_json::to_vec(&config["process"]).unwrap();
    let _ = spec::exec_process(&exec, &translated.process);
    let plan = Plan {
        role: Role::Create(Box::new(translated.container)),
        process: translated.process,
        extra: 0,
    };
    let written = serde_json::to_vec(&plan).unwrap();
    let read: Plan = serde_json::from_slice(&written).unwrap();
    assert_eq!(format!("{read:?}"), format!("{plan:?}"));
}

fn check(plan: &ContainerPlan) {
    for path in plan.sysctls.keys() {
        let is_name = |part: &str| !matches!(part, "" | "." | "..");
        assert!(path.split('/').all(is_name), "{path:?}");
    }
    for mount in &plan.mounts {
        assert!(!mount.destination.contains('\0'), "{mount:?}");
        if let MountSource::Filesystem { kind, data, .. } = &mount.source {
            assert!(!kind.contains('\0'), "{mount:?}");
            assert!(
                data.iter().all(|(name, _)| !name.contains('\0')),
                "{mount:?}"
            );
        }
    }
}
