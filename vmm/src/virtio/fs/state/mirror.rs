//! The state of virtiofsd's file system as it writes and reads it, which it keeps to itself. What
//! it is given is made here from what has been checked: it takes its input for that of a virtiofsd
//! and would panic on some that is not.
//!
//! The format is virtiofsd's `passthrough/device_state/serialized.rs`, in postcard.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};

use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use virtiofsd::filesystem::SerializableFileSystem;

/// Versions of the state.
#[derive(Serialize, Deserialize)]
enum Versioned {
    V1(Server),
    V2(Server, MountPaths),
}

/// By ids of mounts, for files that are found by handles. There are none here.
type MountPaths = BTreeMap<u64, String>;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    pub inodes: Vec<Inode>,
    pub next_inode: u64,
    pub handles: Vec<Handle>,
    pub next_handle: u64,
    pub options: Options,
}

/// What the guest and the server agreed on at INIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    writeback: bool,
    announce_submounts: bool,
    posix_acl: bool,
    sup_group_extension: bool,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    pub id: u64,
    /// How often the guest must forget it.
    pub references: u64,
    pub location: Location,
    /// A handle of the file for comparison.
    pub file_handle: Option<FileHandle>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Location {
    Root,
    /// A name in a directory with this inode, which counts as a reference to it.
    Name {
        parent: u64,
        name: String,
    },
    Unknown,
    /// From the root.
    Path(String),
    ByHandle(FileHandle),
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileHandle {
    mount: u64,
    kind: i32,
    handle: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handle {
    pub id: u64,
    pub inode: u64,
    pub source: Source,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// open(2) with these flags.
    Open(i32),
}

impl Server {
    /// The state of a file system. It has no paths.
    pub fn of(fs: &impl SerializableFileSystem) -> io::Result<Self> {
        let mut file = memory_file()?;
        fs.serialize(file.try_clone()?)?;
        file.rewind()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        match postcard::from_bytes(&bytes) {
            Ok(Versioned::V1(state) | Versioned::V2(state, _)) => Ok(state),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Gives a file system the state. Ids must be unique and below the next ones, there must be one
    /// root, and handles must be of inodes that are there.
    pub fn give(self, fs: &impl SerializableFileSystem) -> io::Result<()> {
        let state = Versioned::V2(self, MountPaths::new());
        let bytes = postcard::to_stdvec(&state).map_err(io::Error::other)?;
        let mut file = memory_file()?;
        file.write_all(&bytes)?;
        file.rewind()?;
        fs.deserialize_and_apply(file)
    }
}

fn memory_file() -> io::Result<File> {
    Ok(memfd_create("fs state", MemfdFlags::CLOEXEC)?.into())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use virtiofsd::filesystem::{Context, FileSystem, FsOptions, ROOT_ID};
    use virtiofsd::passthrough::{Config, MigrationMode, PassthroughFs};

    use super::super::super::lend::server_itself;
    use super::*;

    fn serve(dir: &std::path::Path, mode: MigrationMode) -> PassthroughFs {
        let fs = PassthroughFs::new(Config {
            root_dir: dir.to_str().unwrap().to_owned(),
            announce_submounts: true,
            migration_mode: mode,
            migration_verify_handles: true,
            ..Config::default()
        })
        .unwrap();
        fs.init(FsOptions::SUBMOUNTS).unwrap();
        fs
    }

    /// The state as virtiofsd writes it when it is about to move.
    fn written(fs: &PassthroughFs) -> Vec<u8> {
        fs.prepare_serialization(Arc::new(AtomicBool::new(false)));
        let mut file = memory_file().unwrap();
        fs.serialize(file.try_clone().unwrap()).unwrap();
        file.rewind().unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn every_byte_of_virtiofsds_state_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/file"), "text").unwrap();
        std::fs::write(dir.path().join("gone"), "text").unwrap();
        let context: fn() -> Context = server_itself;
        for (mode, has_handles) in [
            (MigrationMode::FindPaths, false),
            (MigrationMode::FileHandles, true),
        ] {
            let fs = serve(dir.path(), mode);
            let sub = fs.lookup(context(), ROOT_ID, c"sub").unwrap().inode;
            let file = fs.lookup(context(), sub, c"file").unwrap().inode;
            let flags = libc::O_RDWR.cast_unsigned();
            let opened = fs.open(context(), file, false, flags).unwrap();
            let bytes = written(&fs);
            let (state, rest) = postcard::take_from_bytes::<Versioned>(&bytes).unwrap();
            assert_eq!(rest, b"");
            let Versioned::V2(state, _) = &state else {
                panic!("virtiofsd has another version");
            };
            assert!(state.options.announce_submounts && !state.options.writeback);
            let handle = Handle {
                id: opened.0.unwrap(),
                inode: file,
                source: Source::Open(libc::O_RDWR),
            };
            assert_eq!(state.handles, [handle]);
            let known = state.inodes.iter().find(|inode| inode.id == file);
            let known = known.unwrap();
            match &known.location {
                Location::Name { parent, name } => {
                    assert_eq!((*parent, name.as_str()), (sub, "file"))
                }
                Location::ByHandle(_) => assert!(has_handles),
                other => panic!("{other:?}"),
            }
            assert_eq!(known.references, 1);
            assert!(known.file_handle.is_some());
            assert!(state.next_inode > file);
            let Ok(again) =
                postcard::to_stdvec(&postcard::from_bytes::<Versioned>(&bytes).unwrap())
            else {
                panic!("cannot be written again");
            };
            assert_eq!(again, bytes);
        }
    }
}
