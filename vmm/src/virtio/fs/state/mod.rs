//! The state of the device of a machine that is saved while it runs, and what becomes of it.
//!
//! virtiofsd tells which inodes the guest knows and which handles it has, and the host's kernel
//! their paths. Files that were removed while they are open, and those without a name, are in the
//! state with what they hold. The restored device opens what is at the paths: under another root
//! (a copy), or after a file was replaced, it is another file. What is no longer there is an error
//! if a program has it open; otherwise the guest gets ESTALE, after which its kernel looks the path
//! up again. Requests that wait (locks, events) are executed again.
//!
//! A file that programs keep open and that has changed on the host shows to them as one that
//! another changes always does: the guest drops its pages once it learns of another size or mtime,
//! at the latest a second after it goes on.

mod check;
mod contents;
mod mirror;
mod places;
mod removed;
mod replay;
mod restore;
mod save;

use serde::{Deserialize, Serialize};

use self::contents::Contents;
use self::mirror::Options;
use self::places::FileId;
pub use self::removed::RemovedFiles;
pub use self::replay::INIT_BYTES;
pub use self::restore::restore;
pub use self::save::save;
use super::locks::SavedLocks;
use super::versions::Versions;
use super::watches::SavedWatches;

/// A mounted file system.
#[derive(Serialize, Deserialize)]
struct Session {
    /// What followed the header of INIT.
    init: Vec<u8>,
    options: Options,
    inodes: Vec<Inode>,
    next_inode: u64,
    handles: Vec<Handle>,
    next_handle: u64,
    /// See [`super::nameless::Nameless::made`].
    nameless_made: u64,
    versions: Versions,
    locks: SavedLocks,
    watches: SavedWatches,
    /// The queue and the first descriptor of requests that wait.
    kept: Vec<(usize, u16)>,
}

/// A file that the guest knows.
#[derive(Serialize, Deserialize)]
struct Inode {
    id: u64,
    /// How often the guest must forget it.
    references: u64,
    /// S_IFMT's part of the mode.
    kind: u32,
    file: FileId,
    place: Place,
}

#[derive(Debug, Serialize, Deserialize)]
enum Place {
    Root,
    /// Below the shared directory.
    Path(Vec<u8>),
    /// It has no name; the path is that which it had, or one beside it.
    Nameless(Vec<u8>, Contents),
    /// It was not found when the state was saved, and nobody has it open.
    Lost,
}

/// A file that the guest has open.
#[derive(Serialize, Deserialize)]
struct Handle {
    id: u64,
    inode: u64,
    flags: i32,
}

/// A path for a message.
fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

#[cfg(test)]
mod tests;
