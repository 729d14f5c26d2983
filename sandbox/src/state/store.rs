//! The state root and the directories in it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::retry_on_intr;
use rvm_protocol::{ContainerId, InvalidId, ProcessId as GuestProcessId};
use rvm_sys::fault_point;

use super::{State, Status};
use crate::cgroup::Cgroup;
use crate::dir::SandboxDir;
use crate::dir::layout::{self, NewerLayout};
use crate::host::process::ProcessId;
use crate::host::whole_file;
use crate::state::status::IllegalStep;

const STATE_FILE: &str = "state.json";

/// A container's state could not be found, read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The string is no container id.
    #[error(transparent)]
    Id(#[from] InvalidId),
    /// Another container has the id.
    #[error("container with given ID already exists: {0}")]
    Exists(ContainerId),
    /// No container has the id, or the container has been deleted.
    #[error("container does not exist: {0}")]
    NotFound(ContainerId),
    /// A system call on a file or directory failed.
    #[error("{action} {}", path.display())]
    Io {
        /// The call's purpose, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// From the call.
        #[source]
        source: io::Error,
    },
    /// The file is not one that an rvm of a known layout has written.
    #[error("{} is damaged; rvm delete --force removes the container", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the text is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// The file is of a layout that this version does not know.
    #[error(transparent)]
    Newer(#[from] NewerLayout),
    /// The container is being deleted, so its creation cannot go on.
    #[error("container {0} was deleted while it was being created")]
    GivenUp(ContainerId),
    /// The container's status does not allow the step.
    #[error(transparent)]
    Step(#[from] IllegalStep),
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io {
        action,
        path,
        source,
    }
}

/// The directory that holds all containers.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The store at `root`, a directory that is made with the first container.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The state root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the directory of a new container. Fails if another has the id.
    pub fn create(&self, id: &str) -> Result<Container, StateError> {
        let id = ContainerId::new(id)?;
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o711).recursive(true);
        builder
            .create(&self.root)
            .map_err(failed("create", &self.root))?;
        let path = self.root.join(id.as_str());
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(StateError::Exists(id));
            }
            other => other.map_err(failed("create", &path))?,
        }
        let made = fault_point!("state.made").map_err(failed("open", &path));
        let opened = made.and_then(|()| Container::open(path.clone(), id));
        // Nobody knows of one that cannot be opened, and nobody would remove it.
        opened.inspect_err(|_| _ = fs::remove_dir(&path))
    }

    /// Opens the directory of a container that exists.
    pub fn open(&self, id: &str) -> Result<Container, StateError> {
        let id = ContainerId::new(id)?;
        Container::open(self.root.join(id.as_str()), id)
    }

    /// The ids of all containers, sorted.
    pub fn ids(&self) -> Result<Vec<ContainerId>, StateError> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed("list", &self.root))?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed("list", &self.root))?;
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if let (true, Ok(name)) = (is_dir, entry.file_name().into_string()) {
                ids.extend(ContainerId::new(name));
            }
        }
        ids.sort();
        Ok(ids)
    }
}

/// A container's directory.
#[derive(Debug)]
pub struct Container {
    id: ContainerId,
    path: PathBuf,
    dir: OwnedFd,
}

impl Container {
    fn open(path: PathBuf, id: ContainerId) -> Result<Self, StateError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&path, flags, Mode::empty());
        let dir = dir.map_err(|error| match error {
            rustix::io::Errno::NOENT => StateError::NotFound(id.clone()),
            error => failed("open", &path)(error.into()),
        })?;
        Ok(Self { id, path, dir })
    }

    /// The container's id.
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// The directory's path, which another container may have once this one is deleted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The container's init process, as the agent knows it.
    pub fn init(&self) -> GuestProcessId {
        GuestProcessId::init(self.id.clone())
    }

    /// The store that it is in.
    pub fn store(&self) -> Store {
        Store::new(self.path.parent().unwrap_or(&self.path).to_owned())
    }

    /// The directory of the sandbox that it is in: its own, or that of the container it has joined.
    pub fn sandbox(&self, state: &State) -> Result<SandboxDir, StateError> {
        let (id, path) = match &state.sandbox {
            None => (&self.id, self.path.clone()),
            Some(id) => (id, self.path.with_file_name(id.as_str())),
        };
        SandboxDir::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StateError::NotFound(id.clone()),
            _ => failed("open", &path)(error),
        })
    }

    /// Waits for the lock. Fails with [`StateError::NotFound`] if the container is deleted.
    pub fn lock(&self) -> Result<Locked<'_>, StateError> {
        // A second description, so that the lock is this value's and not the process's.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lock = rustix::fs::openat(&self.dir, ".", flags, Mode::empty()).map_err(|error| {
            match error {
                // Deleted since it was opened.
                rustix::io::Errno::NOENT => StateError::NotFound(self.id.clone()),
                error => failed("open", &self.path)(error.into()),
            }
        })?;
        retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive))
            .map_err(|e| failed("lock", &self.path)(e.into()))?;
        // Deleted while this waited.
        if self.is_gone() {
            return Err(StateError::NotFound(self.id.clone()));
        }
        Ok(Locked {
            container: self,
            _lock: lock,
        })
    }

    /// Reads the state.
    pub fn state(&self) -> Result<State, StateError> {
        self.lock()?.load()
    }

    /// Whether the directory was deleted since it was opened.
    pub fn is_gone(&self) -> bool {
        let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        match (rustix::fs::fstat(&self.dir), rustix::fs::lstat(&self.path)) {
            (Ok(own), Ok(there)) => identity(own) != identity(there),
            (_, Err(error)) => error == rustix::io::Errno::NOENT,
            _ => false,
        }
    }
}

/// A container whose lock is held: no other process reads or changes its state.
#[derive(Debug)]
pub struct Locked<'a> {
    container: &'a Container,
    _lock: OwnedFd,
}

impl Locked<'_> {
    /// Reads the state.
    pub fn load(&self) -> Result<State, StateError> {
        let (path, text) = self.read()?;
        layout::check(&path, &text)?;
        serde_json::from_slice(&text).map_err(|source| StateError::Damaged { path, source })
    }

    /// Reads the state in order to delete the container: also from a file of a newer layout, if it
    /// still has the fields that this one knows.
    pub fn load_to_delete(&self) -> Result<State, StateError> {
        let (path, text) = self.read()?;
        serde_json::from_slice(&text).or_else(|source| {
            layout::check(&path, &text)?;
            Err(StateError::Damaged { path, source })
        })
    }

    fn read(&self) -> Result<(PathBuf, Vec<u8>), StateError> {
        let path = self.container.path.join(STATE_FILE);
        match fault_point!("state.read").and_then(|()| fs::read(&path)) {
            Ok(text) => Ok((path, text)),
            // Deleted meanwhile, or its creator has not come so far.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(StateError::NotFound(self.container.id.clone()))
            }
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// Writes the state, all of it or nothing.
    pub fn save(&self, state: &State) -> Result<(), StateError> {
        let path = self.container.path.join(STATE_FILE);
        let written = fault_point!("state.write").and_then(|()| whole_file::write(&path, state));
        written.map_err(failed("write", &path))
    }

    /// Writes down which process stands for the container from now on. Fails if the container is
    /// being deleted.
    pub fn claim(&self, monitor: ProcessId) -> Result<(), StateError> {
        let mut state = self.load()?;
        if state.status != Status::Creating {
            return Err(StateError::GivenUp(self.container.id.clone()));
        }
        state.monitor = Some(monitor);
        self.save(&state)
    }

    /// Writes down which cgroups the container is about to get. Fails if the container is being
    /// deleted.
    pub fn remember_cgroup(&self, cgroup: &Cgroup) -> Result<(), StateError> {
        let mut state = self.load()?;
        if state.status != Status::Creating {
            return Err(StateError::GivenUp(self.container.id.clone()));
        }
        state.cgroup = Some(cgroup.clone());
        self.save(&state)
    }

    /// Changes the status, and other fields with `change`. Fails, and changes nothing, if the
    /// status does not allow the step.
    pub fn step(&self, to: Status, change: impl FnOnce(&mut State)) -> Result<State, StateError> {
        let mut state = self.load()?;
        state.status = state.status.step(to)?;
        change(&mut state);
        self.save(&state)?;
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dir::layout::Layout;
    use rvm_protocol::MAX_CONTAINER_ID;
    use std::collections::HashMap;

    fn store() -> (Store, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (Store::new(dir.path().join("state")), dir)
    }

    fn state(id: &str) -> State {
        State {
            version: Layout::CURRENT,
            oci_version: "1.0.2".to_owned(),
            id: ContainerId::new(id).unwrap(),
            status: Status::Creating,
            bundle: "/bundle".into(),
            rootfs: "/bundle/rootfs".into(),
            created: super::super::timestamp(),
            owner: 0,
            annotations: HashMap::new(),
            hooks: None,
            resources: None,
            first_resources: None,
            kept_memory: None,
            terminal: false,
            monitor: Some(ProcessId::own().unwrap()),
            anchor_pid: None,
            sandbox: None,
            guest_pid: None,
            streams: None,
            namespaces: Vec::new(),
            cgroup: None,
            exit_status: None,
        }
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let (store, _dir) = store();
        let container = store.create("a").unwrap();
        let saved = state("a");
        container.lock().unwrap().save(&saved).unwrap();
        assert_eq!(store.open("a").unwrap().state().unwrap(), saved);
    }

    #[test]
    fn what_is_reported_is_what_the_specification_defines() {
        let schema = include_str!("../../../tests/oci-schema/state-schema.json");
        let schema: serde_json::Value = serde_json::from_str(schema).unwrap();
        let state = state("a");
        let report = state.report(Some("2026-05-04T10:20:30Z".to_owned()));
        let report = serde_json::to_value(report).unwrap();
        let annotation = &report["annotations"][crate::state::SILENT_SINCE];
        assert_eq!(annotation, "2026-05-04T10:20:30Z");
        for field in schema["required"].as_array().unwrap() {
            assert!(report[field.as_str().unwrap()].is_string(), "{field}");
        }
        assert_eq!(report["pid"], std::process::id());
        // One more is runc's.
        let statuses = schema["properties"]["status"]["enum"].as_array().unwrap();
        assert!(!statuses.contains(&"paused".into()));
        for status in statuses.iter().cloned().chain(["paused".into()]) {
            let read: Status = serde_json::from_value(status.clone()).unwrap();
            assert_eq!(serde_json::to_value(read).unwrap(), status);
        }
    }

    #[test]
    fn an_id_is_taken_once() {
        let (store, _dir) = store();
        store.create("a").unwrap();
        assert!(matches!(store.create("a"), Err(StateError::Exists(_))));
    }

    #[test]
    fn ids_that_name_other_directories_are_refused() {
        let (store, _dir) = store();
        for id in [
            "",
            ".",
            "..",
            "a/b",
            "../a",
            "a b",
            "ä",
            &"x".repeat(MAX_CONTAINER_ID + 1),
        ] {
            assert!(matches!(store.create(id), Err(StateError::Id(_))), "{id:?}");
            assert!(matches!(store.open(id), Err(StateError::Id(_))), "{id:?}");
        }
        store.create("Az09_+-.").unwrap();
        store.create(&"x".repeat(MAX_CONTAINER_ID)).unwrap();
    }

    #[test]
    fn an_unknown_container_does_not_exist() {
        let (store, _dir) = store();
        assert!(matches!(store.open("a"), Err(StateError::NotFound(_))));
        assert!(store.ids().unwrap().is_empty());
    }

    #[test]
    fn all_containers_are_listed_in_order() {
        let (store, _dir) = store();
        for id in ["b", "a", "c"] {
            store.create(id).unwrap();
        }
        assert_eq!(
            store.ids().unwrap(),
            ["a", "b", "c"].map(|id| ContainerId::new(id).unwrap())
        );
    }

    #[test]
    fn a_damaged_state_says_which_file() {
        let (store, _dir) = store();
        let container = store.create("a").unwrap();
        fs::write(container.path().join(STATE_FILE), "{").unwrap();
        let message = container.state().unwrap_err().to_string();
        assert!(message.contains("/state/a/state.json"), "{message}");
    }

    #[test]
    fn a_step_out_of_turn_changes_nothing() {
        let (store, _dir) = store();
        let container = store.create("a").unwrap();
        let locked = container.lock().unwrap();
        locked.save(&state("a")).unwrap();
        assert!(
            locked
                .step(Status::Running, |state| state.terminal = true)
                .is_err()
        );
        assert!(!locked.load().unwrap().terminal);
        locked.step(Status::Created, |_| {}).unwrap();
        assert_eq!(locked.load().unwrap().status, Status::Created);
    }

    #[test]
    fn a_container_whose_monitor_is_gone_is_stopped() {
        let mut running = State {
            status: Status::Running,
            ..state("a")
        };
        assert_eq!(
            (running.status(), running.pid()),
            (Status::Running, std::process::id() as i32)
        );
        running.monitor = Some(ProcessId {
            pid: std::process::id() as i32,
            start_time: 1,
        });
        assert_eq!((running.status(), running.pid()), (Status::Stopped, 0));
    }

    #[test]
    fn what_was_deleted_is_not_found_even_if_another_has_its_name() {
        let (store, _dir) = store();
        let container = store.create("a").unwrap();
        fs::remove_dir(container.path()).unwrap();
        assert!(matches!(container.lock(), Err(StateError::NotFound(_))));
        let other = store.create("a").unwrap();
        other.lock().unwrap().save(&state("a")).unwrap();
        assert!(container.is_gone() && !other.is_gone());
        assert!(matches!(container.state(), Err(StateError::NotFound(_))));
    }

    #[test]
    fn the_lock_keeps_others_out_until_it_is_released() {
        let (store, _dir) = store();
        let container = store.create("a").unwrap();
        let locked = container.lock().unwrap();
        locked.save(&state("a")).unwrap();
        let path = container.path().to_owned();
        let other = std::thread::spawn(move || {
            let container = Container::open(path, ContainerId::new("a").unwrap()).unwrap();
            container.state().unwrap().terminal
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        locked
            .save(&State {
                terminal: true,
                ..state("a")
            })
            .unwrap();
        drop(locked);
        assert!(other.join().unwrap());
    }
}
