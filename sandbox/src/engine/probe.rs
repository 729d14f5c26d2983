//! What the host's KVM is good for, found out by rvm-vmm and remembered until the next boot.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rvm_protocol::vmm::ProbeReport;
use serde::{Deserialize, Serialize};

use super::remembered::{recall, remember};

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
    if let Some(cached) = recall::<Cached>(Path::new(CACHE))
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
    remember(Path::new(CACHE), &cached);
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
