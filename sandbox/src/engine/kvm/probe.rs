//! Whether the host's KVM can run kernels: rvm-vmm tries it, and the result is cached until the
//! next boot.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rvm_protocol::vmm::ProbeReport;
use serde::{Deserialize, Serialize};

use crate::engine::Verdict;
use crate::engine::host_cache::{load, store};

/// Where the result is remembered.
pub const CACHE: &str = "/run/rvm/probe.json";

/// A result, and what it depends on.
#[derive(Serialize, Deserialize)]
struct Cached {
    /// The device's number and its inode: it may be another one in another container.
    kvm: Option<(u64, u64)>,
    /// The program that probed.
    vmm: PathBuf,
    /// When that program was built.
    vmm_mtime: i64,
    report: ProbeReport,
}

/// The remembered result, or a fresh one, which is remembered.
pub fn cached(vmm: &Path) -> ProbeReport {
    let key = (kvm_identity(), modified(vmm));
    if let Some(cached) = load::<Cached>(Path::new(CACHE))
        && (cached.kvm, cached.vmm_mtime) == key
        && cached.vmm == vmm
    {
        return cached.report;
    }
    let report = run(vmm);
    let cached = Cached {
        kvm: key.0,
        vmm: vmm.to_owned(),
        vmm_mtime: key.1,
        report: report.clone(),
    };
    store(Path::new(CACHE), &cached);
    report
}

/// Probes.
pub fn run(vmm: &Path) -> ProbeReport {
    let unavailable = |reason: String| ProbeReport::Unavailable { reason };
    // Half of what there is to know needs no machine.
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/kvm") {
        return unavailable(match error.kind() {
            io::ErrorKind::NotFound => "there is no /dev/kvm".to_owned(),
            _ => format!("cannot open /dev/kvm: {error}"),
        });
    }
    let output = Command::new(vmm).arg("probe").stdin(Stdio::null()).output();
    match output {
        Err(error) => unavailable(format!("cannot start {}: {error}", vmm.display())),
        Ok(output) => {
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| ProbeReport::Wrong {
                reason: format!("the probe's machine hung ({})", output.status),
            })
        }
    }
}

fn kvm_identity() -> Option<(u64, u64)> {
    let metadata = fs::metadata("/dev/kvm").ok()?;
    Some((metadata.rdev(), metadata.ino()))
}

fn modified(vmm: &Path) -> i64 {
    fs::metadata(vmm).map_or(0, |metadata| metadata.mtime())
}

/// What the probe found, in one line.
pub fn verdict(report: &ProbeReport) -> Verdict {
    Err(match report {
        ProbeReport::Usable { nanoseconds, mips } => {
            return Ok(format!(
                "KVM works at hardware speed ({mips} million instructions a second, probed in {} µs)",
                nanoseconds / 1000
            ));
        }
        ProbeReport::Slow { mips } => format!(
            "KVM here emulates a guest's kernel code in software ({mips} million instructions a \
             second), which is too slow for a kernel"
        ),
        ProbeReport::Wrong { reason } => format!(
            "KVM here emulates a guest's kernel code in software and cannot do all of it: {reason}"
        ),
        ProbeReport::Unavailable { reason } => reason.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kvm_at_hardware_speed_works() {
        let report = ProbeReport::Usable {
            nanoseconds: 500_000,
            mips: 3000,
        };
        assert!(verdict(&report).unwrap().contains("500 µs"));
    }

    #[test]
    fn every_other_kvm_does_not_and_the_reason_says_why() {
        for (report, word) in [
            (ProbeReport::Slow { mips: 1 }, "software"),
            (
                ProbeReport::Wrong {
                    reason: "INT3".to_owned(),
                },
                "INT3",
            ),
            (
                ProbeReport::Unavailable {
                    reason: "there is no /dev/kvm".to_owned(),
                },
                "/dev/kvm",
            ),
        ] {
            let reason = verdict(&report).unwrap_err();
            assert!(reason.contains(word), "{reason}");
        }
    }
}
