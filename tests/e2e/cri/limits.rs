//! Limits of a container, its use, and its end by them.

use std::fs;

use rvm_tests::command;
use rvm_tests::cri::{Container, Cri, Pod, api};

use crate::{WAITS, machine};

#[test]
fn a_container_is_measured_limited_and_started_again() {
    let cri = Cri::new();
    let pod = cri.pod("life", |config| {
        let linux = config.linux.mut_or_insert_default();
        let together = linux.resources.mut_or_insert_default();
        together.memory_limit_in_bytes = 300 << 20;
        together.cpu_quota = 100_000;
        together.cpu_period = 100_000;
    });
    let box_ = pod.start("box", WAITS, limited);
    assert_limits_follow_updates(&box_);
    assert_memory_grows_where_it_can(&cri, &box_);
    assert_use_is_measured(&pod, &box_);
    box_.stop(10);
    let status = box_.ended();
    assert_eq!((status.exit_code, &*status.reason), (0, "Completed"));
    box_.remove();
    assert_others_start_by_the_same_name(&pod);
    pod.remove();
}

/// 64 MiB, and half a CPU.
fn limited(config: &mut api::ContainerConfig) {
    let linux = config.linux.mut_or_insert_default();
    let resources = linux.resources.mut_or_insert_default();
    resources.memory_limit_in_bytes = 64 << 20;
    resources.cpu_quota = 50_000;
    resources.cpu_period = 100_000;
}

fn assert_limits_follow_updates(box_: &Container<'_>) {
    // containerd requests a cgroup namespace only if the host has cgroup v2.
    let own = "/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)";
    let file = |name: &str| box_.shell(&format!("cat {own}/{name}"));
    assert_eq!(file("memory.max"), format!("{}\n", 64 << 20));
    assert_eq!(file("cpu.max"), "50000 100000\n");
    box_.update(|resources| {
        resources.memory_limit_in_bytes = 48 << 20;
        resources.cpu_quota = 25_000;
        resources.cpu_period = 100_000;
    });
    assert_eq!(file("memory.max"), format!("{}\n", 48 << 20));
    assert_eq!(file("cpu.max"), "25000 100000\n");

    // The machine is as large as the pod's containers may become together.
    let total = box_.shell(
        "busybox free -k | awk '/^Mem:/ { print $2 }'; nproc; \
         awk '/MemTotal/ { print $2 }' /proc/meminfo",
    );
    let total: Vec<u64> = total.lines().map(|line| line.parse().unwrap()).collect();
    assert!((280 << 10..360 << 10).contains(&total[0]), "{total:?} kB");
    assert_eq!(total[1..], [1, 48 << 10]);
    box_.update(|resources| {
        resources.cpu_quota = 150_000;
        resources.cpu_period = 100_000;
    });
    let most = std::thread::available_parallelism().unwrap().get();
    assert_eq!(box_.shell("nproc"), format!("{}\n", most.min(2)));
}

fn assert_use_is_measured(pod: &Pod<'_>, box_: &Container<'_>) {
    let stats = box_.stats();
    assert!(stats.memory.working_set_bytes.value > 100_000, "{stats:?}");
    assert!(stats.cpu.usage_core_nano_seconds.value > 0, "{stats:?}");
    let stats = pod.stats();
    assert!(
        stats.linux.memory.working_set_bytes.value > 100_000,
        "{stats:?}"
    );
    let interface = &stats.linux.network.default_interface;
    assert_eq!(interface.name, "eth0", "{stats:?}");
}

/// kubelet starts a container again by the same name.
fn assert_others_start_by_the_same_name(pod: &Pod<'_>) {
    let again = |attempt: u32, script: &str| {
        pod.start("box", script, |config| {
            config.metadata.mut_or_insert_default().attempt = attempt;
        })
    };
    let failed = again(1, "exit 9");
    let status = failed.ended();
    assert_eq!((status.exit_code, &*status.reason), (9, "Error"));
    let second = again(2, WAITS);
    assert_eq!(second.shell("echo alive"), "alive\n");
    failed.remove();
    let hungry = pod.start("hungry", "tail /dev/zero", |config| {
        limited(config);
    });
    let status = hungry.ended();
    assert_eq!((status.exit_code, &*status.reason), (137, "OOMKilled"));
}

/// A container's limit exceeds the memory of the pod's machine: rvm's own machine grows, QEMU's
/// cannot, and then nothing changes. On the host the machine is in the pod's cgroup, whose limits
/// are kubelet's.
fn assert_memory_grows_where_it_can(cri: &Cri, box_: &Container<'_>) {
    let own = "/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/memory.max";
    let seen = || -> Vec<u64> {
        let text = box_.shell(&format!(
            "cat {own}; busybox free -k | awk '/^Mem:/ {{ print $2 }}'"
        ));
        text.lines().map(|line| line.parse().unwrap()).collect()
    };
    let to = |mib: i64| box_.try_update(|resources| resources.memory_limit_in_bytes = mib << 20);
    let before = seen();
    let grown = to(500);
    if rvm_tests::engine() == "kvm" {
        grown.unwrap();
        let [limit, total] = seen()[..] else { panic!() };
        assert_eq!(limit, 500 << 20);
        assert!((460 << 10..580 << 10).contains(&total), "{total} kB");
        to(48).unwrap();
        assert_eq!(seen()[0], before[0]);
    } else {
        let message = grown.unwrap_err().message;
        assert!(message.contains("qemu engine"), "{message}");
        assert_eq!(seen(), before);
    }
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", machine(cri))).unwrap();
    let is_memorys = |line: &&str| line.contains(":memory:") || line.starts_with("0::");
    let group = groups.lines().find(is_memorys).unwrap();
    assert!(group.contains(&command::world().unwrap()), "{groups}");
}

/// Kubernetes's limits of a pod itself: kubelet gives them to each container without its own.
#[test]
fn limits_of_the_pod_bound_all_its_containers_together() {
    let cri = Cri::new();
    let limit = |resources: &mut api::LinuxContainerResources, mib: i64| {
        resources.memory_limit_in_bytes = mib << 20;
        resources.cpu_quota = 100_000;
        resources.cpu_period = 100_000;
    };
    let pod = cri.pod("whole", |config| {
        let linux = config.linux.mut_or_insert_default();
        limit(linux.resources.mut_or_insert_default(), 200);
    });
    let of_pod = |config: &mut api::ContainerConfig| {
        let linux = config.linux.mut_or_insert_default();
        limit(linux.resources.mut_or_insert_default(), 200);
    };
    let one = pod.start("one", WAITS, of_pod);
    let two = pod.start("two", WAITS, of_pod);
    let free = pod.start("free", WAITS, |_| {});
    for box_ in [&one, &two, &free] {
        assert_eq!(box_.shell("nproc"), "1\n");
        let total = box_.shell("busybox free -k | awk '/^Mem:/ { print $2 }'");
        let total: u64 = total.trim().parse().unwrap();
        assert!((190 << 10..270 << 10).contains(&total), "{total} kB");
    }
    let hungry = pod.start("hungry", "tail /dev/zero", |_| {});
    let status = hungry.ended();
    assert_eq!((status.exit_code, &*status.reason), (137, "OOMKilled"));
    for box_ in [&one, &two, &free] {
        assert_eq!(box_.shell("echo alive"), "alive\n");
    }
    // The pod is not asked to hold them together.
    for mib in [150, 200] {
        one.update(|resources| limit(resources, mib));
        two.update(|resources| limit(resources, mib));
        let own = "cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/memory.max";
        assert_eq!(two.shell(own), format!("{}\n", mib << 20));
    }
    pod.remove();
}
