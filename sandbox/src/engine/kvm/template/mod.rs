//! Templates: machines as they were when their agents were ready, from which others are restored.
//!
//! ```text
//!   prepare ──> find ──────────────────────────────> Template ──> kvm::start
//!                 └─> lock ──> make ──> publish ───────┘ │
//!                       └─> none: the machine boots <────┴── it is refused, or no guest comes up
//! ```
//!
//! [`Templates::prepare`] is called before the calling process enters a container's control groups:
//! the pages of a file on a tmpfs are charged to the groups of the process that writes them.

#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "serves tests and a fuzzer alone")]
mod hostile;
mod key;
mod make;
mod store;
mod written;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{ENGINE, cmdline, net_slots, open_kvm};
use crate::config::Config;
use crate::engine::EngineError;
use crate::host::timings::Timings;
use crate::sizing::Size;
use key::{Key, Kind, is_id};
use make::{Maker, OpenKvm};
use rvm_sys::error_chain::chain;
use store::{Lock, Store};

#[cfg(any(test, feature = "fuzzing"))]
pub use hostile::read_any_templates;
pub(super) use key::Shape;
pub use store::Template;

/// How long after its last use a template is not removed for the sake of another. Hosts with more
/// kinds of machines than templates would else make one at each start, which costs more than a
/// boot.
const IN_USE: Duration = Duration::from_secs(300);

/// A template could not be made, listed or removed.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The directory that the configuration names cannot be used.
    #[error("cannot use {} (template_dir in rvm's configuration)", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// From a system call, or who can write it.
        #[source]
        source: io::Error,
    },
    /// A system call on the template's files failed.
    #[error("cannot {action}")]
    Io {
        /// What was tried, in the infinitive.
        action: &'static str,
        /// From the call.
        #[source]
        source: io::Error,
    },
    /// The file system of the directory is too full.
    #[error(
        "the file system of template_dir has {free} MiB free, and a template needs up to {needed}"
    )]
    Room {
        /// In MiB.
        needed: u64,
        /// In MiB.
        free: u64,
    },
    /// The machine's files cannot be opened, its process not started, or the host has too little
    /// memory for it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The machine did not come up, or could not be saved.
    #[error("the machine to be saved failed after {after:.1?}: {how}{console}")]
    Machine {
        /// Since its start.
        after: Duration,
        /// What happened to it.
        how: String,
        /// The end of its console, with a heading.
        console: String,
    },
    /// The template was made, and is none.
    #[error("the template that was made cannot be used")]
    Unusable(#[source] io::Error),
    /// There is no template of this name.
    #[error("there is no template {0}")]
    NotFound(String),
}

/// A template, for a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateInfo {
    /// The name of its directory.
    pub id: String,
    /// The size of its machines.
    pub size: Size,
    /// The slots of its machines for network cards.
    pub net_slots: usize,
    /// The slots of its machines for disks.
    pub disk_slots: usize,
    /// What its files take of the host, in bytes.
    pub bytes: u64,
    /// When it was made.
    pub made: SystemTime,
    /// When a machine was last started from it.
    pub used: SystemTime,
    /// Whether machines can still be started from it: they boot from the files that it booted
    /// from.
    pub is_current: bool,
}

/// A template that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created {
    /// It was made.
    Made(String),
    /// It was there.
    Existed(String),
}

/// What is known of a machine's template before the machine starts.
#[derive(Default)]
pub struct Prepared {
    /// The template that it is to be restored from.
    pub template: Option<Arc<Template>>,
    /// Why none could be made, to be told if the machine then boots: one that does not boot says
    /// the same better.
    pub notice: Option<String>,
}

/// The templates of a configuration.
pub struct Templates<'a> {
    config: &'a Config,
    /// A test has none: not every host has KVM that builds rvm.
    open_kvm: OpenKvm,
}

impl Prepared {
    fn with(template: Template) -> Self {
        Self {
            template: Some(Arc::new(template)),
            notice: None,
        }
    }
}

impl<'a> Templates<'a> {
    pub(crate) fn new(config: &'a Config) -> Self {
        Self { config, open_kvm }
    }

    /// The template for a machine of this size that can become `max` and has so many slots for
    /// disks. Makes it if there is none, which takes as long as a guest's start may at most.
    /// Nothing if that fails, or while another process makes one.
    ///
    /// Called within a tokio runtime, on a thread that lives as long as this, outside of any
    /// container's control groups.
    pub async fn prepare(
        &self,
        size: Size,
        max: Size,
        disk_slots: usize,
        timings: &mut Timings,
    ) -> Prepared {
        let found = match self.kind(size, max, disk_slots) {
            Ok(kind) => self.find_or_make(&kind, timings).await,
            Err(error) => Err(error),
        };
        match found {
            Ok(prepared) => prepared,
            Err(error) => {
                tracing::debug!("the machine boots, without a template: {}", chain(&error));
                Prepared::default()
            }
        }
    }

    async fn find_or_make(
        &self,
        kind: &Kind,
        timings: &mut Timings,
    ) -> Result<Prepared, TemplateError> {
        let store = self.create_store()?;
        if let Some(template) = self.find(&store, kind) {
            return Ok(Prepared::with(template));
        }
        if let Some(reason) = store.given_up(kind) {
            tracing::debug!("no template {} is made any more: {reason}", kind.id);
            return Ok(Prepared::default());
        }
        let Some(lock) = store.lock(false).map_err(io("lock its directory"))? else {
            tracing::debug!("another process makes a template");
            return Ok(Prepared::default());
        };
        // It may have been made before the lock was taken.
        if let Some(template) = self.find(&store, kind) {
            return Ok(Prepared::with(template));
        }
        store.sweep(&lock);
        if self.is_crowded(&store) {
            tracing::debug!("no template {} is made: all others are in use", kind.id);
            return Ok(Prepared::default());
        }
        make::check_room(&store, kind)?;
        let made = self.make(&store, kind, &lock).await;
        timings.lap("make the template");
        match made {
            Ok(template) => Ok(Prepared::with(template)),
            Err(error @ (TemplateError::Machine { .. } | TemplateError::Unusable(_))) => {
                let reason = chain(&error).to_string();
                store.give_up(kind, &reason).map_err(io("note that"))?;
                Ok(Prepared {
                    template: None,
                    notice: Some(reason),
                })
            }
            // What the machine's own start will meet as well, or what may pass.
            Err(error) => Err(error),
        }
    }

    /// Whether there are as many templates as there may be, all used lately.
    fn is_crowded(&self, store: &Store) -> bool {
        let max = usize::try_from(self.config.max_templates).unwrap_or(usize::MAX);
        let entries = store.entries().unwrap_or_default();
        let next = entries.get(max.saturating_sub(1));
        // A time that is yet to come is that of a clock that was set back.
        next.is_some_and(|entry| entry.used.elapsed().is_ok_and(|age| age < IN_USE))
    }

    /// Finds a template that is to be used.
    fn find(&self, store: &Store, kind: &Kind) -> Option<Template> {
        match store.find(kind) {
            Ok(template) => {
                template.touch();
                return Some(template);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let place = self.config.template_dir.join(&kind.id);
                tracing::debug!("{} is no template: {error}", place.display());
            }
        }
        None
    }

    /// Makes a template, and opens it: before Linux 5.12 that fails.
    async fn make(
        &self,
        store: &Store,
        kind: &Kind,
        lock: &Lock,
    ) -> Result<Template, TemplateError> {
        self.maker().make(store, kind, lock).await?;
        store.find(kind).map_err(TemplateError::Unusable)
    }

    /// Makes the template for such a machine, unless there is one. Waits for another process that
    /// makes one. Called as [`Self::prepare`].
    pub async fn create(
        &self,
        size: Size,
        max: Size,
        disk_slots: usize,
    ) -> Result<Created, TemplateError> {
        let kind = self.kind(size, max, disk_slots)?;
        let store = self.create_store()?;
        let lock = store.lock(true).map_err(io("lock its directory"))?;
        // None is only where nobody waits.
        let Some(lock) = lock else {
            return Err(io("lock its directory")(io::ErrorKind::WouldBlock.into()));
        };
        if self.find(&store, &kind).is_some() {
            return Ok(Created::Existed(kind.id));
        }
        store.sweep(&lock);
        make::check_room(&store, &kind)?;
        self.make(&store, &kind, &lock).await?;
        store.forgive(&kind).map_err(io("remove what was noted"))?;
        Ok(Created::Made(kind.id))
    }

    /// The templates, those used last first.
    pub fn list(&self) -> Result<Vec<TemplateInfo>, TemplateError> {
        let Some(store) = self.store()? else {
            return Ok(Vec::new());
        };
        let entries = store.entries().map_err(io("list the templates"))?;
        Ok(entries
            .into_iter()
            .map(|entry| TemplateInfo {
                is_current: entry.key.is_current(),
                size: entry.key.shape.size(),
                net_slots: entry.key.shape.net_slots,
                disk_slots: entry.key.shape.disk_slots,
                id: entry.id,
                bytes: entry.size,
                made: entry.made,
                used: entry.used,
            })
            .collect())
    }

    /// Removes a template. Machines that were started from it keep running.
    pub fn remove(&self, id: &str) -> Result<(), TemplateError> {
        let removed = match self.store()? {
            Some(store) if is_id(id) => store.remove(id).map_err(io("remove it"))?,
            _ => false,
        };
        match removed {
            true => Ok(()),
            false => Err(TemplateError::NotFound(id.to_owned())),
        }
    }

    /// Removes all templates, and what was noted of those that failed.
    pub fn remove_all(&self) -> Result<(), TemplateError> {
        match self.store()? {
            Some(store) => store.remove_all().map_err(io("remove them")),
            None => Ok(()),
        }
    }

    fn kind(&self, size: Size, max: Size, disk_slots: usize) -> Result<Kind, TemplateError> {
        let shape = Shape::new(size, max, net_slots(0), disk_slots);
        let kind = Key::of(self.config, cmdline(self.config), shape).and_then(Kind::new);
        kind.map_err(io("find the files that the machine boots from"))
    }

    fn create_store(&self) -> Result<Store, TemplateError> {
        Store::create(&self.config.template_dir).map_err(|source| self.unusable(source))
    }

    /// The store, if there is one.
    fn store(&self) -> Result<Option<Store>, TemplateError> {
        match Store::open(&self.config.template_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some).map_err(|source| self.unusable(source)),
        }
    }

    fn unusable(&self, source: io::Error) -> TemplateError {
        TemplateError::Directory {
            path: self.config.template_dir.clone(),
            source,
        }
    }

    fn maker(&self) -> Maker<'a> {
        Maker {
            config: self.config,
            open_kvm: self.open_kvm,
            limit: self.config.start_timeout.unwrap_or(ENGINE.start_timeout),
        }
    }
}

fn io(action: &'static str) -> impl FnOnce(io::Error) -> TemplateError {
    move |source| TemplateError::Io { action, source }
}
