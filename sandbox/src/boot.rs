//! From a bundle to a machine whose agent answers.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use oci_spec::runtime::{LinuxResources, Spec};

use crate::agent::{Agent, AgentError, SOCKETS};
use crate::config::Config;
use crate::engine::choice::{self, Choice, NoEngine};
use crate::engine::{EngineError, EngineKind, Machine, MachineEnd, Plan};
use crate::sizing::{Bounds, Size, SizeError};
use crate::spec::Bundle;
use crate::spec::translate::translate;
use crate::state::{Container, StateError};
use crate::storage::{self, StorageError};
use crate::timings::Timings;

/// The guest's console, as it is called in the container's directory.
pub const CONSOLE_LOG: &str = "console.log";

/// How much of the console is shown when a guest fails: its last lines, and of those not more than
/// so many bytes.
const TAIL_LINES: usize = 20;
const TAIL_BYTES: u64 = 4096;

/// A sandbox did not come up.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Nothing to run it on.
    #[error(transparent)]
    NoEngine(#[from] NoEngine),
    /// Limits that no machine has.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// The shared directory.
    #[error("cannot share the container's files")]
    Storage(#[from] StorageError),
    /// The sockets that lead to the guest.
    #[error("cannot make the sandbox's sockets")]
    Sockets(#[source] io::Error),
    /// The machine.
    #[error("cannot start the machine on the {engine} engine")]
    Engine {
        /// Which engine.
        engine: EngineKind,
        /// The reason.
        #[source]
        source: EngineError,
    },
    /// State.
    #[error(transparent)]
    State(#[from] StateError),
    /// The machine's processes.
    #[error("cannot find the machine's processes")]
    Processes(#[source] io::Error),
    /// The connection to the agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The guest.
    #[error(transparent)]
    Guest(#[from] Box<GuestFailure>),
}

/// A guest that ended, or was not heard of in time, before its container was made.
#[derive(Debug, thiserror::Error)]
#[error(
    "the guest failed during {stage}, after {after:.1?} on the {engine} engine: {how}{console}"
)]
pub struct GuestFailure {
    stage: &'static str,
    after: Duration,
    engine: EngineKind,
    how: String,
    console: String,
}

/// A machine whose agent answers.
pub struct Booted {
    /// The machine.
    pub machine: Box<dyn Machine>,
    /// Its agent.
    pub agent: Agent,
    /// The configuration as the guest must see it.
    pub spec: Spec,
    /// How a failure from here on is explained.
    pub watch: GuestWatch,
}

/// What it takes to explain a guest's failure.
pub struct GuestWatch {
    console: std::path::PathBuf,
    engine: EngineKind,
    limit: Duration,
}

/// Starts the machine for a bundle and waits until its agent answers.
pub async fn boot(
    container: &Container,
    bundle: &Bundle,
    config: &Config,
    timings: &mut Timings,
) -> Result<Booted, BootError> {
    let Choice { kind, reason } = choice::choose(config)?;
    tracing::info!("engine {kind}: {reason}");
    let engine = choice::engine(kind, config);
    let size = Size::of(resources(&bundle.spec), &bounds(config))?;
    tracing::debug!(
        "machine of {} vCPUs and {} MiB",
        size.vcpus,
        size.memory_mib
    );

    let shared = storage::prepare(container.path())?;
    let translation = translate(bundle, container.id());
    for mount in &translation.mounts {
        storage::share(&shared, mount)?;
    }
    if translation.spec.hooks().is_some() {
        storage::write_bundle(&shared, container.id(), &translation.spec)?;
    }
    timings.lap("share files");

    let console = container.path().join(CONSOLE_LOG);
    let plan = Plan {
        size,
        kernel: &config.kernel,
        initramfs: &config.initramfs,
        kernel_params: &config.kernel_params,
        vmm: &config.vmm,
        dir: container.path(),
        shared: &shared,
        console: &console,
        ports: listen(container).map_err(BootError::Sockets)?,
    };
    let machine = engine.start(plan).map_err(|source| BootError::Engine {
        engine: kind,
        source,
    })?;
    remember_processes(container, machine.as_ref())?;
    timings.lap("start the machine's processes");

    let agent = Agent::connect(container)?;
    let limit = config
        .start_timeout
        .unwrap_or_else(|| engine.start_timeout());
    let watch = GuestWatch {
        console,
        engine: kind,
        limit,
    };
    let mut booted = Booted {
        machine,
        agent,
        spec: translation.spec,
        watch,
    };
    let agent = booted.agent.clone();
    let check = booted
        .guarded("the boot of its kernel and agent", timings, agent.check())
        .await?;
    timings.lap("boot the guest");
    if let Some(times) = booted.machine.start_times() {
        timings.part("enter the jail", times.jail_ns);
        timings.part("make the machine", times.machine_ns);
        timings.part("load the kernel", times.kernel_ns);
        timings.part("start the threads", times.threads_ns);
    }
    timings.part("guest kernel", check.init_started_ns);
    timings.part(
        "guest agent",
        check.ready_ns.saturating_sub(check.init_started_ns),
    );
    Ok(booted)
}

impl Booted {
    /// Waits for a call to the agent, but no longer than the guest lives or may take.
    pub async fn guarded<T>(
        &mut self,
        stage: &'static str,
        timings: &Timings,
        call: impl Future<Output = Result<T, AgentError>>,
    ) -> Result<T, BootError> {
        let call = std::pin::pin!(call);
        let how = tokio::select! {
            biased;
            end = self.machine.ended() => end.to_string(),
            answer = call => match answer {
                // The connection broke: most likely because the machine is about to be gone.
                Err(AgentError::Lost { .. }) => self.machine.ended().await.to_string(),
                other => return Ok(other?),
            },
            () = tokio::time::sleep(self.watch.limit) => format!(
                "its agent did not answer within {} s; start_timeout_seconds in rvm's \
                 configuration allows for more",
                self.watch.limit.as_secs()
            ),
        };
        Err(self.watch.failure(stage, timings.elapsed(), how).into())
    }
}

impl GuestWatch {
    fn failure(&self, stage: &'static str, after: Duration, how: String) -> Box<GuestFailure> {
        let console = self.console_tail();
        Box::new(GuestFailure {
            stage,
            after,
            engine: self.engine,
            how,
            console,
        })
    }

    /// What a machine's end during the container's life says to a human.
    pub fn obituary(&self, end: &MachineEnd) -> String {
        format!(
            "the sandbox ended unexpectedly: {end}{}",
            self.console_tail()
        )
    }

    /// The last lines of the guest's console, with a heading, or a note that there are none.
    fn console_tail(&self) -> String {
        match read_tail(&self.console) {
            Ok(tail) if tail.is_empty() => "\nthe guest's console is empty".to_owned(),
            Ok(tail) => format!("\nthe end of the guest's console:\n{tail}"),
            Err(error) => format!("\nthe guest's console cannot be read: {error}"),
        }
    }
}

fn read_tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = text
        .lines()
        .map(|line| line.replace(char::is_control, ""))
        .filter(|line| !line.is_empty())
        .map(|line| format!("  {line}"))
        .collect();
    Ok(lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n"))
}

fn resources(spec: &Spec) -> Option<&LinuxResources> {
    spec.linux().as_ref()?.resources().as_ref()
}

fn bounds(config: &Config) -> Bounds {
    let host_cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    Bounds {
        host_cpus,
        default_vcpus: config.vcpus,
        default_memory_mib: config.memory_mib,
    }
}

fn listen(container: &Container) -> io::Result<Vec<(u32, UnixListener)>> {
    SOCKETS
        .iter()
        .map(|&(port, name)| Ok((port, UnixListener::bind(container.short_path(name))?)))
        .collect()
}

/// Writes down which processes run the machine, so that whoever deletes the container can end them
/// even if this process is gone.
fn remember_processes(container: &Container, machine: &dyn Machine) -> Result<(), BootError> {
    let processes = machine.processes().map_err(BootError::Processes)?;
    let locked = container.lock()?;
    let mut state = locked.load()?;
    state.machine = processes;
    Ok(locked.save(&state)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail_of(text: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CONSOLE_LOG);
        std::fs::write(&path, text).unwrap();
        read_tail(&path).unwrap()
    }

    #[test]
    fn the_tail_is_the_last_lines_without_control_characters() {
        let text: String = (0..100)
            .map(|n| format!("\u{1b}[31mline {n}\r\n"))
            .collect();
        let tail = tail_of(&text);
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("line 99") && !tail.contains('\u{1b}'));
    }

    #[test]
    fn the_tail_of_an_endless_line_is_bounded() {
        assert!(tail_of(&"x".repeat(1 << 20)).len() as u64 <= TAIL_BYTES + 2);
    }
}
