//! A running machine: what its engine does for it, the task that drives it, and its end.
//!
//! ```text
//!   owner ── Machine ──requests──> Vm <──drives── task ──end──> MachineEnded, any number of them
//! ```

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;

use rvm_protocol::vmm::{DiskConfig, StartTimes};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::{Engine, EngineError};
use crate::checkpoint::NewImage;
use crate::host::process::ProcessId;
use crate::network::{Mac, NicBackend};
use crate::sizing::Size;
use rvm_sys::readiness::Readable;

/// Why a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEnd {
    /// The guest switched it off.
    PowerOff,
    /// The guest reset itself: its kernel panicked, or worse. With the place, where the engine
    /// tells.
    GuestReset(Option<String>),
    /// It is in a checkpoint.
    Saved,
    /// The process that ran it failed, or was killed. In one line.
    Failed(String),
}

impl fmt::Display for MachineEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest switched its machine off"),
            Self::GuestReset(None) => f.write_str("the guest crashed"),
            Self::GuestReset(Some(place)) => write!(f, "the guest crashed ({place})"),
            Self::Saved => f.write_str("the machine is in a checkpoint"),
            Self::Failed(reason) => f.write_str(reason),
        }
    }
}

/// A device that is plugged into a running machine.
pub enum Plug<'a> {
    /// A network card.
    Net(NicBackend),
    /// A disk.
    Disk {
        /// An empty slot for disks.
        slot: usize,
        /// A block device or image file.
        file: &'a File,
        /// What the guest sees of it.
        disk: DiskConfig,
    },
}

/// A device that is unplugged.
#[derive(Clone, Copy, Debug)]
pub enum Unplug {
    /// The network card with this address.
    Net(Mac),
    /// The disk in this slot.
    Disk(usize),
}

/// What is done for checkpoints.
pub enum Save<'a> {
    /// The machine is written to a checkpoint, and ends; or goes on, and is written meanwhile.
    Write {
        /// The files.
        image: &'a NewImage,
        /// Whether it goes on.
        go_on: bool,
    },
    /// The machine has gone on: waits until it is written.
    Finish,
    /// The machine has been restored, and programs of the host stand for all of its containers:
    /// their files are opened as they were, and streams that nobody has claimed are reset.
    Adopted,
}

/// What an engine does for a machine that it runs. Dropping it ends the machine.
#[async_trait::async_trait]
pub trait Vm: Send + Sync {
    /// The processes that run the machine.
    fn processes(&self) -> io::Result<Vec<ProcessId>>;

    /// Receives what the machine's processes report until they end, and returns how they did. One
    /// task calls this, once; the requests below are answered while it runs.
    async fn drive(&self) -> MachineEnd;

    /// Where the engine's own time went during the start, if it has reported that.
    fn start_times(&self) -> Option<StartTimes>;

    /// Tells that there is a container in the guest, none of whose programs has run if it is the
    /// first.
    fn has_container(&self) {}

    /// Plugs a device in, of a kind that the engine's descriptor allows. The guest's driver finds
    /// it later.
    async fn plug(&self, device: Plug<'_>) -> Result<(), EngineError>;

    /// Unplugs a device that the guest no longer uses.
    async fn unplug(&self, device: Unplug) -> Result<(), EngineError>;

    /// Begins to change the machine's size, within the bounds of its plan. The guest follows later.
    async fn resize(&self, size: Size) -> Result<(), EngineError>;

    /// Waits until the guest has the memory that the last [`Vm::resize`] asked for, which may be
    /// never. False if this machine cannot have its guest give memory back.
    async fn resized(&self, size: Size) -> bool;

    /// Saves the machine, if the engine's descriptor allows that.
    async fn save(&self, step: Save<'_>) -> Result<(), EngineError>;

    /// Kills the machine's processes and waits for their ends.
    fn kill(&self) -> io::Result<()>;
}

/// A running machine, for its one owner. Dropping it ends it.
pub struct Machine {
    engine: &'static Engine,
    vm: Arc<dyn Vm>,
    ended: MachineEnded,
    driver: AbortHandle,
}

impl Machine {
    /// Gives a machine the task that drives it.
    pub(super) fn drive(engine: &'static Engine, vm: Box<dyn Vm>) -> Self {
        let vm: Arc<dyn Vm> = vm.into();
        let (sender, ended) = watch::channel(None);
        let driven = Arc::clone(&vm);
        let driver = tokio::spawn(async move {
            sender.send_replace(Some(driven.drive().await));
        });
        Self {
            engine,
            vm,
            ended: MachineEnded(ended),
            driver: driver.abort_handle(),
        }
    }

    /// See [`Vm::has_container`].
    pub(crate) fn has_container(&self) {
        self.vm.has_container();
    }

    /// The engine that runs it.
    pub fn engine(&self) -> &'static Engine {
        self.engine
    }

    /// Its end, to wait for.
    pub fn ended(&self) -> MachineEnded {
        self.ended.clone()
    }

    /// See [`Vm::processes`].
    pub fn processes(&self) -> io::Result<Vec<ProcessId>> {
        self.vm.processes()
    }

    /// See [`Vm::start_times`].
    pub fn start_times(&self) -> Option<StartTimes> {
        self.vm.start_times()
    }

    /// Plugs a network card in, if the engine can. The guest's driver finds it later.
    pub async fn plug_net(&self, card: NicBackend) -> Result<(), EngineError> {
        self.engine.net_hotplug.map_err(EngineError::Unsupported)?;
        self.vm.plug(Plug::Net(card)).await
    }

    /// Unplugs a network card that the guest no longer uses.
    pub async fn unplug_net(&self, mac: Mac) -> Result<(), EngineError> {
        self.engine.net_hotplug.map_err(EngineError::Unsupported)?;
        self.vm.unplug(Unplug::Net(mac)).await
    }

    /// Plugs a disk into an empty slot, if the engine can: one of [`Engine::disk_slots`] from
    /// [`rvm_protocol::DISK_SLOT`] on.
    pub async fn plug_disk(
        &self,
        slot: usize,
        file: &File,
        disk: DiskConfig,
    ) -> Result<(), EngineError> {
        self.engine.disk_hotplug.map_err(EngineError::Unsupported)?;
        self.vm.plug(Plug::Disk { slot, file, disk }).await
    }

    /// Unplugs the disk in a slot.
    pub async fn unplug_disk(&self, slot: usize) -> Result<(), EngineError> {
        self.engine.disk_hotplug.map_err(EngineError::Unsupported)?;
        self.vm.unplug(Unplug::Disk(slot)).await
    }

    /// See [`Vm::save`].
    pub async fn save(&self, step: Save<'_>) -> Result<(), EngineError> {
        self.engine.checkpoints.map_err(EngineError::Unsupported)?;
        self.vm.save(step).await
    }

    /// See [`Vm::resize`].
    pub async fn resize(&self, size: Size) -> Result<(), EngineError> {
        self.vm.resize(size).await
    }

    /// See [`Vm::resized`].
    pub async fn resized(&self, size: Size) -> bool {
        self.vm.resized(size).await
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.driver.abort();
        // Here, because the aborted task lets go of the machine only when its runtime gets to it.
        if let Err(error) = self.vm.kill() {
            tracing::debug!("the machine's processes could not be waited for: {error}");
        }
    }
}

/// The end of a machine, to wait for. Each clone waits on its own.
#[derive(Clone, Debug)]
pub struct MachineEnded(watch::Receiver<Option<MachineEnd>>);

impl MachineEnded {
    /// The end of a machine that another process owns: that of the process which runs it. Called
    /// within a tokio runtime.
    pub fn of_process(pidfd: Readable) -> Self {
        let (sender, ended) = watch::channel(None);
        tokio::spawn(async move {
            // Waiting fails only if the runtime is being shut down.
            let _ = pidfd.read(|_| Ok(())).await;
            let reason = "the sandbox has ended that the container was in";
            sender.send_replace(Some(MachineEnd::Failed(reason.to_owned())));
        });
        Self(ended)
    }

    /// Returns when the machine has ended. Cancel safe.
    pub async fn wait(&self) -> MachineEnd {
        let mut ended = self.0.clone();
        let end = ended.wait_for(Option::is_some).await;
        match end.as_deref() {
            Ok(Some(end)) => end.clone(),
            // The driver is gone without an end to report.
            _ => MachineEnd::Failed("the machine was ended by its owner".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EngineKind;
    use crate::engine;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::sync::Notify;

    /// A machine that ends when it is told to, and notes that it was killed.
    #[derive(Default)]
    struct Fake {
        end: Notify,
        killed: AtomicBool,
    }

    #[async_trait::async_trait]
    impl Vm for Arc<Fake> {
        fn processes(&self) -> io::Result<Vec<ProcessId>> {
            Ok(Vec::new())
        }
        async fn drive(&self) -> MachineEnd {
            self.end.notified().await;
            MachineEnd::PowerOff
        }
        fn start_times(&self) -> Option<StartTimes> {
            None
        }
        async fn plug(&self, _: Plug<'_>) -> Result<(), EngineError> {
            Ok(())
        }
        async fn unplug(&self, _: Unplug) -> Result<(), EngineError> {
            Ok(())
        }
        async fn resize(&self, _: Size) -> Result<(), EngineError> {
            Ok(())
        }
        async fn resized(&self, _: Size) -> bool {
            true
        }
        async fn save(&self, _: Save<'_>) -> Result<(), EngineError> {
            Ok(())
        }
        fn kill(&self) -> io::Result<()> {
            self.killed.store(true, Ordering::Relaxed);
            Ok(())
        }
    }

    fn run<T>(test: impl Future<Output = T>) -> T {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.build().unwrap().block_on(test)
    }

    fn start() -> (Arc<Fake>, Machine) {
        let fake = Arc::new(Fake::default());
        let vm = Box::new(Arc::clone(&fake));
        (fake, Machine::drive(engine::of(EngineKind::Qemu), vm))
    }

    #[test]
    fn everybody_who_waits_learns_of_the_end_now_or_later() {
        run(async {
            let (fake, machine) = start();
            let early = machine.ended();
            let waiting = tokio::spawn(async move { early.wait().await });
            fake.end.notify_one();
            assert_eq!(waiting.await.unwrap(), MachineEnd::PowerOff);
            assert_eq!(machine.ended().wait().await, MachineEnd::PowerOff);
        });
    }

    #[test]
    fn a_machine_that_is_dropped_is_killed_at_once_and_nobody_waits_for_ever() {
        run(async {
            let (fake, machine) = start();
            let ended = machine.ended();
            drop(machine);
            assert!(fake.killed.load(Ordering::Relaxed));
            let MachineEnd::Failed(reason) = ended.wait().await else {
                panic!("ended by itself");
            };
            assert!(reason.contains("owner"), "{reason}");
        });
    }

    #[test]
    fn what_the_engine_cannot_do_is_refused_in_its_words() {
        run(async {
            let (_fake, machine) = start();
            let error = machine.unplug_net(Mac::default()).await.unwrap_err();
            let words = machine.engine().net_hotplug.unwrap_err();
            assert_eq!(error.to_string(), words);
        });
    }
}
