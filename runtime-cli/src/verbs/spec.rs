//! rvm spec

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use rvm_sandbox::spec::CONFIG_FILE;

use crate::cli::SpecArgs;

/// runc's, with a cgroup namespace: the guest has version 2.
const EXAMPLE: &str = include_str!("spec.json");

/// Writes an example of config.json into the bundle, unless there is one.
pub fn run(args: &SpecArgs) -> anyhow::Result<ExitCode> {
    if args.rootless {
        bail!("--rootless is not supported: rvm needs root's rights to start a virtual machine");
    }
    let path = args.bundle.join(CONFIG_FILE);
    let file = OpenOptions::new().write(true).create_new(true).open(&path);
    let mut file = match file {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("file {} exists, remove it first", path.display())
        }
        other => other.with_context(|| format!("cannot write {}", path.display()))?,
    };
    file.write_all(EXAMPLE.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rvm_sandbox::spec::{Bundle, SPEC_VERSION};

    fn args(dir: &std::path::Path) -> SpecArgs {
        SpecArgs {
            bundle: dir.to_owned(),
            rootless: false,
        }
    }

    #[test]
    fn what_is_written_can_be_run() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("rootfs")).unwrap();
        run(&args(dir.path())).unwrap();
        let bundle = Bundle::load(dir.path()).unwrap();
        assert_eq!(bundle.spec.version(), SPEC_VERSION);
        assert_eq!(
            bundle.spec.process().clone().unwrap().terminal(),
            Some(true)
        );
    }

    #[test]
    fn what_is_there_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), "mine").unwrap();
        let error = run(&args(dir.path())).unwrap_err().to_string();
        assert!(error.contains("config.json exists"), "{error}");
    }
}
