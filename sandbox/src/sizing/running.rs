//! The new size of a running machine after a change of a container's limits. Pure.

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use super::{Bounds, Size, SizeError, bounded, machine_mib, memory_limit, vcpu_limit};
use crate::config::EngineKind;

/// A change of a container's limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    old: LinuxResources,
    new: LinuxResources,
    shared: bool,
}

impl Change {
    /// From a container's old limits to its new ones, or from a pod's. A machine that is `shared`
    /// by containers which may not all exist yet does not become smaller than it was at its start.
    pub fn new(old: &LinuxResources, new: &LinuxResources, shared: bool) -> Self {
        Self {
            old: sizing(old),
            new: sizing(new),
            shared,
        }
    }
}

/// Only the limits that a machine's size depends on.
fn sizing(resources: &LinuxResources) -> LinuxResources {
    let mut sizing = LinuxResources::default();
    sizing.set_devices(None);
    sizing.set_cpu(resources.cpu().clone());
    sizing.set_memory(*resources.memory());
    sizing
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    pub engine: EngineKind,
    pub start: Size,
    pub now: Size,
    /// The largest size that it can be resized to.
    pub max: Size,
}

impl Running {
    /// The machine's size for changed limits. A container whose limit was lifted gets the default
    /// for containers without a limit, up to the maximum, and never less than the current size.
    pub fn size_for(&self, change: &Change, bounds: &Bounds) -> Result<Size, SizeError> {
        let (old, new) = (Some(&change.old), Some(&change.new));
        let vcpus = match vcpu_limit(new)? {
            same if same == vcpu_limit(old)? => self.now.vcpus,
            Some(count) => bounded(count, bounds),
            None => bounded(bounds.default_vcpus, bounds)
                .max(self.now.vcpus)
                .min(self.max.vcpus),
        };
        let memory_mib = match memory_limit(new)? {
            same if same == memory_limit(old)? => self.now.memory_mib,
            Some(mib) => machine_mib(mib),
            None => machine_mib(bounds.default_memory_mib)
                .max(self.now.memory_mib)
                .min(self.max.memory_mib),
        };
        let wanted = Size { vcpus, memory_mib };
        let wanted = match change.shared {
            true => wanted.at_least(self.start),
            false => wanted,
        };
        self.check(wanted)
    }

    fn check(&self, wanted: Size) -> Result<Size, SizeError> {
        if wanted.vcpus > self.max.vcpus {
            return Err(SizeError::NoRoomForVcpus {
                wanted: wanted.vcpus,
                max: self.max.vcpus,
            });
        }
        if wanted.memory_mib > self.max.memory_mib {
            return Err(SizeError::NoRoomForMemory {
                engine: self.engine,
                wanted: wanted.memory_mib,
                max: self.max.memory_mib,
            });
        }
        Ok(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{BOUNDS, cpu, memory};
    use super::*;

    const START: Size = Size {
        vcpus: 1,
        memory_mib: 308,
    };

    /// One vCPU and 256 MiB for the container, at most four vCPUs and 4 GiB.
    const RUNNING: Running = Running {
        engine: EngineKind::Kvm,
        start: START,
        now: START,
        max: Size {
            vcpus: 4,
            memory_mib: 4096,
        },
    };

    fn change(new: LinuxResources) -> Change {
        Change {
            old: LinuxResources::default(),
            new,
            shared: false,
        }
    }

    #[test]
    fn a_running_machine_follows_the_limits_up_and_down() {
        for (mib, machine) in [(128, 188), (1024, 1112)] {
            let change = change(memory(mib << 20));
            let size = RUNNING.size_for(&change, &BOUNDS).unwrap();
            assert_eq!(size.memory_mib, machine);
        }
        let change = change(cpu(Some(300_000), None, ""));
        let size = RUNNING.size_for(&change, &BOUNDS).unwrap();
        assert_eq!((size.vcpus, size.memory_mib), (3, RUNNING.now.memory_mib));
    }

    #[test]
    fn lifting_a_limit_never_takes_anything_away() {
        let large = Running {
            now: RUNNING.max,
            ..RUNNING
        };
        let lifted = Change {
            old: memory(2 << 30),
            ..change(memory(-1))
        };
        assert_eq!(large.size_for(&lifted, &BOUNDS).unwrap(), large.now);
    }

    #[test]
    fn an_unchanged_limit_has_no_effect() {
        let more_than_there_is = || memory(8 << 30);
        let mut new = more_than_there_is();
        new.set_cpu(cpu(Some(200_000), None, "").cpu().clone());
        let change = Change {
            old: more_than_there_is(),
            ..change(new)
        };
        let size = RUNNING.size_for(&change, &BOUNDS).unwrap();
        assert_eq!((size.vcpus, size.memory_mib), (2, RUNNING.now.memory_mib));
    }

    #[test]
    fn a_shared_machine_gives_back_what_it_has_got_since_its_start() {
        let shared = Change {
            shared: true,
            ..change(memory(64 << 20))
        };
        let grown = Running {
            now: RUNNING.max,
            ..RUNNING
        };
        for running in [RUNNING, grown] {
            let size = running.size_for(&shared, &BOUNDS).unwrap();
            assert_eq!(size.memory_mib, START.memory_mib);
        }
    }

    #[test]
    fn a_size_above_the_maximum_is_refused_by_name() {
        let refused = |limits| {
            let refused = RUNNING.size_for(&change(limits), &BOUNDS);
            refused.unwrap_err().to_string()
        };
        let cpus = refused(cpu(Some(600_000), None, ""));
        assert!(cpus.contains("max_vcpus") && cpus.contains('6'), "{cpus}");
        let memory = refused(memory(8 << 30));
        let names = ["linux.resources.memory.limit", "kvm engine", "4096 MiB"];
        assert!(names.iter().all(|name| memory.contains(name)), "{memory}");
    }

    #[test]
    fn the_maximum_is_never_less_than_the_start() {
        let start = Size {
            vcpus: 6,
            memory_mib: 8192,
        };
        assert_eq!(start.with_room(&BOUNDS, 4096), start);
        let small = RUNNING.now.with_room(&BOUNDS, 4096);
        assert_eq!(small, RUNNING.max);
    }
}
