//! The guest's CPUID: KVM's supported features, with the topology of this machine.
//!
//! KVM's list describes the CPU that happened to run the query, so every leaf that identifies a CPU
//! or counts CPUs is rewritten: one package, one thread per core, as many cores as virtual CPUs.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 1: ECX bit 24, the TSC deadline timer, which KVM emulates but does not list.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1: ECX bit 31, a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1: EDX bit 28, EBX 23:16 counts logical processors.
const HTT: u32 = 1 << 28;

/// The CPUID of vCPU `id` in a machine of `count` vCPUs.
pub fn for_vcpu(supported: &CpuId, id: u8, count: u8) -> CpuId {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        adjust(entry, id, count);
    }
    // Leaf 0x1f overrides leaf 0xb and would need the same adjustment; one of them is enough.
    cpuid.retain(|entry| entry.function != 0x1f);
    cpuid
}

/// The width of a guest-physical address in bits (leaf 0x80000008, EAX 7:0).
pub fn address_bits(supported: &CpuId) -> u8 {
    // Every 64-bit CPU has at least this many.
    const LEAST: u8 = 36;
    let mut entries = supported.as_slice().iter();
    let sizes = entries.find(|entry| entry.function == 0x8000_0008);
    sizes.map_or(LEAST, |entry| (entry.eax as u8).max(LEAST))
}

fn adjust(entry: &mut kvm_cpuid_entry2, id: u8, count: u8) {
    let (id, count) = (u32::from(id), u32::from(count));
    match entry.function {
        0x1 => {
            entry.ebx = entry.ebx & 0xffff | count << 16 | id << 24;
            entry.ecx |= TSC_DEADLINE | HYPERVISOR;
            entry.edx = if count > 1 {
                entry.edx | HTT
            } else {
                entry.edx & !HTT
            };
        }
        // Deterministic cache parameters: EAX 25:14 is the number of CPUs that share a cache, 31:26
        // the number of cores, both minus one. All CPUs share the last level.
        0x4 if entry.eax & 0x1f != 0 => {
            let sharing = cache_sharing(entry.eax, count);
            entry.eax = entry.eax & 0x3fff | sharing << 14 | (count - 1).min(63) << 26;
        }
        0xb => topology_level(entry, id, count),
        // Size identifiers: ECX 7:0 is the number of cores minus one, 15:12 the number of APIC id
        // bits that distinguish them.
        0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | core_bits(count) << 12 | (count - 1),
        // AMD's cache properties, as leaf 4.
        0x8000_001d if entry.eax & 0x1f != 0 => {
            entry.eax = entry.eax & 0x3fff | cache_sharing(entry.eax, count) << 14;
        }
        // AMD's extended APIC id, one thread per core, one node per package.
        0x8000_001e => {
            entry.eax = id;
            entry.ebx = id;
            entry.ecx = 0;
        }
        _ => {}
    }
}

/// The number of CPUs that share a cache, minus one. EAX 7:5 is the cache's level.
fn cache_sharing(eax: u32, count: u32) -> u32 {
    match eax >> 5 & 7 {
        3.. => count - 1,
        _ => 0,
    }
}

/// Extended topology enumeration (leaf 0xb): level 0 is threads of a core, level 1 cores of a
/// package.
fn topology_level(entry: &mut kvm_cpuid_entry2, id: u32, count: u32) {
    const THREADS: u32 = 1;
    const CORES: u32 = 2;
    entry.flags |= KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    entry.edx = id;
    (entry.eax, entry.ebx, entry.ecx) = match entry.index {
        0 => (0, 1, THREADS << 8),
        1 => (core_bits(count), count, CORES << 8 | 1),
        index => (0, 0, index),
    };
}

/// The number of APIC id bits that distinguish `count` cores.
fn core_bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: 0x121,
            ..Default::default()
        }
    }

    fn adjusted(id: u8, count: u8) -> Vec<kvm_cpuid_entry2> {
        let list = [
            entry(1, 0),
            entry(4, 0),
            entry(0xb, 0),
            entry(0xb, 1),
            entry(0x1f, 0),
        ];
        for_vcpu(&CpuId::from_entries(&list).unwrap(), id, count)
            .as_slice()
            .to_vec()
    }

    #[test]
    fn every_cpu_has_its_own_apic_id() {
        for id in [0, 1, 3] {
            let list = adjusted(id, 4);
            assert_eq!(list[0].ebx >> 24, u32::from(id));
            assert_eq!(list[2].edx, u32::from(id));
        }
    }

    #[test]
    fn cores_are_counted_alike_in_every_leaf() {
        let list = adjusted(0, 6);
        assert_eq!(list[0].ebx >> 16 & 0xff, 6);
        assert_eq!(list[3].ebx, 6);
        assert_eq!(list[3].eax, 3, "six cores need three bits");
        assert_eq!(list[1].eax >> 26, 5);
    }

    #[test]
    fn one_cpu_is_not_called_hyperthreaded() {
        assert_eq!(adjusted(0, 1)[0].edx & HTT, 0);
        assert_ne!(adjusted(0, 2)[0].edx & HTT, 0);
    }

    #[test]
    fn the_overriding_topology_leaf_is_gone() {
        assert!(adjusted(0, 2).iter().all(|entry| entry.function != 0x1f));
    }
}
