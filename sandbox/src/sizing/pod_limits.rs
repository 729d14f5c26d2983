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
///
/// Limits of the pod itself (`spec.resources` of Kubernetes) may be less than those of its
/// containers together: kubelet then gives the pod's limit to each container that has none of its
/// own.
pub fn updated(announced: Option<&LinuxResources>, containers: &[Limits]) -> LinuxResources {
    let first: Vec<Sizes> = containers.iter().map(|one| Sizes::of(&one.first)).collect();
    let now: Vec<Sizes> = containers.iter().map(|one| Sizes::of(&one.now)).collect();
    let announced = announced.map(Sizes::of).unwrap_or_default();
    let left = |size: fn(&Sizes) -> Option<i64>| {
        let first: Vec<Option<i64>> = first.iter().map(size).collect();
        let now: Vec<Option<i64>> = now.iter().map(size).collect();
        left(size(&announced), &first, &now)
    };
    whole(left(|sizes| sizes.bytes), left(|sizes| sizes.quota))
}

/// What is left of an announced limit, from those that the containers had at first and have now.
fn left(announced: Option<i64>, first: &[Option<i64>], now: &[Option<i64>]) -> Option<i64> {
    let largest = |all: &[Option<i64>]| all.iter().copied().flatten().max().unwrap_or(0);
    let now_together = together(now);
    let Some(announced) = announced else {
        return now_together;
    };
    Some(match (together(first), now_together) {
        // Containers without a limit may use what the pod has.
        (_, None) => announced,
        (None, Some(together)) => together.max(announced),
        // A container that got the pod's limit gets each new one, too.
        (Some(before), _) if before > announced && largest(first) >= announced => largest(now),
        (Some(before), _) if before > announced => announced.max(largest(now)),
        (Some(before), Some(together)) => {
            let rest = announced.saturating_sub(before);
            together.max(announced.min(rest.saturating_add(together)))
        }
    })
}

/// The limits that a machine's size depends on: bytes, and microseconds for each [`PERIOD`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sizes {
    bytes: Option<i64>,
    quota: Option<i64>,
}

impl Sizes {
    fn of(resources: &LinuxResources) -> Self {
        let memory = resources.memory().as_ref();
        let bytes = memory.and_then(|memory| memory.limit());
        let quota = resources.cpu().as_ref().and_then(|cpu| {
            let own = u128::try_from(cpu.quota()?)
                .ok()
                .filter(|quota| *quota > 0)?;
            let period = cpu.period().filter(|period| *period > 0).unwrap_or(PERIOD);
            i64::try_from((own * u128::from(PERIOD)).div_ceil(period.into())).ok()
        });
        Self {
            bytes: bytes.filter(|limit| limit_mib(*limit).is_some()),
            quota,
        }
    }
}

/// The sum of limits; none if one of them is none.
fn together(all: &[Option<i64>]) -> Option<i64> {
    all.iter()
        .copied()
        .try_fold(0_i64, |sum, one| Some(sum.saturating_add(one?)))
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
    fn limits_of_the_pod_itself_are_not_those_of_its_containers_together() {
        let limits = |mib: i64| -> LinuxResources {
            let (memory, cpu) = (
                json!({ "limit": mib << 20 }),
                json!({ "quota": mib * 1000 }),
            );
            serde_json::from_value(json!({ "memory": memory, "cpu": cpu })).unwrap()
        };
        let after = |containers: &[(i64, i64)]| {
            let of = |(first, now): &(i64, i64)| Limits {
                first: limits(*first),
                now: limits(*now),
            };
            let all: Vec<Limits> = containers.iter().map(of).collect();
            let left = Sizes::of(&updated(Some(&limits(300)), &all));
            assert_eq!(
                left.quota.map(|quota| quota / 1000),
                left.bytes.map(|bytes| bytes >> 20)
            );
            left.quota.map(|quota| quota / 1000)
        };
        // Two containers that have the pod's limit, and follow it.
        assert_eq!(after(&[(300, 300), (300, 300)]), Some(300));
        assert_eq!(after(&[(300, 400), (300, 400), (100, 100)]), Some(400));
        assert_eq!(after(&[(300, 200), (300, 200)]), Some(200));
        // Limits of their own that are more together than the pod's.
        assert_eq!(after(&[(200, 200), (200, 250)]), Some(300));
        assert_eq!(after(&[(200, 200), (200, 100)]), Some(300));
        assert_eq!(after(&[(200, 200), (200, 350)]), Some(350));
    }

    #[test]
    fn the_limits_of_a_pod_are_the_sum_of_its_containers() {
        let limits = |value| serde_json::from_value::<LinuxResources>(value).unwrap();
        let sum = |all: &[&LinuxResources]| {
            let limits = |one: &&LinuxResources| Limits {
                first: (*one).clone(),
                now: (*one).clone(),
            };
            let sum = updated(None, &all.iter().map(limits).collect::<Vec<_>>());
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
