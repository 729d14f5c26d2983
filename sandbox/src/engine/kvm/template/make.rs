//! Making a template: a machine boots until its agent is ready, and rvm-vmm saves it.

use std::fs::File;
use std::time::{Duration, Instant};

use rvm_protocol::vmm::{Event, TemplateConfig, TemplateFiles};

use super::TemplateError;
use super::key::Kind;
use super::store::{CONSOLE, Draft, Lock, MEMORY, SHARED, STATE, Store};
use crate::config::Config;
use crate::engine::exit::describe_exit;
use crate::engine::fds::Fds;
use crate::engine::files::check_host_memory;
use crate::engine::kvm::control::{Control, machine_end};
use crate::engine::kvm::machine_config;
use crate::engine::spawn::Vmm;
use crate::engine::{EngineError, console_tail};
use rvm_sys::fault_point;

/// The room that a template needs, in MiB: what a guest touches until its agent is ready, and half
/// as much again.
const ROOM_MIB: u64 = 128;

/// One part in this many of a machine's memory is touched at boot as well: its page structures.
const PAGE_STRUCTURES: u64 = 64;

/// The most events of an rvm-vmm that makes a template. It has one to tell.
const MAX_EVENTS: usize = 16;

/// Fails if the host has no memory for the machine, or the store no room for what it touches.
pub(super) fn check_room(store: &Store, kind: &Kind) -> Result<(), TemplateError> {
    let memory_mib = kind.key.shape.memory_mib;
    check_host_memory(memory_mib)?;
    let needed = ROOM_MIB + memory_mib / PAGE_STRUCTURES;
    match store.room_mib() {
        Ok(free) if free >= needed => Ok(()),
        Ok(free) => Err(TemplateError::Room { needed, free }),
        Err(source) => Err(TemplateError::Io {
            action: "find out the room of its directory",
            source,
        }),
    }
}

/// Opens the device of KVM.
pub(super) type OpenKvm = fn() -> Result<File, EngineError>;

/// What makes templates.
pub(super) struct Maker<'a> {
    pub(super) config: &'a Config,
    pub(super) open_kvm: OpenKvm,
    /// How long a machine may take until its agent is ready and it is saved.
    pub(super) limit: Duration,
}

impl Maker<'_> {
    /// Makes the template of this kind, puts it into its place and removes those that exceed the
    /// configuration's bound. Called within a tokio runtime, on a thread that outlives this. When
    /// it is given up, nothing is left.
    pub(super) async fn make(
        &self,
        store: &Store,
        kind: &Kind,
        lock: &Lock,
    ) -> Result<(), TemplateError> {
        let failed = |action| move |source| TemplateError::Io { action, source };
        let draft = Draft::new(store, kind, lock).map_err(failed("make its directory"))?;
        let (shared, console) = (draft.path(SHARED), draft.path(CONSOLE));
        let mut fds = Fds::default();
        let (kvm, shape) = ((self.open_kvm)()?, kind.key.shape);
        let places = (shared.as_path(), console.as_path());
        let machine = machine_config(kvm, self.config, shape, places, &mut fds)?;
        let mut create = |name| {
            let file = draft.create_file(name).map_err(failed("make its files"));
            file.map(|file| fds.add(file))
        };
        let files = TemplateFiles {
            state: create(STATE)?,
            memory: create(MEMORY)?,
        };
        let begun = Instant::now();
        fault_point!("template.made").map_err(failed("make its files"))?;
        let failure = self.save(&TemplateConfig { machine, files }, &fds).await?;
        if let Some(how) = failure {
            return Err(TemplateError::Machine {
                after: begun.elapsed(),
                how,
                console: console_tail(&console),
            });
        }
        fault_point!("template.saved").map_err(failed("put it into its place"))?;
        draft.publish().map_err(failed("put it into its place"))?;
        store.evict(lock, self.config.max_templates);
        Ok(())
    }

    /// Has rvm-vmm boot and save a machine, after which rvm-vmm has ended. Returns what happened
    /// instead, if it has not.
    async fn save(
        &self,
        config: &TemplateConfig,
        fds: &Fds,
    ) -> Result<Option<String>, TemplateError> {
        let vmm = Vmm::start(&self.config.vmm, c"template", None, config, &fds.borrow());
        let mut vmm = vmm.map_err(EngineError::from)?;
        match tokio::time::timeout(self.limit, saved(&mut vmm)).await {
            Ok(saved) => saved,
            Err(_) => {
                let limit = self.limit.as_secs();
                Ok(Some(format!("it was not ready within {limit} s")))
            }
        }
    }
}

/// Waits until rvm-vmm has saved the machine. Returns what happened instead, if it has not.
async fn saved(vmm: &mut Vmm) -> Result<Option<String>, TemplateError> {
    let control = Control::of(vmm)?;
    for _ in 0..MAX_EVENTS {
        match control.event().await {
            Ok(Some(Event::TemplateSaved)) => return Ok(None),
            Ok(Some(Event::Stopped(reason))) => return Ok(Some(machine_end(reason).to_string())),
            // It also tells when the machine starts.
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => break,
        }
    }
    // It may still be there.
    control.ends_soon().await;
    let _ = vmm.kill();
    let status = vmm.exit_status();
    Ok(Some(describe_exit("rvm-vmm", &status, &vmm.last_lines())))
}
