//! `rvm check`: whether the host has what rvm needs.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::config::{Config, EngineKind, TemplateUse};
use crate::engine::{self, choice};
use crate::host::memory::available_memory_mib;
use rvm_sys::error_chain::chain;

/// The results of the checks, printed with [`fmt::Display`].
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
    /// Whether containers can run on this host.
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

/// Checks the host and every engine anew, whatever the cached results.
pub fn run(config: &Config) -> Report {
    let mut lines = Vec::new();
    let mut working = Vec::new();
    for kind in EngineKind::ALL {
        let engine = engine::of(kind);
        let verdict = (engine.check)(config);
        if verdict.is_ok() {
            working.push(kind);
        }
        lines.push(Line {
            what: engine.title,
            fine: verdict.is_ok(),
            found: verdict.unwrap_or_else(|reason| reason),
        });
    }
    lines.extend([
        installed("rvm-vmm", &config.vmm),
        installed("guest kernel", &config.kernel),
        installed("initramfs", &config.initramfs),
        namespaces(&config.vmm),
        cgroups(),
        memory(),
        templates(config),
    ]);
    if rustix::process::geteuid().as_raw() != 0 {
        lines.push(Line {
            what: "user",
            fine: false,
            found: "not root; rvm makes mounts and namespaces and must be run as root".to_owned(),
        });
    }
    let verdict = verdict(config, &working, &lines);
    Report { lines, verdict }
}

/// The checks that must succeed for either engine.
const NEEDED: &[&str] = &[
    "rvm-vmm",
    "guest kernel",
    "initramfs",
    "user namespaces",
    "user",
];

fn verdict(config: &Config, working: &[EngineKind], lines: &[Line]) -> Result<String, String> {
    if let Some(line) = lines
        .iter()
        .find(|line| !line.fine && NEEDED.contains(&line.what))
    {
        return Err(format!("{}: {}", line.what, line.found));
    }
    let choice = choice::choose(config).map_err(|error| error.to_string())?;
    let kind = choice.engine.kind;
    let chosen = format!("{kind} engine ({}): {}", config.engine, choice.reason);
    match working.contains(&kind) {
        true => Ok(chosen),
        false => Err(format!("the {chosen}, but it does not work")),
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

fn namespaces(vmm: &Path) -> Line {
    const MAX: &str = "/proc/sys/user/max_user_namespaces";
    let max: u64 = fs::read_to_string(MAX)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    let refusal = match max {
        0 => Some(format!("none can be made; raise {MAX}, the jail needs one")),
        _ => why_none(vmm),
    };
    Line {
        what: "user namespaces",
        fine: refusal.is_none(),
        found: refusal.unwrap_or_else(|| format!("up to {max}")),
    }
}

/// Why rvm-vmm cannot make a user namespace here, as in a chroot; `None` if it can. A program that
/// cannot be run has a line of its own.
fn why_none(vmm: &Path) -> Option<String> {
    let mut command = Command::new(vmm);
    let output = command
        .arg("namespace")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let reason = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (!reason.is_empty()).then_some(reason)
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
    // The most that a machine of the default size takes.
    const ENOUGH_MIB: u64 = 600;
    let available = available_memory_mib().unwrap_or(0);
    Line {
        what: "memory",
        fine: available >= ENOUGH_MIB,
        found: format!("{available} MiB available"),
    }
}

/// Of the engine that has them, whether or not it works here.
fn templates(config: &Config) -> Line {
    let place = config.template_dir.display();
    let counted = engine::of(EngineKind::Kvm)
        .templates(config)
        .map_err(|error| chain(&error).to_string())
        .and_then(|templates| templates.list().map_err(|error| chain(&error).to_string()))
        .map(|list| list.len());
    let fine = counted.is_ok() || config.templates == TemplateUse::Off;
    let found = match (config.templates, counted) {
        (TemplateUse::Off, _) => "off: every machine boots".to_owned(),
        (TemplateUse::Auto, Ok(count)) => format!("on; {count} in {place}, for the kvm engine"),
        (TemplateUse::Auto, Err(error)) => error,
    };
    Line {
        what: "templates",
        fine,
        found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_namespaces_are_fine_unless_rvm_vmm_says_why_not() {
        assert!(namespaces(Path::new("/bin/true")).fine);
        assert!(namespaces(Path::new("/nonexistent")).fine);
        let line = namespaces(Path::new("/bin/echo"));
        assert_eq!((line.fine, line.found.as_str()), (false, "namespace"));
    }

    #[test]
    fn templates_are_fine_unless_they_are_wanted_and_their_place_is_anybodys() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::load(None).unwrap();
        config.template_dir = dir.path().join("templates");
        config.templates = TemplateUse::Off;
        assert_eq!(templates(&config).found, "off: every machine boots");
        config.templates = TemplateUse::Auto;
        let line = templates(&config);
        assert!(line.fine && line.found.starts_with("on; 0 in "), "{line:?}");
        fs::create_dir(&config.template_dir).unwrap();
        let anybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(&config.template_dir, anybody).unwrap();
        let line = templates(&config);
        assert!(
            !line.fine && line.found.contains("template_dir"),
            "{line:?}"
        );
        config.templates = TemplateUse::Off;
        assert!(templates(&config).fine);
    }
}
