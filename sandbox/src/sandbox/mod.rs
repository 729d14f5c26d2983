//! A sandbox: one machine and its agent, whatever containers are in it.
//!
//! One process owns it: the machine's processes are its children, and end with it. Others may join
//! it by its directory; they talk to the same agent, and hear of the machine's end.

mod loopback;
mod names;
mod network;
pub mod size;
pub mod volumes;
pub mod watch;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use oci_spec::runtime::Spec;
use rustix::process::Signal;
use tokio::sync::{Mutex, OnceCell, RwLock};

use crate::config::Config;
use crate::config::EngineKind;
use crate::dir::{Record, SandboxDir};
use crate::engine::choice::{self, Choice, NoEngine};
use crate::engine::{Engine, EngineError, Machine, MachineEnd, Plan};
use crate::guest::agent::{Agent, AgentError, Exit};
use crate::guest::stdio::{HostStdio, Relay, StdioError};
use crate::host::memory::total_memory_mib;
use crate::host::process::Process;
use crate::host::readable::Readable;
use crate::host::timings::Timings;
use crate::network::{NetCard, Network, NetworkError};
use crate::sizing::{Bounds, Running, Size};

use network::Live;
use size::LiveSize;

pub use watch::{GuestFailure, GuestWatch};

/// How long the agent of a machine that is up may take to make or start a container of somebody
/// who joined, if the configuration does not say. Hooks in the guest count.
const JOINED_LIMIT: Duration = Duration::from_secs(180);

/// How long a machine may take to end once nobody listens for it.
const SILENCE: Duration = Duration::from_secs(1);

/// The stage until the agent answers.
const BOOT: &str = "the boot of its kernel and agent";

/// A sandbox did not come up, or did not do what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Nothing to run it on.
    #[error(transparent)]
    NoEngine(#[from] NoEngine),
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
    /// The machine's processes.
    #[error("cannot find the machine's processes")]
    Processes(#[source] io::Error),
    /// There is no machine to join.
    #[error("the sandbox {0} does not run")]
    Gone(String),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// An interface that came later.
    #[error("cannot plug the interface {link} in")]
    Plug {
        /// Its name.
        link: String,
        /// The reason.
        #[source]
        source: EngineError,
    },
    /// An interface that has gone.
    #[error("cannot unplug an interface")]
    Unplug(#[source] EngineError),
    /// The namespace's notifications.
    #[error("cannot watch the sandbox's network namespace")]
    Watch(#[source] io::Error),
    /// The way to the guest's ports.
    #[error("cannot take connections to the guest's ports in its network namespace")]
    Ports(#[source] io::Error),
    /// The way for names.
    #[error("cannot relay names between the guest and its network namespace")]
    Names(#[source] io::Error),
    /// The machine is not there any more.
    #[error("{0}")]
    Ended(MachineEnd),
    /// A container's streams.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// The connection to the agent, or what the agent said.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The guest.
    #[error(transparent)]
    Guest(#[from] Box<GuestFailure>),
}

/// A machine whose agent answers.
pub struct Sandbox {
    pub(crate) dir: SandboxDir,
    record: Record,
    pub(crate) agent: Agent,
    watch: GuestWatch,
    life: Life,
    /// The processes that run the machine.
    processes: Vec<Process>,
    /// How the machine ended; asked for by whoever waits first.
    end: OnceCell<MachineEnd>,
    /// Where others ask the owner.
    pub(crate) control: Option<UnixListener>,
    /// Read while one of them is answered.
    pub(crate) answering: RwLock<()>,
}

/// What tells of the machine's end.
enum Life {
    /// The machine itself.
    Owned {
        machine: Box<dyn Machine>,
        network: Box<Mutex<Live>>,
        size: Box<Mutex<LiveSize>>,
    },
    /// The end of the process that runs it; others end with that.
    Joined(Readable),
}

impl Sandbox {
    /// Starts the processes of a machine of this size with this network; see [`Sandbox::come_up`]. What
    /// the directory shares must have been prepared.
    pub async fn start(
        dir: SandboxDir,
        size: Size,
        network: Network,
        config: &Config,
        timings: &mut Timings,
    ) -> Result<Self, SandboxError> {
        let Choice { kind, reason } = choice::choose(config)?;
        tracing::info!("engine {kind}: {reason}");
        tracing::debug!("{} vCPUs and {} MiB", size.vcpus, size.memory_mib);
        let engine = choice::engine(kind, config);
        let (network, nets) = Live::first(network, engine.net_room())?;
        timings.lap("prepare the network");
        let running = running(engine.as_ref(), size, config);
        let machine = start_machine(engine.as_ref(), &dir, running, nets, config)?;
        let (record, processes) = remember_processes(&dir, kind, machine.as_ref())?;
        timings.lap("start the machine's processes");

        let limit = config.start_timeout;
        let watch = GuestWatch {
            console: dir.console(),
            engine: format!(" on the {kind} engine"),
            limit: limit.unwrap_or_else(|| engine.start_timeout()),
        };
        let agent = match Agent::connect(&dir) {
            Ok(agent) => agent,
            // Nobody listens any more: the machine's end says more than this.
            Err(error) => match tokio::time::timeout(SILENCE, machine.ended()).await {
                Ok(end) => {
                    return Err(watch
                        .failure(BOOT, timings.elapsed(), end.to_string())
                        .into());
                }
                Err(_) => return Err(error.into()),
            },
        };
        let control = dir.listen_as_owner().map_err(SandboxError::Sockets)?;
        Ok(Self {
            agent,
            watch,
            control: Some(control),
            answering: RwLock::default(),
            dir,
            record,
            life: Life::Owned {
                machine,
                network: Box::new(Mutex::new(network)),
                size: Box::new(LiveSize::new(running, Bounds::of(config))),
            },
            processes,
            end: OnceCell::new(),
        })
    }

    /// Waits until the agent of a machine that was started answers, and has its network.
    pub async fn come_up(&self, timings: &mut Timings) -> Result<(), SandboxError> {
        self.boot(timings).await?;
        self.set_network_up(timings).await
    }

    /// Joins the sandbox that another process owns.
    pub fn join(dir: SandboxDir, config: &Config) -> Result<Self, SandboxError> {
        let gone = || SandboxError::Gone(dir.path().display().to_string());
        let record = dir.record().map_err(SandboxError::Processes)?;
        let record = record.ok_or_else(gone)?;
        let processes: Vec<Process> = record
            .machine
            .iter()
            .map(|id| id.open().ok_or_else(gone))
            .collect::<Result<_, _>>()?;
        let first = processes.first().ok_or_else(gone)?;
        let end = Readable::new(first.as_fd()).map_err(SandboxError::Processes)?;
        Ok(Self {
            agent: Agent::connect(&dir)?,
            watch: GuestWatch {
                console: dir.console(),
                engine: String::new(),
                limit: config.start_timeout.unwrap_or(JOINED_LIMIT),
            },
            life: Life::Joined(end),
            record,
            dir,
            processes,
            end: OnceCell::new(),
            control: None,
            answering: RwLock::default(),
        })
    }

    /// Its directory.
    pub fn dir(&self) -> &SandboxDir {
        &self.dir
    }

    /// What runs its machine.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Its agent.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// How a failure from here on is explained.
    pub fn watch(&self) -> &GuestWatch {
        &self.watch
    }

    /// Returns when the machine has ended. May be called by many, and given up.
    pub async fn ended(&self) -> &MachineEnd {
        let wait = || async {
            match &self.life {
                Life::Owned { machine, .. } => machine.ended().await,
                Life::Joined(process) => {
                    // Waiting fails only if the runtime is being shut down.
                    let _ = process.read(|_| Ok(())).await;
                    MachineEnd::Failed("the sandbox has ended that the container was in".to_owned())
                }
            }
        };
        self.end.get_or_init(wait).await
    }

    /// Ends the machine at once, and returns when its processes have ended.
    pub async fn end(&self) -> io::Result<()> {
        let kill = |process: &Process| process.signal(Signal::KILL);
        self.processes.iter().try_for_each(kill)?;
        for process in &self.processes {
            Readable::new(process.as_fd())?.read(|_| Ok(())).await?;
        }
        Ok(())
    }

    /// Waits until a container's process has ended, its first one for an empty id. The error is how
    /// the machine ended before that.
    pub async fn wait(&self, id: &str, exec_id: &str) -> Result<Exit, MachineEnd> {
        let error = tokio::select! {
            biased;
            exit = self.agent.wait_process(id, exec_id) => match exit {
                Ok(exit) => return Ok(exit),
                Err(error) => error,
            },
            end = self.ended() => return Err(end.clone()),
        };
        // The agent hung up. Its machine ends with it, unless the agent lies.
        Err(match tokio::time::timeout(SILENCE, self.ended()).await {
            Ok(end) => end.clone(),
            Err(_) => MachineEnd::Failed(error.to_string()),
        })
    }

    /// Makes a container, whose first process then waits for the start, and connects its streams.
    /// Returns the number of the process in the guest too.
    pub async fn create_container(
        &self,
        id: &str,
        spec: &Spec,
        host: HostStdio,
        timings: &mut Timings,
    ) -> Result<(Relay, u32), SandboxError> {
        let (relay, stdio) = Relay::start(&self.dir, host)?;
        let created = self.agent.create_container(id, spec, stdio);
        let stage = "the container's creation";
        let pid = self.guarded(stage, timings, created).await?;
        timings.lap("create the container");
        Ok((relay, pid))
    }

    /// Lets a container's first process execute its program.
    pub async fn start_container(
        &self,
        id: &str,
        timings: &mut Timings,
    ) -> Result<(), SandboxError> {
        let started = self.agent.start_container(id);
        let stage = "the container's start";
        self.guarded(stage, timings, started).await?;
        timings.lap("start the container");
        Ok(())
    }

    /// Waits for the guest to come up.
    async fn boot(&self, timings: &mut Timings) -> Result<(), SandboxError> {
        let check = self.guarded(BOOT, timings, self.agent.check()).await?;
        timings.lap("boot the guest");
        if let Life::Owned { machine, .. } = &self.life
            && let Some(times) = machine.start_times()
        {
            timings.part("enter the jail", times.jail_ns);
            timings.part("make the machine", times.machine_ns);
            timings.part("load the kernel", times.kernel_ns);
            timings.part("start the threads", times.threads_ns);
        }
        timings.part("guest kernel", check.init_started_ns);
        let agent_ns = check.ready_ns.saturating_sub(check.init_started_ns);
        timings.part("guest agent", agent_ns);
        Ok(())
    }

    /// Waits for a call to the agent, but no longer than the guest lives or may take.
    async fn guarded<T>(
        &self,
        stage: &'static str,
        timings: &Timings,
        call: impl Future<Output = Result<T, AgentError>>,
    ) -> Result<T, SandboxError> {
        let call = std::pin::pin!(call);
        let limit = self.watch.limit;
        let how = tokio::select! {
            biased;
            end = self.ended() => end.to_string(),
            answer = call => match answer {
                // The connection broke: most likely because the machine is about to be gone.
                Err(AgentError::Lost { .. }) => self.ended().await.to_string(),
                other => return Ok(other?),
            },
            () = tokio::time::sleep(limit) => format!(
                "its agent did not answer within {} s; start_timeout_seconds in rvm's \
                 configuration allows for more",
                limit.as_secs()
            ),
        };
        Err(self.watch.failure(stage, timings.elapsed(), how).into())
    }
}

/// What a machine that starts with this size can become.
fn running(engine: &dyn Engine, size: Size, config: &Config) -> Running {
    let memory_mib = match engine.grows_memory() {
        true => total_memory_mib().unwrap_or(0),
        false => 0,
    };
    Running {
        engine: engine.kind(),
        now: size,
        max: size.with_room(&Bounds::of(config), memory_mib),
    }
}

fn start_machine(
    engine: &dyn Engine,
    dir: &SandboxDir,
    running: Running,
    nets: Vec<NetCard>,
    config: &Config,
) -> Result<Box<dyn Machine>, SandboxError> {
    let (shared, console) = (dir.shared(), dir.console());
    let plan = Plan {
        size: running.now,
        max: running.max,
        kernel: &config.kernel,
        initramfs: &config.initramfs,
        kernel_params: &config.kernel_params,
        vmm: &config.vmm,
        dir: dir.path(),
        shared: &shared,
        console: &console,
        ports: dir.listen().map_err(SandboxError::Sockets)?,
        nets,
    };
    engine.start(plan).map_err(|source| SandboxError::Engine {
        engine: engine.kind(),
        source,
    })
}

/// Writes down which processes run the machine, and holds on to them.
fn remember_processes(
    dir: &SandboxDir,
    engine: EngineKind,
    machine: &dyn Machine,
) -> Result<(Record, Vec<Process>), SandboxError> {
    let ids = machine.processes().map_err(SandboxError::Processes)?;
    // One that has ended already is told of by the machine.
    let processes = ids.iter().filter_map(|id| id.open()).collect();
    let record = Record {
        machine: ids,
        engine,
    };
    dir.write_record(&record).map_err(SandboxError::Processes)?;
    Ok((record, processes))
}
