//! The command line, read as Go's flag package reads it: options precede the action, with one dash
//! or two; a value follows a space or an equals sign.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context as _, bail};

/// The role in which this process runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    Version,
    /// Describe the runtime in a message.
    Info,
    /// Leave a daemon behind, or find the one that serves the pod.
    Start,
    /// Clean up after a daemon that is gone.
    Delete,
    /// Be the daemon; no action on the command line.
    #[default]
    Serve,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    pub action: Action,
    /// containerd's namespace, such as `k8s.io`.
    pub namespace: String,
    /// The container that the shim is started for, or cleans up after.
    pub id: String,
    /// The path of containerd's gRPC socket.
    pub address: String,
    /// The bundle, if it is not the working directory.
    pub bundle: Option<PathBuf>,
    pub debug: bool,
    /// rvm's configuration file, which `start` passes to the daemon.
    pub config: Option<PathBuf>,
}

impl Flags {
    /// Parses the arguments, without the program's name.
    pub fn parse(arguments: impl Iterator<Item = OsString>) -> anyhow::Result<Self> {
        let mut arguments = arguments.map(|argument| {
            let text = argument.into_string();
            text.map_err(|argument| anyhow::anyhow!("argument {argument:?} is not UTF-8"))
        });
        let mut flags = Self::default();
        while let Some(argument) = arguments.next().transpose()? {
            let Some(name) = argument.strip_prefix('-') else {
                flags.set_action(&argument)?;
                break;
            };
            let name = name.strip_prefix('-').unwrap_or(name);
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            if !flags.set_switch(name, value.as_deref())? {
                let value = match value {
                    Some(value) => value,
                    None => arguments
                        .next()
                        .transpose()?
                        .with_context(|| format!("option -{name} needs a value"))?,
                };
                flags.set_value(name, value)?;
            }
        }
        let needs_namespace = !matches!(flags.action, Action::Version | Action::Info);
        if needs_namespace && flags.namespace.is_empty() {
            bail!("-namespace is missing; containerd runs this program, not a user");
        }
        Ok(flags)
    }

    fn set_action(&mut self, name: &str) -> anyhow::Result<()> {
        self.action = match name {
            "start" => Action::Start,
            "delete" => Action::Delete,
            other => bail!("unknown action {other:?}: it is start or delete"),
        };
        Ok(())
    }

    /// Sets an option that takes no value; false if `name` is not such an option.
    fn set_switch(&mut self, name: &str, value: Option<&str>) -> anyhow::Result<bool> {
        let on = match value {
            None | Some("true" | "1") => true,
            Some("false" | "0") => false,
            Some(value) => {
                return match name {
                    "debug" | "v" | "version" | "info" => bail!("-{name} is {value:?}"),
                    _ => Ok(false),
                };
            }
        };
        match name {
            "debug" => self.debug = on,
            "v" | "version" if on => self.action = Action::Version,
            "info" if on => self.action = Action::Info,
            "v" | "version" | "info" => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn set_value(&mut self, name: &str, value: String) -> anyhow::Result<()> {
        match name {
            "namespace" => self.namespace = value,
            "id" => self.id = value,
            "address" => self.address = value,
            "bundle" => self.bundle = Some(value.into()),
            "config" => self.config = Some(value.into()),
            // The shim publishes events over containerd's socket, and makes its own socket.
            "publish-binary" | "socket" | "debug-socket" => {}
            other => bail!("unknown option -{other}"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> anyhow::Result<Flags> {
        Flags::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn containerds_command_lines_are_understood() {
        let flags = parse(
            "-namespace k8s.io -address /run/containerd/containerd.sock \
             -publish-binary /usr/bin/containerd -id abc -debug start",
        )
        .unwrap();
        assert_eq!(flags.action, Action::Start);
        assert_eq!((&*flags.namespace, &*flags.id), ("k8s.io", "abc"));
        assert!(flags.debug);
        let flags = parse("--namespace=default --id=x -bundle /b delete").unwrap();
        assert_eq!(flags.action, Action::Delete);
        assert_eq!(flags.bundle, Some("/b".into()));
        assert_eq!(parse("-namespace a -id b").unwrap().action, Action::Serve);
    }

    #[test]
    fn info_and_version_need_no_namespace() {
        assert_eq!(parse("-info").unwrap().action, Action::Info);
        assert_eq!(parse("-v").unwrap().action, Action::Version);
    }

    #[test]
    fn mistakes_are_named() {
        for (line, word) in [
            ("start", "-namespace"),
            ("-namespace", "-namespace"),
            ("-namespace a stop", "stop"),
            ("-namespace a -colour red", "-colour"),
            ("-debug=maybe", "maybe"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
