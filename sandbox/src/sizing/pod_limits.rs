//! The limits of a pod as a whole, which determine the size of its machine. Pure.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};
use serde::Deserialize;

use crate::sizing::{SizeError, limit_mib};

/// containerd's annotations for a pod's limits: bytes and microseconds.
const POD_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const POD_CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const POD_CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";

/// CRI-O's annotation, by its newer and its older name: CRI's message as JSON, or `null`.
const POD_RESOURCES: [&str; 2] = [
    "pod-linux-resources.crio.io",
    "io.kubernetes.cri-o.PodLinuxResources",
];

/// The kernel's default period of a quota, in microseconds.
const PERIOD: u64 = 100_000;

/// The keys of all annotations with limits.
pub const ANNOTATIONS: [&str; 5] = [
    POD_MEMORY,
    POD_CPU_QUOTA,
    POD_CPU_PERIOD,
    POD_RESOURCES[0],
    POD_RESOURCES[1],
];

/// A part of CRI's `LinuxContainerResources`: bytes and microseconds.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PodResources {
    memory_limit_in_bytes: i64,
    cpu_quota: i64,
    cpu_period: i64,
}

/// The limits of a pod from the annotations of its first container, which containerd or CRI-O sets
/// if kubelet knows the limits beforehand. 0 means no limit.
pub fn annotated(
    annotations: &HashMap<String, String>,
) -> Result<Option<LinuxResources>, SizeError> {
    let crio = POD_RESOURCES
        .iter()
        .find_map(|key| Some((*key, annotations.get(*key)?)));
    let PodResources {
        memory_limit_in_bytes: bytes,
        cpu_quota: quota,
        cpu_period: period,
    } = match crio {
        Some((key, text)) => serde_json::from_str::<Option<PodResources>>(text)
            .map_err(|_| SizeError::Resources(key, text.clone()))?
            .unwrap_or_default(),
        None => by_containerd(annotations)?,
    };
    if bytes <= 0 && quota <= 0 {
        return Ok(None);
    }
    let period = u64::try_from(period).unwrap_or(0);
    let (mut memory, mut cpu) = (LinuxMemory::default(), LinuxCpu::default());
    memory.set_limit(Some(bytes));
    cpu.set_quota(Some(quota)).set_period(Some(period));
    let mut resources = LinuxResources::default();
    resources.set_memory(Some(memory)).set_cpu(Some(cpu));
    Ok(Some(resources))
}

fn by_containerd(annotations: &HashMap<String, String>) -> Result<PodResources, SizeError> {
    let number = |key: &'static str| match annotations.get(key) {
        None => Ok(0),
        Some(text) => text
            .trim()
            .parse::<i64>()
            .map_err(|_| SizeError::Annotation(key, text.clone())),
    };
    Ok(PodResources {
        memory_limit_in_bytes: number(POD_MEMORY)?,
        cpu_quota: number(POD_CPU_QUOTA)?,
        cpu_period: number(POD_CPU_PERIOD)?,
    })
}

/// A container's limits.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Those that it was created with.
    pub first: LinuxResources,
    /// Those that hold now.
    pub now: LinuxResources,
}

/// The limits of a pod as they are after updates of its containers, from those that were announced
/// before its first one. Those include containers that do not exist yet, so the pod has the less
/// that updates have taken away, and more only if its containers need it.
pub fn updated(announced: Option<&LinuxResources>, containers: &[Limits]) -> LinuxResources {
    let now = sum(containers.iter().map(|container| &container.now));
    let Some(announced) = announced else {
        return now;
    };
    let announced = sum([announced].into_iter());
    let first = sum(containers.iter().map(|container| &container.first));
    let memory = |of: &LinuxResources| of.memory().as_ref().and_then(|memory| memory.limit());
    let quota = |of: &LinuxResources| of.cpu().as_ref().and_then(|cpu| cpu.quota());
    let left = |of: &dyn Fn(&LinuxResources) -> Option<i64>| {
        let Some(announced) = of(&announced) else {
            return of(&now);
        };
        Some(match (of(&first), of(&now)) {
            // Containers without a limit may use what the pod has.
            (_, None) => announced,
            (None, Some(now)) => now.max(announced),
            (Some(first), Some(now)) => {
                let rest = announced.saturating_sub(first);
                now.max(announced.min(rest.saturating_add(now)))
            }
        })
    };
    whole(left(&memory), left(&quota))
}

/// The sum of the limits of a machine's containers; no limit if one of them has none.
pub fn sum<'a>(all: impl Iterator<Item = &'a LinuxResources>) -> LinuxResources {
    let (mut bytes, mut quota) = (Some(0_i64), Some(0_i64));
    for one in all {
        let memory = one.memory().as_ref().and_then(|memory| memory.limit());
        let memory = memory.filter(|limit| limit_mib(*limit).is_some());
        bytes = bytes
            .zip(memory)
            .map(|(sum, limit)| sum.saturating_add(limit));
        let cpu = one.cpu().as_ref();
        let share = cpu.and_then(|cpu| {
            let own = u128::try_from(cpu.quota()?)
                .ok()
                .filter(|quota| *quota > 0)?;
            let period = cpu.period().filter(|period| *period > 0).unwrap_or(PERIOD);
            i64::try_from((own * u128::from(PERIOD)).div_ceil(period.into())).ok()
        });
        quota = quota
            .zip(share)
            .map(|(sum, share)| sum.saturating_add(share));
    }
    whole(bytes, quota)
}

/// Limits in bytes, and in microseconds for each [`PERIOD`].
fn whole(bytes: Option<i64>, quota: Option<i64>) -> LinuxResources {
    let (mut memory, mut cpu) = (LinuxMemory::default(), LinuxCpu::default());
    memory.set_limit(bytes);
    cpu.set_quota(quota).set_period(Some(PERIOD));
    let mut resources = LinuxResources::default();
    resources.set_memory(Some(memory)).set_cpu(Some(cpu));
    resources
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn annotations_have_the_limits_of_a_pod() {
        let limits = |list: &[(&'static str, &str)]| {
            let annotations = list
                .iter()
                .map(|(key, text)| ((*key).into(), (*text).into()));
            annotated(&annotations.collect())
        };
        let both = limits(&[
            (POD_MEMORY, "268435456"),
            (POD_CPU_QUOTA, "350000"),
            (POD_CPU_PERIOD, "100000"),
        ]);
        let both = serde_json::to_value(both.unwrap().unwrap()).unwrap();
        assert_eq!(both["memory"]["limit"], 256 << 20);
        assert_eq!(both["cpu"], json!({ "quota": 350_000, "period": 100_000 }));
        assert_eq!(limits(&[(POD_MEMORY, "0"), (POD_CPU_QUOTA, "0")]), Ok(None));
        assert!(limits(&[(POD_MEMORY, "much")]).is_err());
        for key in POD_RESOURCES {
            let text = r#"{"cpu_period":100000,"cpu_quota":350000,"cpu_shares":102,
                "memory_limit_in_bytes":268435456,"oom_score_adj":3,"unified":{"a":"b"}}"#;
            let of_crio = limits(&[(key, text)]).unwrap().unwrap();
            assert_eq!(serde_json::to_value(of_crio).unwrap(), both);
            assert_eq!(limits(&[(key, "{}")]), Ok(None));
            assert_eq!(limits(&[(key, "null")]), Ok(None));
            let error = limits(&[(key, "wrong")]).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("wrong"), "{error}");
        }
    }

    #[test]
    fn a_pod_shrinks_and_grows_again_with_its_containers() {
        let limits = |mib: i64, quota: i64| -> LinuxResources {
            let memory = json!({ "limit": mib << 20 });
            let cpu = json!({ "quota": quota });
            serde_json::from_value(json!({ "memory": memory, "cpu": cpu })).unwrap()
        };
        let announced = limits(300, 200_000);
        let after = |announced, now: LinuxResources| {
            let first = limits(200, 100_000);
            let left = updated(announced, &[Limits { first, now }]);
            let memory = left.memory().and_then(|memory| memory.limit());
            let quota = left.cpu().as_ref().and_then(LinuxCpu::quota);
            (memory.map(|bytes| bytes >> 20), quota)
        };
        let with = Some(&announced);
        assert_eq!(
            after(with, limits(200, 100_000)),
            (Some(300), Some(200_000))
        );
        assert_eq!(after(with, limits(150, 50_000)), (Some(250), Some(150_000)));
        assert_eq!(
            after(with, limits(250, 150_000)),
            (Some(300), Some(200_000))
        );
        assert_eq!(
            after(with, limits(400, 300_000)),
            (Some(400), Some(300_000))
        );
        assert_eq!(after(with, limits(-1, -1)), (Some(300), Some(200_000)));
        assert_eq!(after(None, limits(150, 50_000)), (Some(150), Some(50_000)));
        let only_memory = limits(300, 0);
        let result = after(Some(&only_memory), limits(150, 50_000));
        assert_eq!(result, (Some(250), Some(50_000)));
    }

    #[test]
    fn the_limits_of_a_pod_are_the_sum_of_its_containers() {
        let limits = |value| serde_json::from_value::<LinuxResources>(value).unwrap();
        let sum = |all: &[&LinuxResources]| {
            let sum = sum(all.iter().copied());
            let memory = sum.memory().and_then(|memory| memory.limit());
            (memory, sum.cpu().as_ref().and_then(LinuxCpu::quota))
        };
        let one = limits(json!({ "memory": { "limit": 64 },
                                 "cpu": { "quota": 50_000, "period": 100_000 } }));
        let two = limits(json!({ "memory": { "limit": 128 },
                                 "cpu": { "quota": 25_000, "period": 10_000 } }));
        assert_eq!(sum(&[&one, &two]), (Some(192), Some(300_000)));
        let unlimited = limits(json!({ "memory": { "limit": -1 } }));
        assert_eq!(sum(&[&one, &unlimited]), (None, None));
        let most = limits(json!({ "memory": { "limit": 1_i64 << 58 },
                                  "cpu": { "quota": i64::MAX, "period": 1 } }));
        assert_eq!(sum(&[&most; 64]).1, None);
    }
}
