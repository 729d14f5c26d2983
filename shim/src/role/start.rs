//! `start`: creates a socket, and leaves a daemon behind that serves it.
//!
//! One daemon serves all containers of a pod: the one that was started for the pod's sandbox. Its
//! address is in the sandbox's bundle.

use std::collections::HashMap;
use std::fs;
use std::io::{self, PipeWriter, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use rvm_sandbox::spec::pod::Role;
use rvm_sys::fault_point;
use serde::Deserialize;

use crate::bundle::{served_address, socket_path, write_address};
use crate::events::TTRPC_ADDRESS;
use crate::invocation::flags::Flags;
use crate::invocation::input;
use crate::options::Options;

/// The directory of sockets if containerd names none. Addresses of sockets must be short.
const SOCKETS: &str = "/run/containerd/s";

/// The name of the containerd plugin that has shims make sandboxes, and of its state directory.
const SANDBOX_CONTROLLER: &str = "io.containerd.sandbox.controller.v1.shim";

/// The version of the task API that a [`BootstrapResult`] announces. An answer that is a plain
/// address stands for version 2.
const TASK_API_VERSION: i32 = 3;

/// The part of config.json that says to which pod the container belongs.
#[derive(Deserialize)]
struct Annotated {
    #[serde(default)]
    annotations: HashMap<String, String>,
}

/// What containerd sends to the standard input of `start`.
enum Input {
    /// The runtime's options, until containerd 2.2. The answer is an address.
    Options(Options),
    /// All parameters in one message, since containerd 2.3. The answer is a message, too.
    Bootstrap(Box<BootstrapParams>, Options),
}

/// Leaves a daemon behind, or finds the one that serves the pod, and answers with its address.
pub fn run(flags: &Flags) -> anyhow::Result<()> {
    let input = Input::read(&flags.id)?;
    let (address, answered) = match find_daemon()? {
        Some(address) => (address, None),
        None => start_daemon(flags, &input).map(|(address, pipe)| (address, Some(pipe)))?,
    };
    fault_point!("shim.spawned")?;
    write_address(Path::new("."), &address).context("cannot write the address into the bundle")?;
    let answer = input.answer(&address)?;
    fault_point!("shim.address")?;
    io::stdout()
        .write_all(&answer)
        .context("cannot answer containerd")?;
    if let Some(mut answered) = answered {
        // It has ended already, if this fails.
        let _ = answered.write_all(b"1");
    }
    Ok(())
}

impl Input {
    fn read(id: &str) -> anyhow::Result<Self> {
        Self::parse(&input::read()?, id)
    }

    /// Both messages begin with two strings; only in `BootstrapParams` the first one is the id.
    fn parse(bytes: &[u8], id: &str) -> anyhow::Result<Self> {
        if let Ok(params) = BootstrapParams::parse_from_bytes(bytes)
            && !id.is_empty()
            && params.instance_id == id
        {
            let any = params
                .extensions
                .iter()
                .filter_map(|ext| ext.value.as_ref());
            let options = Options::find(any)?;
            return Ok(Self::Bootstrap(Box::new(params), options));
        }
        let any = Any::parse_from_bytes(bytes).context("cannot read the runtime's options")?;
        Ok(Self::Options(Options::parse(&any)?))
    }

    fn options(&self) -> &Options {
        match self {
            Self::Options(options) | Self::Bootstrap(_, options) => options,
        }
    }

    fn socket_dir(&self) -> &Path {
        match self {
            Self::Bootstrap(params, _) => params.socket_dir.as_deref().unwrap_or(SOCKETS).as_ref(),
            Self::Options(_) => SOCKETS.as_ref(),
        }
    }

    fn wants_debug(&self) -> bool {
        match self {
            Self::Bootstrap(params, _) => params.log_level.value() < 0,
            Self::Options(_) => false,
        }
    }

    fn ttrpc_address(&self) -> Option<&str> {
        match self {
            Self::Bootstrap(params, _) => Some(&*params.containerd_ttrpc_address),
            Self::Options(_) => None,
        }
        .filter(|address| !address.is_empty())
    }

    fn answer(&self, address: &str) -> anyhow::Result<Vec<u8>> {
        match self {
            Self::Options(_) => Ok(address.as_bytes().to_owned()),
            Self::Bootstrap(..) => {
                let result = BootstrapResult {
                    version: TASK_API_VERSION,
                    address: address.to_owned(),
                    protocol: "ttrpc".to_owned(),
                    ..Default::default()
                };
                Ok(result.write_to_bytes()?)
            }
        }
    }
}

/// The address of the daemon that serves the sandbox named by config.json, if it runs.
fn find_daemon() -> anyhow::Result<Option<String>> {
    let text = match fs::read("config.json") {
        // The sandbox API: the bundle of a sandbox gets its config.json later.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.context("cannot read config.json in the bundle")?,
    };
    let config: Annotated = serde_json::from_slice(&text).context("config.json")?;
    let role = Role::from_annotations(&config.annotations);
    let Ok(Role::Member(sandbox)) = role else {
        // Creating the container reports contradictory annotations.
        return Ok(None);
    };
    let own = std::env::current_dir()?;
    let bundles = sandbox_bundles(&own, &sandbox);
    Ok(bundles.iter().find_map(|bundle| served_address(bundle)))
}

/// The paths at which the bundle of a container's sandbox may be: beside the container's own or, if
/// the sandbox API made the sandbox, in the same place below another plugin's directory.
fn sandbox_bundles(own: &Path, sandbox: &str) -> Vec<PathBuf> {
    let beside = own.with_file_name(sandbox);
    let controllers = own.parent().and_then(|namespace| {
        let state = namespace.parent()?.parent()?;
        Some(
            state
                .join(SANDBOX_CONTROLLER)
                .join(namespace.file_name()?)
                .join(sandbox),
        )
    });
    [Some(beside), controllers].into_iter().flatten().collect()
}

/// The second value is a pipe to the daemon. Its end without a byte means that containerd has no
/// answer, and will never find the daemon, which ends then: this process has failed, or is killed.
fn start_daemon(flags: &Flags, input: &Input) -> anyhow::Result<(String, PipeWriter)> {
    let (listener, address) = listen(input.socket_dir())?;
    fault_point!("shim.listen")?;
    let spawned = spawn_daemon(flags, input, listener).inspect_err(|_| {
        let _ = fs::remove_file(socket_path(&address));
    });
    Ok((address, spawned?))
}

/// Creates a socket with a random name; returns it and its address.
fn listen(dir: &Path) -> anyhow::Result<(UnixListener, String)> {
    let mut name = [0; 16];
    rustix::rand::getrandom(&mut name, rustix::rand::GetRandomFlags::empty())
        .context("cannot make a random name for the socket")?;
    let name: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = dir.join(name);
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o711);
    builder
        .create(dir)
        .with_context(|| format!("cannot create {}", dir.display()))?;
    let bound = UnixListener::bind(&path)
        .and_then(|listener| {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            Ok(listener)
        })
        .with_context(|| format!("cannot make the socket {}", path.display()))?;
    Ok((bound, format!("unix://{}", path.display())))
}

/// Starts the daemon, with the socket as its standard input and the pipe as its standard output.
fn spawn_daemon(
    flags: &Flags,
    input: &Input,
    listener: UnixListener,
) -> anyhow::Result<PipeWriter> {
    let (reader, answered) = io::pipe().context("cannot make a pipe to the daemon")?;
    let options = input.options();
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("containerd-shim-rvm-v2")
        .args(["-namespace", &flags.namespace])
        .args(["-id", &flags.id])
        .args(["-address", &flags.address])
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(reader)
        .stderr(Stdio::null())
        .process_group(0);
    if flags.debug || input.wants_debug() {
        command.arg("-debug");
    }
    if let Some(path) = options.config_file(Path::new("."))? {
        command.arg("-config").arg(path);
    }
    if let Some(address) = input.ttrpc_address() {
        command.env(TTRPC_ADDRESS, address);
    }
    let child = command.spawn().context("cannot start the daemon")?;
    let pid = child.id();
    if let Some(cgroup) = &options.shim_cgroup {
        join_cgroup(cgroup, pid)?;
    }
    adjust_oom_score(pid).context("cannot set the daemon's OOM score")?;
    Ok(answered)
}

/// Puts the daemon into a cgroup, in every hierarchy that has one by this name.
fn join_cgroup(cgroup: &str, pid: u32) -> anyhow::Result<()> {
    let name = cgroup.trim_start_matches('/');
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = match root.join("cgroup.controllers").exists() {
        true => vec![root.to_owned()],
        false => fs::read_dir(root)?
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<_>>()?,
    };
    let mut joined = false;
    for group in hierarchies.iter().map(|hierarchy| hierarchy.join(name)) {
        let procs = group.join("cgroup.procs");
        if procs.exists() {
            fs::write(&procs, pid.to_string())
                .with_context(|| format!("cannot join {}", group.display()))?;
            joined = true;
        }
    }
    match joined {
        true => Ok(()),
        false => anyhow::bail!("there is no cgroup {cgroup}; ShimCgroup in the options names it"),
    }
}

/// Sets the daemon's OOM score one above containerd's, so that the kernel kills containerd last.
fn adjust_oom_score(pid: u32) -> anyhow::Result<()> {
    const MAX: i32 = 1000;
    let parent = rustix::process::getppid().map_or(1, |parent| parent.as_raw_nonzero().get());
    let score = fs::read_to_string(format!("/proc/{parent}/oom_score_adj"))?;
    let score = score.trim().parse::<i32>()?.saturating_add(1).min(MAX);
    Ok(fs::write(
        format!("/proc/{pid}/oom_score_adj"),
        score.to_string(),
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_answer_is_an_address_where_containerd_sends_options() {
        let input = Input::parse(&[], "box").unwrap();
        assert_eq!(input.answer("unix:///s/1").unwrap(), b"unix:///s/1");
        let any = Any {
            type_url: "box".to_owned(),
            value: vec![0xff],
            ..Default::default()
        };
        // Another container's id, as a type: neither known options nor parameters for this one.
        assert!(Input::parse(&any.write_to_bytes().unwrap(), "other").is_err());
    }

    #[test]
    fn the_answer_is_a_message_where_containerd_sends_parameters() {
        let params = BootstrapParams {
            instance_id: "box".to_owned(),
            namespace: "default".to_owned(),
            socket_dir: Some("/run/other".to_owned()),
            ..Default::default()
        };
        let input = Input::parse(&params.write_to_bytes().unwrap(), "box").unwrap();
        assert_eq!(input.socket_dir(), Path::new("/run/other"));
        let answer = input.answer("unix:///s/1").unwrap();
        let answer = BootstrapResult::parse_from_bytes(&answer).unwrap();
        assert_eq!((answer.version, &*answer.protocol), (3, "ttrpc"));
    }

    #[test]
    fn a_sandbox_is_found_beside_its_containers_and_below_the_sandbox_controller() {
        let own = Path::new("/run/c/io.containerd.runtime.v2.task/k8s.io/box");
        let found = sandbox_bundles(own, "pod");
        let wanted = [
            "/run/c/io.containerd.runtime.v2.task/k8s.io/pod",
            "/run/c/io.containerd.sandbox.controller.v1.shim/k8s.io/pod",
        ];
        assert_eq!(found, wanted.map(PathBuf::from));
    }

    #[test]
    fn every_socket_has_a_name_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (_first, one) = listen(dir.path()).unwrap();
        let (_second, other) = listen(dir.path()).unwrap();
        assert_ne!(one, other);
        UnixStream::connect(socket_path(&one)).unwrap();
    }
}
