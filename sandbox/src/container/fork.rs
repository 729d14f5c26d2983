//! Copies of a container that runs: an image of its machine, and a bundle for each, with files of
//! the same moment.
//!
//! ```text
//!   the container stands still ──> picture of its memory ──> copy of its root ──> it goes on
//!        ──> the image is whole ──> more copies of the root ──> each bundle is put in its place
//! ```
//!
//! What is being made is in a directory that goes with this process and with the container's
//! monitor. The root is copied after the picture is taken: what the guest's kernel writes of the
//! frozen processes' changes until then is in both, and is written by the copy once more.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rvm_protocol::ContainerId;
use serde_json::Value;

use super::lifecycle::{LifecycleError, failed, state_to_save};
use crate::control::{self, Forking};
use crate::host::tree_copy;
use crate::spec::{Bundle, CONFIG_FILE, copied};
use crate::state::{Container, State, StateError, Store};

/// Copies that are to be made of a container.
pub struct Plan {
    container: Container,
    state: State,
    /// The directory that has the bundles.
    dir: PathBuf,
    copies: Vec<Wanted>,
    /// Whether the root is copied for the bundles that are made.
    has_own_root: bool,
}

struct Wanted {
    id: ContainerId,
    /// config.json of a bundle that is not there and is to be made.
    config: Option<Value>,
}

/// An image, and bundles, from which the copies can be started. Dropping it removes the image, and
/// the bundles that are not in their places.
pub struct Copies {
    forking: Forking,
    plan: Plan,
}

/// One of them.
pub struct Copy<'a> {
    copies: &'a Copies,
    wanted: &'a Wanted,
}

impl Plan {
    /// Checks whether there can be copies of a container with these ids. Those whose bundle is not
    /// in the directory `bundles` under their id get one there.
    pub fn new(
        store: &Store,
        id: &str,
        bundles: &Path,
        ids: &[String],
    ) -> Result<Self, LifecycleError> {
        let ids = ids.iter().map(ContainerId::new);
        let ids = ids
            .collect::<Result<Vec<_>, _>>()
            .map_err(StateError::from)?;
        let container = store.open(id)?;
        let state = state_to_save(&container)?;
        let at = bundles.display();
        let dir = bundles.canonicalize();
        let dir = dir.map_err(failed(format!("find the bundles in {at}")))?;
        let mut copies = Vec::<Wanted>::new();
        for id in ids {
            let is_known = copies.iter().any(|copy| copy.id == id);
            if is_known || store.open(id.as_str()).is_ok() {
                return Err(StateError::Exists(id).into());
            }
            copies.push(Wanted { id, config: None });
        }
        let mut plan = Self {
            container,
            state,
            dir,
            copies,
            has_own_root: false,
        };
        plan.check_bundles()?;
        Ok(plan)
    }

    /// Reads the bundles that are there, and the one of the container if others are to be made.
    fn check_bundles(&mut self) -> Result<(), LifecycleError> {
        let mut first = None;
        for copy in &mut self.copies {
            let dir = self.dir.join(copy.id.as_str());
            if dir.symlink_metadata().is_ok() {
                Bundle::load(&dir)?;
                continue;
            }
            let config = match &first {
                None => first.insert(first_config(&self.state)?),
                Some(config) => config,
            };
            let mut config = config.clone();
            let id = copy.id.as_str();
            copied::adapt(&mut config, &self.state.bundle, &self.state.rootfs, id);
            copy.config = Some(config);
        }
        let root = first.as_ref().and_then(|config| config["root"].as_object());
        self.has_own_root = root.is_some_and(|root| !copied::is_read_only(root));
        if self.has_own_root && self.dir.starts_with(&self.state.rootfs) {
            let path = self.dir.display();
            let inside =
                format!("the bundles in {path} would be inside of the root that is copied");
            return Err(LifecycleError::FailedPrecondition(inside));
        }
        Ok(())
    }

    /// Whether the container has a terminal, and so do its copies.
    pub fn has_terminal(&self) -> bool {
        self.state.terminal
    }

    /// Makes the image and the bundles. The container stands still while its root is copied, once.
    pub fn carry_out(self) -> Result<Copies, LifecycleError> {
        let fork = control::Fork {
            id: self.container.id().clone(),
            scratch: unused(&self.dir),
        };
        let sandbox = self.container.sandbox(&self.state)?;
        let forking = Forking::begin(&sandbox, fork)?;
        let mut copies = Copies {
            forking,
            plan: self,
        };
        let wanted = copies.plan.copies.iter();
        let mut missing = wanted.filter(|copy| copy.config.is_some());
        let first = missing.next();
        if let Some(first) = first {
            copies.make_bundle(first, &copies.plan.state.rootfs)?;
        }
        copies.forking.go_on()?;
        if let Some(first) = first {
            let root = copies.scratch_of(first).join(copied::ROOTFS);
            missing.try_for_each(|copy| copies.make_bundle(copy, &root))?;
        }
        Ok(copies)
    }
}

/// A path in a directory for this process alone, at which nothing is.
fn unused(dir: &Path) -> PathBuf {
    let mut path = dir.join(format!(".rvm-fork-{}", std::process::id()));
    while path.symlink_metadata().is_ok() {
        path.as_mut_os_string().push("-");
    }
    path
}

/// The configuration of the container's bundle, which can be run.
fn first_config(state: &State) -> Result<Value, LifecycleError> {
    let bundle = Bundle::load(&state.bundle)?;
    if bundle.disk_count() > 0 {
        let disks = "the container has disks, of which a copy needs its own: make its bundle first";
        return Err(LifecycleError::FailedPrecondition(disks.to_owned()));
    }
    let path = state.bundle.join(CONFIG_FILE);
    let read = fs::read(&path).and_then(|text| Ok(serde_json::from_slice(&text)?));
    read.map_err(failed(format!("read {}", path.display())))
}

impl Copies {
    /// The directory of the image.
    pub fn image(&self) -> PathBuf {
        self.forking.image()
    }

    /// The copies, in the order in which they were asked for.
    pub fn each(&self) -> impl Iterator<Item = Copy<'_>> {
        let copies = self.plan.copies.iter();
        copies.map(|wanted| Copy {
            copies: self,
            wanted,
        })
    }

    fn scratch_of(&self, copy: &Wanted) -> PathBuf {
        // Beside the image, under no name that a container has.
        self.forking.scratch().join(format!("@{}", copy.id))
    }

    /// Makes a bundle, with a copy of this root, in the scratch directory.
    fn make_bundle(&self, copy: &Wanted, root: &Path) -> Result<(), LifecycleError> {
        let dir = self.scratch_of(copy);
        let make = || {
            let mode = fs::metadata(&self.plan.state.bundle)?.permissions().mode();
            fs::create_dir(&dir)?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(mode))?;
            let text = serde_json::to_vec_pretty(&copy.config)?;
            fs::write(dir.join(CONFIG_FILE), text)
        };
        make().map_err(failed(format!("make the bundle of {}", copy.id)))?;
        if self.plan.has_own_root {
            tree_copy::copy(root, &dir.join(copied::ROOTFS))?;
        }
        Ok(())
    }
}

impl Copy<'_> {
    /// Its id.
    pub fn id(&self) -> &str {
        self.wanted.id.as_str()
    }

    /// Its bundle, which is in its place once [`Self::put_in_place`] has been called.
    pub fn bundle(&self) -> PathBuf {
        self.copies.plan.dir.join(self.id())
    }

    /// Puts the bundle in its place, if it was made.
    pub fn put_in_place(&self) -> Result<(), LifecycleError> {
        if self.wanted.config.is_none() {
            return Ok(());
        }
        let (made, place) = (self.copies.scratch_of(self.wanted), self.bundle());
        let moved = renameat_with(CWD, made, CWD, &place, RenameFlags::NOREPLACE);
        moved.map_err(|error| failed(format!("make {}", place.display()))(error.into()))
    }

    /// Removes the bundle of a copy that was not started, if it was made.
    pub fn remove(&self) {
        if self.wanted.config.is_none() || self.copies.scratch_of(self.wanted).exists() {
            return;
        }
        let place = self.bundle();
        match fs::remove_dir_all(&place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!("cannot remove {}: {error}", place.display()),
            Ok(()) => {}
        }
    }
}
