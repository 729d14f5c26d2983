//! A checkpoint on disk: a directory with a machine as it was in the middle of its work, and what
//! the host must know to let it go on.
//!
//! | file | contents |
//! |---|---|
//! | `checkpoint.json` | [`Manifest`]; written last: a directory without it is no checkpoint |
//! | `state` | the state of CPUs and devices, as rvm-vmm writes it |
//! | `memory` | the guest's memory: whatever its processes had there, keys and passwords, too |
//! | `removed` | what files hold that a process has open and that have no name any more |
//!
//! Restored machines read the memory from its file as long as they run. The files are never changed
//! in place: a new checkpoint in the same directory has new files.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use rvm_protocol::ContainerId;
use rvm_protocol::vmm::{MAX_DISKS, MAX_NETS};
use serde::{Deserialize, Serialize};

use crate::network::SavedCard;
use crate::sizing::Size;
use rvm_sys::fault_point;

const MANIFEST: &str = "checkpoint.json";
const NEW_MANIFEST: &str = "checkpoint.json.new";
const STATE: &str = "state";
const MEMORY: &str = "memory";
const REMOVED: &str = "removed";

/// The version of [`Manifest`].
const VERSION: u32 = 1;

/// The longest manifest, in bytes.
const MAX_MANIFEST: u64 = 1 << 20;

/// A checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file of it could not be made or read.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried, in the infinitive.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// From the system call.
        #[source]
        source: io::Error,
    },
    /// The directory has no checkpoint, or one that was not finished.
    #[error("there is no checkpoint in {}", .0.display())]
    None(PathBuf),
    /// The manifest is none.
    #[error("{} does not describe a checkpoint", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Another rvm wrote it.
    #[error(
        "the checkpoint in {} was written by rvm {found}, and this is rvm {}: a checkpoint can be \
         restored by the rvm that has written it",
        path.display(), env!("CARGO_PKG_VERSION")
    )]
    Version {
        /// The directory.
        path: PathBuf,
        /// The version that wrote it.
        found: String,
    },
}

/// What the host must know of a machine that was saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// The container that the machine was made for.
    pub container: SavedContainer,
    /// The containers that had joined it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<SavedContainer>,
    /// The machine.
    pub machine: Shape,
    /// The size that the machine had.
    pub now: Size,
    /// The machine's network cards.
    pub cards: Vec<SavedCard>,
}

/// What the host must know of a container that was saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SavedContainer {
    /// Its id, by which its guest knows it.
    pub id: ContainerId,
    /// The init process's pid in the guest.
    pub guest_pid: u32,
    /// Its streams.
    pub streams: Streams,
    /// The container's disks, in the order of its bundle.
    pub disks: Vec<SavedDisk>,
    /// The names of the mounts that it shares with others of its pod.
    pub volumes: Vec<String>,
    /// The container's limits, if updates have changed those of its config.json.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated: Option<UpdatedLimits>,
}

/// Limits that a container was given while it ran. The guest goes on with them, so the host must
/// allow what they allow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdatedLimits {
    /// All of them, as updates have changed them.
    pub resources: LinuxResources,
    /// The memory limit of the host's cgroups, in bytes, where it is above the container's own.
    pub kept_memory: Option<u64>,
}

impl UpdatedLimits {
    /// What the host's cgroups hold the machine to.
    pub fn on_host(&self) -> LinuxResources {
        let mut resources = self.resources.clone();
        if let (Some(kept), Some(memory)) = (self.kept_memory, resources.memory_mut()) {
            memory.set_limit(i64::try_from(kept).ok());
            memory.set_swap(None);
        }
        resources
    }
}

/// A disk that a container had. Its contents are the user's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SavedDisk {
    /// The machine's slot that it was in.
    pub slot: usize,
    /// Whether the guest could not write to it.
    pub read_only: bool,
}

impl Manifest {
    /// All containers, the one that the machine was made for first.
    pub fn containers(&self) -> impl Iterator<Item = &SavedContainer> {
        std::iter::once(&self.container).chain(&self.members)
    }

    /// Whether there can be such a machine. Whether it is the one in the state, rvm-vmm finds out.
    fn check(&self) -> Result<(), serde_json::Error> {
        let sizes = [self.machine.start, self.machine.max, self.now];
        let disks: usize = self.containers().map(|one| one.disks.len()).sum();
        let ids: BTreeSet<_> = self.containers().map(|one| &one.id).collect();
        let is_possible = sizes.iter().all(|size| size.is_possible())
            && self.machine.disk_slots <= MAX_DISKS
            && disks <= self.machine.disk_slots
            && ids.len() == self.containers().count()
            && self.machine.cards_at_start.max(self.cards.len()) <= MAX_NETS;
        match is_possible {
            true => Ok(()),
            false => Err(serde::de::Error::custom("no machine is like this")),
        }
    }
}

/// What a machine was started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Shape {
    /// Its size then.
    pub start: Size,
    /// The size that it can be given.
    pub max: Size,
    /// How many network cards it had then.
    pub cards_at_start: usize,
    /// Its slots for disks.
    pub disk_slots: usize,
}

/// The ids of a process's streams, 0 for /dev/null; see the agent's protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Streams {
    /// Whether `stdin` is that of a terminal, both ways.
    pub terminal: bool,
    /// Standard input.
    pub stdin: u64,
    /// Standard output.
    pub stdout: u64,
    /// Standard error.
    pub stderr: u64,
}

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    rvm: String,
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

/// A checkpoint that can be restored.
#[derive(Debug)]
pub struct Image {
    /// What the host must know.
    pub manifest: Manifest,
    pub(crate) files: Files,
}

/// The files that rvm-vmm writes and reads.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) state: File,
    pub(crate) memory: File,
    pub(crate) removed: File,
}

impl Image {
    /// Opens the checkpoint in a directory.
    pub fn open(dir: &Path) -> Result<Self, ImageError> {
        let open = |name| {
            let path = dir.join(name);
            let opened = fault_point!("restore.open").and_then(|()| File::open(&path));
            opened.map_err(failed("open", &path))
        };
        let path = dir.join(MANIFEST);
        let mut text = Vec::new();
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ImageError::None(dir.to_owned()));
            }
            opened => {
                let file = opened.map_err(failed("open", &path))?;
                let read = file.take(MAX_MANIFEST).read_to_end(&mut text);
                read.map_err(failed("read", &path))?;
            }
        }
        let malformed = |source| ImageError::Manifest {
            path: path.clone(),
            source,
        };
        let document: Document = serde_json::from_slice(&text).map_err(malformed)?;
        if (document.version, document.rvm.as_str()) != (VERSION, env!("CARGO_PKG_VERSION")) {
            return Err(ImageError::Version {
                path: dir.to_owned(),
                found: document.rvm,
            });
        }
        let manifest: Manifest = serde_json::from_value(document.rest.into()).map_err(malformed)?;
        manifest.check().map_err(malformed)?;
        Ok(Self {
            manifest,
            files: Files {
                state: open(STATE)?,
                memory: open(MEMORY)?,
                removed: open(REMOVED)?,
            },
        })
    }
}

/// A checkpoint that is being written. Dropped unfinished, it leaves no files.
#[derive(Debug)]
pub struct NewImage {
    dir: PathBuf,
    pub(crate) files: Files,
    is_finished: bool,
}

impl NewImage {
    /// Makes empty files in a directory, which is made if it is not there, and writes the manifest
    /// under another name: on a full disk that fails while the machine is still there. A checkpoint
    /// that is in the directory is removed.
    pub fn create(dir: &Path, manifest: &Manifest) -> Result<Self, ImageError> {
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir);
        made.and(fault_point!("checkpoint.made"))
            .map_err(failed("make", dir))?;
        for name in [MANIFEST, NEW_MANIFEST, STATE, MEMORY, REMOVED] {
            let path = dir.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(failed("remove", &path))?,
            }
        }
        let make = || {
            let files = Files {
                state: new_file(&dir.join(STATE))?,
                memory: new_file(&dir.join(MEMORY))?,
                removed: new_file(&dir.join(REMOVED))?,
            };
            write_manifest(&dir.join(NEW_MANIFEST), manifest)?;
            Ok(files)
        };
        let files = make().inspect_err(|_| remove_unfinished(dir))?;
        Ok(Self {
            dir: dir.to_owned(),
            files,
            is_finished: false,
        })
    }

    /// Puts the manifest into its place: the other files are whole.
    pub fn finish(mut self) -> Result<(), ImageError> {
        let path = self.dir.join(MANIFEST);
        let renamed = fault_point!("checkpoint.manifest")
            .and_then(|()| fs::rename(self.dir.join(NEW_MANIFEST), &path));
        renamed.map_err(failed("write", &path))?;
        self.is_finished = true;
        Ok(())
    }
}

impl Drop for NewImage {
    fn drop(&mut self) {
        if !self.is_finished {
            remove_unfinished(&self.dir);
        }
    }
}

fn remove_unfinished(dir: &Path) {
    for name in [NEW_MANIFEST, STATE, MEMORY, REMOVED] {
        // Another may have removed it.
        let _ = fs::remove_file(dir.join(name));
    }
}

fn write_manifest(path: &Path, manifest: &Manifest) -> Result<(), ImageError> {
    let rest = match serde_json::to_value(manifest) {
        Ok(serde_json::Value::Object(rest)) => rest,
        // A structure is an object.
        _ => serde_json::Map::new(),
    };
    let document = Document {
        version: VERSION,
        rvm: env!("CARGO_PKG_VERSION").to_owned(),
        rest,
    };
    let mut file = new_file(path)?;
    let text = serde_json::to_vec_pretty(&document).map_err(io::Error::from);
    let written = text.and_then(|text| file.write_all(&text));
    written.map_err(failed("write", path))
}

fn new_file(path: &Path) -> Result<File, ImageError> {
    let mut options = File::options();
    options.read(true).write(true).create_new(true).mode(0o600);
    let opened = options.open(path).map_err(failed("make", path))?;
    fault_point!("checkpoint.file").map_err(failed("make", path))?;
    Ok(opened)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::File {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(id: &str) -> SavedContainer {
        SavedContainer {
            id: ContainerId::new(id).unwrap(),
            guest_pid: 7,
            streams: Streams {
                stdout: u64::MAX,
                ..Streams::default()
            },
            disks: vec![SavedDisk {
                slot: 6,
                read_only: true,
            }],
            volumes: vec!["0123456789abcdef".to_owned()],
            updated: Some(UpdatedLimits {
                resources: LinuxResources::default(),
                kept_memory: Some(1 << 30),
            }),
        }
    }

    fn manifest() -> Manifest {
        let size = |memory_mib| Size {
            vcpus: 1,
            memory_mib,
        };
        let member = SavedContainer {
            disks: Vec::new(),
            ..container("db")
        };
        Manifest {
            container: container("web"),
            members: vec![member],
            machine: Shape {
                start: size(512),
                max: size(1024),
                cards_at_start: 1,
                disk_slots: 1,
            },
            now: size(256),
            cards: vec![SavedCard {
                mac: [2, 0, 0, 0, 0, 1],
                link: Some("eth0".to_owned()),
            }],
        }
    }

    #[test]
    fn what_was_written_is_read_and_a_new_one_takes_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/image");
        let new = NewImage::create(&path, &manifest()).unwrap();
        (&new.files.state).write_all(b"first").unwrap();
        new.finish().unwrap();
        let mut first = Image::open(&path).unwrap();
        assert_eq!(first.manifest, manifest());
        NewImage::create(&path, &manifest())
            .unwrap()
            .finish()
            .unwrap();
        let mut text = String::new();
        first.files.state.read_to_string(&mut text).unwrap();
        assert_eq!(
            text, "first",
            "machines go on with the files that they have"
        );
        assert_eq!(
            Image::open(&path)
                .unwrap()
                .files
                .state
                .metadata()
                .unwrap()
                .len(),
            0
        );
    }

    #[test]
    fn one_that_was_not_finished_is_none_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        drop(NewImage::create(dir.path(), &manifest()).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let none = Image::open(dir.path()).unwrap_err();
        assert!(matches!(none, ImageError::None(_)), "{none}");
    }

    #[test]
    fn that_of_another_rvm_and_what_is_no_manifest_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let text = |text: &str| {
            fs::write(dir.path().join(MANIFEST), text).unwrap();
            Image::open(dir.path()).unwrap_err()
        };
        let other = text(r#"{"version":1,"rvm":"9.8.7","container":"web"}"#);
        assert!(other.to_string().contains("by rvm 9.8.7"), "{other}");
        for wrong in ["", "[]", "{}", r#"{"version":1,"rvm":3}"#] {
            assert!(matches!(text(wrong), ImageError::Manifest { .. }));
        }
        let impossible: [fn(&mut Manifest); 7] = [
            |manifest| manifest.machine.start.vcpus = 0,
            |manifest| manifest.machine.max.memory_mib = u64::MAX,
            |manifest| manifest.machine.disk_slots = usize::MAX,
            |manifest| manifest.machine.disk_slots = 0,
            |manifest| manifest.machine.cards_at_start = usize::MAX,
            |manifest| manifest.members[0].id = manifest.container.id.clone(),
            |manifest| manifest.members[0].disks = manifest.container.disks.clone(),
        ];
        for change in impossible {
            let mut manifest = manifest();
            change(&mut manifest);
            NewImage::create(dir.path(), &manifest)
                .unwrap()
                .finish()
                .unwrap();
            let refused = Image::open(dir.path()).unwrap_err();
            assert!(matches!(refused, ImageError::Manifest { .. }), "{refused}");
        }
        let version = env!("CARGO_PKG_VERSION");
        let partial = text(&format!(
            r#"{{"version":1,"rvm":"{version}","container":"web"}}"#
        ));
        assert!(matches!(partial, ImageError::Manifest { .. }), "{partial}");
    }
}
