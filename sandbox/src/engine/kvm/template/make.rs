//! Making a template: a machine boots until its agent is ready, and rvm-vmm saves it.

use std::time::{Duration, Instant};

use rvm_protocol::vmm::{Event, TemplateConfig, TemplateFiles};

use super::TemplateError;
use super::key::Kind;
use super::store::{CONSOLE, Draft, Lock, MEMORY, SHARED, STATE, Store};
use crate::config::Config;
use crate::engine::console_tail;
use crate::engine::exit::describe_exit;
use crate::engine::fds::Fds;
use crate::engine::files::check_host_memory;
use crate::engine::kvm::control::{Control, machine_end};
use crate::engine::kvm::machine_config;
use crate::engine::spawn::Vmm;

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

/// Makes the template of this kind, puts it into its place and removes those that exceed the
/// configuration's bound. Called within a tokio runtime, on a thread that outlives this. When it is
/// given up, nothing is left.
pub(super) async fn make(
    store: &Store,
    kind: &Kind,
    config: &Config,
    limit: Duration,
    lock: &Lock,
) -> Result<(), TemplateError> {
    let failed = |action| move |source| TemplateError::Io { action, source };
    let draft = Draft::new(store, kind, lock).map_err(failed("make its directory"))?;
    let mut fds = Fds::default();
    let (shared, console) = (draft.path(SHARED), draft.path(CONSOLE));
    let machine = machine_config(config, kind.key.shape, &shared, &console, &mut fds)?;
    let mut create = |name| {
        let file = draft.create_file(name).map_err(failed("make its files"));
        file.map(|file| fds.add(file))
    };
    let files = TemplateFiles {
        state: create(STATE)?,
        memory: create(MEMORY)?,
    };
    let config_of_vmm = TemplateConfig { machine, files };
    let vmm = Vmm::start(
        &config.vmm,
        c"template",
        None,
        &config_of_vmm,
        &fds.borrow(),
    );
    let mut vmm = vmm.map_err(crate::engine::EngineError::from)?;
    let begun = Instant::now();
    let saved = tokio::time::timeout(limit, saved(&mut vmm)).await;
    // It has nothing more to do, and holds the directory.
    drop(vmm);
    let how = match saved {
        Ok(saved) => saved?,
        Err(_) => Some(format!("it was not ready within {} s", limit.as_secs())),
    };
    if let Some(how) = how {
        return Err(TemplateError::Machine {
            after: begun.elapsed(),
            how,
            console: console_tail(&console),
        });
    }
    draft.publish().map_err(failed("put it into its place"))?;
    let evicted = store.evict(lock, config.max_templates);
    evicted.map_err(failed("remove those that were not used for longest"))
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
