//! What the one owner of a sandbox can do with its machine.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use rvm_protocol::agent::CheckResponse;
use rvm_protocol::vmm::StartTimes;
use tokio::net::UnixListener;
use tokio::sync::Mutex;

use super::SandboxError;
use super::disks::Slots;
use super::failure::GuestFailure;
use super::guest::Guest;
use super::live_network::LiveNetwork;
use super::plan::MachinePlan;
use super::resize::LiveSize;
use crate::cgroup::Cgroup;
use crate::checkpoint::{Image, SavedContainer, Shape};
use crate::config::Config;
use crate::dir::{Record, SandboxDir};
use crate::engine::{Machine, PlacedDisk, Plan, Prepared, Template};
use crate::guest::agent::{Agent, AgentError};
use crate::host::memory_policy::MemoryPolicy;
use crate::host::process::{KILL_TIMEOUT, Process};
use crate::host::timings::Timings;
use crate::network::Network;
use crate::sizing::Running;
use rvm_sys::fault_point;

/// How long a machine whose sockets have closed may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// The stage until the agent answers.
const BOOT: &str = "the boot of its kernel and agent";

/// The same of a machine that goes on from a checkpoint.
const RESTORE: &str = "the restore of its checkpoint";

/// A machine that this process owns, and its guest. Dropping it ends the machine.
pub struct Sandbox {
    guest: Arc<Guest>,
    /// The containers of the machine's checkpoint for which no process stands yet. Locked while the
    /// machine is saved, before the others.
    missing: Mutex<Vec<SavedContainer>>,
    // Only what saves the machine holds both of these locks, in this order.
    network: Mutex<LiveNetwork>,
    size: Mutex<LiveSize>,
    disks: Mutex<Slots>,
    machine: Machine,
    processes: Vec<Process>,
    /// What the machine may have been restored from, until its agent has answered.
    prepared: Prepared,
    /// What happens until its agent answers.
    stage: &'static str,
    shape: Shape,
    control: UnixListener,
}

/// What a machine is to have.
pub struct Requirements<'a> {
    /// What it is.
    pub plan: MachinePlan,
    /// The memory nodes of the host that its memory comes from.
    pub memory_policy: Option<&'a MemoryPolicy>,
    /// The control groups of its processes, where this process is in others.
    pub group: Option<&'a Cgroup>,
    /// Its network.
    pub network: Network,
    /// The disks that it had in its checkpoint.
    pub disks: Vec<PlacedDisk>,
}

impl Sandbox {
    /// Starts the processes of a machine; [`Sandbox::boot`] waits for its guest. What the directory
    /// shares must have been prepared.
    pub async fn start(
        dir: SandboxDir,
        wanted: Requirements<'_>,
        config: &Config,
        timings: &mut Timings,
    ) -> Result<Self, SandboxError> {
        let planned = wanted.plan;
        let (engine, running) = (planned.engine, planned.running);
        let image = planned.checkpoint.as_deref();
        let stage = if image.is_some() { RESTORE } else { BOOT };
        let saved = image.map(|image| image.manifest.cards.as_slice());
        let (network, nets) = LiveNetwork::first(wanted.network, engine.nic_limits, saved)?;
        timings.lap("prepare the network");
        fault_point!("machine.network").map_err(SandboxError::Record)?;
        let disk_slots = planned.disk_slots(nets.len());
        let shape = shape_of(image, running, nets.len(), disk_slots);
        let plan = Plan {
            size: running.start,
            max: running.max,
            memory_policy: wanted.memory_policy,
            group: wanted.group,
            config,
            dir: dir.path(),
            shared: &dir.shared(),
            console: &dir.console(),
            ports: dir.listen().map_err(SandboxError::Sockets)?,
            nets,
            disk_slots,
            rates: planned.rates,
            template: planned.prepared.template.clone(),
            checkpoint: image.map(|image| (image, wanted.disks)),
        };
        let machine = engine.start(plan);
        let machine = machine.map_err(|source| SandboxError::of_engine(engine, source))?;
        fault_point!("machine.started").map_err(SandboxError::Processes)?;
        let limit = config.start_timeout.unwrap_or(engine.start_timeout);
        let (record, processes) = record_processes(&dir, &machine, limit)?;
        timings.lap("start the machine's processes");

        let agent = match Agent::connect(&dir) {
            Ok(agent) => agent,
            Err(error) => {
                let template = planned.prepared.template.as_deref();
                return Err(explain(error, stage, &dir, &machine, template, timings).await);
            }
        };
        Ok(Self {
            control: dir.listen_as_owner().map_err(SandboxError::Sockets)?,
            missing: Mutex::new(containers_of(image)),
            network: Mutex::new(network),
            disks: Slots::new(disk_slots, &planned.rates.disk),
            size: Mutex::new(LiveSize::new(running, planned.bounds)),
            guest: Arc::new(Guest::new(dir, record, agent, machine.ended(), limit)),
            machine,
            processes,
            prepared: planned.prepared,
            stage,
            shape,
        })
    }

    /// Waits until the agent of the machine that was started answers, and gives the guest its
    /// time and its network.
    pub async fn boot(&mut self, timings: &mut Timings) -> Result<(), SandboxError> {
        let check = self.guest.check(self.stage, timings).await;
        let Prepared { template, notice } = std::mem::take(&mut self.prepared);
        if check.is_err() {
            blame(template.as_deref(), &self.machine);
        }
        let check = check?;
        if let Some(reason) = notice {
            tracing::warn!(
                "machines of this kind boot until the host does or rvm is upgraded, since no \
                 template can be made: {reason}"
            );
        }
        timings.lap("boot the guest");
        fault_point!("machine.booted").map_err(SandboxError::Record)?;
        for (part, nanoseconds) in boot_parts(self.machine.start_times(), &check, self.stage) {
            timings.part(part, nanoseconds);
        }
        self.set_clock(timings).await?;
        self.set_network_up(timings).await
    }

    /// The guest, which anybody may be given.
    pub fn guest(&self) -> &Arc<Guest> {
        &self.guest
    }

    /// The socket at which other processes make requests of the owner.
    pub fn control(&self) -> &UnixListener {
        &self.control
    }

    /// Tells that there is a container in the guest, none of whose programs has run if it is the
    /// first.
    pub fn has_container(&self) {
        self.machine.has_container();
    }

    pub(super) fn machine(&self) -> &Machine {
        &self.machine
    }

    pub(super) fn missing(&self) -> &Mutex<Vec<SavedContainer>> {
        &self.missing
    }

    pub(super) fn network(&self) -> &Mutex<LiveNetwork> {
        &self.network
    }

    pub(super) fn disks(&self) -> &Mutex<Slots> {
        &self.disks
    }

    /// What the machine was started with.
    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    pub(super) fn size(&self) -> &Mutex<LiveSize> {
        &self.size
    }

    /// Ends the machine at once, and returns when its processes have ended.
    pub async fn end(&self) -> io::Result<()> {
        let kill = |process: &Process| process.signal(Signal::KILL);
        self.processes.iter().try_for_each(kill)?;
        for process in &self.processes {
            if !process.ends_within(KILL_TIMEOUT).await? {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(())
    }
}

/// What a machine is started with: what the one of its checkpoint was, if it has one.
fn shape_of(image: Option<&Image>, running: Running, cards: usize, disk_slots: usize) -> Shape {
    let saved = image.map(|image| image.manifest.machine);
    saved.unwrap_or(Shape {
        start: running.start,
        max: running.max,
        cards_at_start: cards,
        disk_slots,
    })
}

fn containers_of(image: Option<&Image>) -> Vec<SavedContainer> {
    let containers = image.map(|image| image.manifest.containers());
    containers.into_iter().flatten().cloned().collect()
}

/// What it means that nobody listens at the agent's socket: the machine's end explains more than
/// the error.
async fn explain(
    error: AgentError,
    stage: &'static str,
    dir: &SandboxDir,
    machine: &Machine,
    template: Option<&Template>,
    timings: &Timings,
) -> SandboxError {
    let Ok(end) = tokio::time::timeout(END_TIMEOUT, machine.ended().wait()).await else {
        return error.into();
    };
    blame(template, machine);
    let (after, engine) = (timings.elapsed(), machine.engine().kind);
    GuestFailure::new(stage, after, engine, end.to_string(), &dir.console()).into()
}

/// What the time until the agent answered was spent on, in nanoseconds. The guest's own figures are
/// those of its boot, which a template's guests had long before.
fn boot_parts(
    vmm: Option<StartTimes>,
    guest: &CheckResponse,
    stage: &'static str,
) -> Vec<(&'static str, u64)> {
    let mut parts = Vec::new();
    let restored = vmm.as_ref().is_some_and(|times| times.restored);
    if let Some(times) = vmm {
        let load = match restored {
            true if stage == RESTORE => "restore the checkpoint",
            true => "restore the template",
            false => "load the kernel",
        };
        parts.extend([
            ("enter the jail", times.jail_ns),
            ("make the machine", times.machine_ns),
            (load, times.kernel_ns),
            ("start the threads", times.threads_ns),
        ]);
    }
    if !restored {
        let agent_ns = guest.ready_ns.saturating_sub(guest.init_started_ns);
        parts.push(("guest kernel", guest.init_started_ns));
        parts.push(("guest agent", agent_ns));
    }
    parts
}

/// Removes the template of a machine whose guest has not come up, unless the guest booted: others
/// would not come up from it either.
fn blame(template: Option<&Template>, machine: &Machine) {
    let has_booted = machine.start_times().is_some_and(|times| !times.restored);
    if let Some(template) = template
        && !has_booted
    {
        tracing::warn!("the machine's template is removed, since no guest came up from it");
        template.discard("no guest came up from the last ones");
    }
}

/// Writes down which processes run the machine, and opens them.
fn record_processes(
    dir: &SandboxDir,
    machine: &Machine,
    start_timeout: Duration,
) -> Result<(Record, Vec<Process>), SandboxError> {
    let ids = machine.processes().map_err(SandboxError::Processes)?;
    fault_point!("machine.found").map_err(SandboxError::Processes)?;
    // The machine itself reports one that has ended already.
    let processes = ids.iter().filter_map(|id| id.open().transpose()).collect();
    let processes = Result::map_err(processes, SandboxError::Processes)?;
    let record = Record::new(ids, machine.engine().kind, start_timeout);
    dir.write_record(&record).map_err(SandboxError::Processes)?;
    Ok((record, processes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_of_a_template_is_no_part_of_a_start() {
        let guest = CheckResponse {
            init_started_ns: 50,
            ready_ns: 60,
            ..Default::default()
        };
        let names = |vmm| -> Vec<_> {
            let parts = boot_parts(vmm, &guest, BOOT).into_iter();
            parts.map(|(name, _)| name).collect()
        };
        let times = |restored| {
            Some(StartTimes {
                jail_ns: 1,
                machine_ns: 2,
                kernel_ns: 3,
                threads_ns: 4,
                restored,
            })
        };
        let jail = ["enter the jail", "make the machine"];
        let threads = "start the threads";
        let own = ["guest kernel", "guest agent"];
        assert_eq!(names(None), own);
        let cold = [&jail[..], &["load the kernel", threads], &own].concat();
        assert_eq!(names(times(false)), cold);
        let restored = [&jail[..], &["restore the template", threads]].concat();
        assert_eq!(names(times(true)), restored);
    }
}
