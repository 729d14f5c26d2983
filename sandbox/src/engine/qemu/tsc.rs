//! The frequency of the host's time stamp counter, which the guests of a software CPU read as their
//! own.
//!
//! A guest that is not told it measures the counter against a PIT. That fails where the host is
//! busy, and then the guest's only clock is its tick of 4 ms, until it ends.

use std::arch::x86_64::{__cpuid, _rdtsc};
use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::engine::host_cache::{load, store};

/// The cache of a measured frequency.
const CACHE: &str = "/run/rvm/tsc.json";

/// How long a measurement takes. The two readings at its ends are good to some 50 ns, which is
/// three millionths of this.
const INTERVAL: Duration = Duration::from_millis(20);

/// Readings of counter and clock at each end of a measurement. The shortest one is used: no
/// interrupt came between.
const READINGS: u32 = 100;

/// A measurement with an error above 1/PRECISION is not used: the guest's clock would drift by 9 s
/// a day.
const PRECISION: u64 = 10_000;

/// A measured frequency, and the boot and CPU that it was measured on.
#[derive(Serialize, Deserialize)]
struct Measured {
    boot: String,
    /// The CPU's model: a virtual machine may be moved.
    cpu: u32,
    khz: u32,
}

/// The frequency in kHz, if CPUID states it or it can be measured. A measurement takes 20 ms and is
/// cached until the host boots again.
pub fn host_khz() -> Option<u32> {
    stated_by(cpuid_leaf).or_else(|| {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let [cpu, ..] = cpuid_leaf(1);
        match load::<Measured>(Path::new(CACHE)) {
            Some(known) if known.boot == boot && known.cpu == cpu => return Some(known.khz),
            _ => {}
        }
        let khz = measure()?;
        store(Path::new(CACHE), &Measured { boot, cpu, khz });
        Some(khz)
    })
}

/// A CPUID leaf: EAX, EBX, ECX, EDX.
type Leaf = [u32; 4];

fn cpuid_leaf(leaf: u32) -> Leaf {
    let found = __cpuid(leaf);
    [found.eax, found.ebx, found.ecx, found.edx]
}

/// The frequency that the CPU, or the hypervisor below the host, states. Leaf 0x15 is used on bare
/// metal alone: a virtual CPU may show that of the machine below, whose counter the hypervisor may
/// scale. Leaf 0x16 is not used: it rounds the CPU's frequency to MHz.
fn stated_by(cpuid: impl Fn(u32) -> Leaf) -> Option<u32> {
    const HYPERVISOR: u32 = 1 << 31;
    if cpuid(1)[2] & HYPERVISOR == 0 {
        return (cpuid(0)[0] >= 0x15).then(|| crystal_khz(cpuid(0x15)))?;
    }
    // VMware's "timing information", which QEMU has too (vmware-cpuid-freq). Other hypervisors use
    // the leaf for other things.
    let [last, signature @ ..] = cpuid(0x4000_0000);
    let known = [b"VMwareVMware", b"KVMKVMKVM\0\0\0"]
        .iter()
        .any(|name| signature.map(u32::to_le_bytes).concat() == name.as_slice());
    let khz = (known && last >= 0x4000_0010).then(|| cpuid(0x4000_0010)[0])?;
    (khz > 0).then_some(khz)
}

/// Leaf 0x15: the counter runs at ECX Hz × EBX ÷ EAX, where all three are given.
fn crystal_khz([denominator, numerator, crystal_hz, _]: Leaf) -> Option<u32> {
    let hz = u64::from(crystal_hz) * u64::from(numerator);
    let khz = hz.checked_div(u64::from(denominator))? / 1000;
    u32::try_from(khz).ok().filter(|khz| *khz > 0)
}

/// The counter and the clock, read together, and how many ticks that took.
struct Reading {
    ticks: u64,
    nanoseconds: u64,
    width: u64,
}

fn read_both() -> Option<Reading> {
    let reading = |_| {
        let before = ticks();
        // Raw: NTP slews the other clocks.
        let now = clock_gettime(ClockId::MonotonicRaw);
        let width = ticks().wrapping_sub(before);
        Reading {
            ticks: before.wrapping_add(width / 2),
            nanoseconds: (now.tv_sec.cast_unsigned() * 1_000_000_000)
                .wrapping_add(now.tv_nsec.cast_unsigned()),
            width,
        }
    };
    (0..READINGS).map(reading).min_by_key(|it| it.width)
}

#[expect(unsafe_code, reason = "rdtsc")]
fn ticks() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and it touches no memory.
    unsafe { _rdtsc() }
}

fn measure() -> Option<u32> {
    let first = read_both()?;
    std::thread::sleep(INTERVAL);
    let last = read_both()?;
    frequency(&first, &last)
}

fn frequency(first: &Reading, last: &Reading) -> Option<u32> {
    let ticks = last.ticks.checked_sub(first.ticks)?;
    let nanoseconds = last.nanoseconds.checked_sub(first.nanoseconds)?;
    let uncertain = (first.width + last.width) / 2;
    if ticks == 0 || uncertain > ticks / PRECISION {
        return None;
    }
    let nanoseconds = u128::from(nanoseconds.max(1));
    let khz = (u128::from(ticks) * 1_000_000 + nanoseconds / 2) / nanoseconds;
    u32::try_from(khz).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(leaves: &[(u32, Leaf)]) -> Option<u32> {
        stated_by(|leaf| {
            let found = leaves.iter().find(|(number, _)| *number == leaf);
            found.map_or([0; 4], |(_, values)| *values)
        })
    }

    fn signature(last: u32, name: &[u8; 12]) -> (u32, Leaf) {
        let word = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
        (0x4000_0000, [last, word(0), word(4), word(8)])
    }

    #[test]
    fn bare_metal_tells_its_crystal() {
        let intel = (0x15, [2, 216, 24_000_000, 0]);
        assert_eq!(cpu(&[(0, [0x16, 0, 0, 0]), intel]), Some(2_592_000));
        for partial in [
            [2, 216, 0, 0],
            [0, 216, 24_000_000, 0],
            [2, 0, 24_000_000, 0],
        ] {
            assert_eq!(cpu(&[(0, [0x16, 0, 0, 0]), (0x15, partial)]), None);
        }
        assert_eq!(cpu(&[(0, [0x10, 0, 0, 0]), intel]), None, "not that leaf");
    }

    #[test]
    fn a_virtual_cpu_is_believed_only_where_the_leaf_means_this() {
        let virtual_cpu = (1, [0, 0, 1 << 31, 0]);
        let timing = (0x4000_0010, [2_596_142, 1_000_000, 0, 0]);
        let told = |signature| cpu(&[virtual_cpu, signature, timing]);
        assert_eq!(
            told(signature(0x4000_0010, b"VMwareVMware")),
            Some(2_596_142)
        );
        assert_eq!(
            told(signature(0x4000_0010, b"KVMKVMKVM\0\0\0")),
            Some(2_596_142)
        );
        assert_eq!(told(signature(0x4000_0001, b"KVMKVMKVM\0\0\0")), None);
        assert_eq!(told(signature(0x4000_0010, b"Microsoft Hv")), None);
        let passed_through = (0x15, [2, 216, 24_000_000, 0]);
        assert_eq!(
            cpu(&[(0, [0x16, 0, 0, 0]), virtual_cpu, passed_through]),
            None
        );
    }

    #[test]
    fn two_measurements_agree() {
        // A host that is very busy gives none at all.
        if let (Some(one), Some(other)) = (measure(), measure()) {
            assert!(
                one.abs_diff(other) <= one / PRECISION as u32 * 2,
                "{one} {other}"
            );
        }
    }

    #[test]
    fn a_measurement_that_was_interrupted_is_not_used() {
        let reading = |ticks, nanoseconds, width| Reading {
            ticks,
            nanoseconds,
            width,
        };
        let first = reading(0, 0, 60);
        let last = |width| reading(50_000_000, 20_000_000, width);
        assert_eq!(frequency(&first, &last(60)), Some(2_500_000));
        assert_eq!(frequency(&first, &last(100_000)), None);
        assert_eq!(frequency(&first, &reading(0, 0, 60)), None);
    }
}
