//! What this host can do for rvm, in a screenful.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use rvm_protocol::vmm::ProbeReport;

use crate::config::Config;
use crate::engine::{choice, probe};
use crate::host::memory::available_memory_mib;

/// What was looked at.
#[derive(Debug)]
pub struct Report {
    lines: Vec<Line>,
    verdict: Result<String, String>,
}

#[derive(Debug)]
struct Line {
    what: &'static str,
    fine: bool,
    found: String,
}

impl Report {
    /// Containers can run here.
    pub fn works(&self) -> bool {
        self.verdict.is_ok()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Line { what, fine, found } in &self.lines {
            let mark = if *fine { "ok" } else { "--" };
            writeln!(f, "{mark}  {what:<16} {found}")?;
        }
        match &self.verdict {
            Ok(engine) => writeln!(f, "\nContainers run on the {engine}"),
            Err(reason) => writeln!(f, "\nContainers cannot run here: {reason}"),
        }
    }
}

/// Looks at the host. The probe is not taken from memory.
pub fn run(config: &Config) -> Report {
    let kvm = probe::run(&config.vmm);
    let usable = matches!(kvm, ProbeReport::Usable { .. });
    let qemu = qemu_version(&config.qemu);
    let mut lines = vec![
        Line {
            what: "KVM",
            fine: usable,
            found: choice::describe(&kvm),
        },
        qemu_line(config, qemu.as_deref()),
        installed("rvm-vmm", &config.vmm),
        installed("guest kernel", &config.kernel),
        installed("initramfs", &config.initramfs),
        namespaces(),
        cgroups(),
        memory(),
    ];
    if rustix::process::geteuid().as_raw() != 0 {
        lines.push(Line {
            what: "user",
            fine: false,
            found: "not root; rvm makes mounts and namespaces and must be run as root".to_owned(),
        });
    }
    let verdict = verdict(config, usable, qemu.is_some(), &lines);
    Report { lines, verdict }
}

/// Lines without which nothing runs, whatever the engine.
const NEEDED: &[&str] = &[
    "rvm-vmm",
    "guest kernel",
    "initramfs",
    "user namespaces",
    "user",
];

fn verdict(config: &Config, kvm: bool, qemu: bool, lines: &[Line]) -> Result<String, String> {
    if let Some(line) = lines
        .iter()
        .find(|line| !line.fine && NEEDED.contains(&line.what))
    {
        return Err(format!("{}: {}", line.what, line.found));
    }
    let choice = choice::choose(config).map_err(|error| error.to_string())?;
    let missing = match choice.kind {
        crate::config::EngineKind::Kvm => !kvm,
        crate::config::EngineKind::Qemu => !qemu,
    };
    let chosen = format!(
        "{} engine ({}): {}",
        choice.kind, config.engine, choice.reason
    );
    if missing {
        Err(format!("the {chosen}, but it does not work"))
    } else {
        Ok(chosen)
    }
}

fn installed(what: &'static str, path: &Path) -> Line {
    let fine = path.is_file();
    let found = match fine {
        true => path.display().to_string(),
        false => format!(
            "{} is missing; `make install` puts it there",
            path.display()
        ),
    };
    Line { what, fine, found }
}

fn qemu_line(config: &Config, version: Option<&str>) -> Line {
    let found = match version {
        Some(version) => format!("{version}, {}", config.qemu.display()),
        None => format!(
            "{} is missing; install qemu-system-x86 to run without hardware virtualization",
            config.qemu.display()
        ),
    };
    Line {
        what: "QEMU",
        fine: version.is_some(),
        found,
    }
}

/// The first line of what QEMU says of itself.
fn qemu_version(path: &Path) -> Option<String> {
    let output = Command::new(path).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next()?;
    Some(line.split(" (").next().unwrap_or(line).to_owned())
}

fn namespaces() -> Line {
    const MAX: &str = "/proc/sys/user/max_user_namespaces";
    let max: u64 = fs::read_to_string(MAX)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    let found = match max {
        0 => format!("none can be made; raise {MAX}, the jail needs one"),
        _ => format!("up to {max}"),
    };
    Line {
        what: "user namespaces",
        fine: max > 0,
        found,
    }
}

fn cgroups() -> Line {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let found = if unified { "version 2" } else { "version 1" };
    Line {
        what: "cgroups",
        fine: true,
        found: found.to_owned(),
    }
}

fn memory() -> Line {
    // What a machine of the default size takes at the most.
    const ENOUGH_MIB: u64 = 600;
    let available = available_memory_mib().unwrap_or(0);
    Line {
        what: "memory",
        fine: available >= ENOUGH_MIB,
        found: format!("{available} MiB available"),
    }
}
