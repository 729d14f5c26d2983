//! A state is a file like any other: what is taken from it is checked first.

use std::collections::BTreeSet;

use virtiofsd::filesystem::ROOT_ID;

use super::super::deferred::MAX_KEPT;
use super::super::nameless::FIRST;
use super::super::spec::QUEUE_SIZES;
use super::super::watches::MAX_WATCHES;
use super::{INIT_BYTES, Inode, Place, Session};

/// The session, unless nothing that was saved is so.
pub(super) fn checked(session: Session) -> Option<Session> {
    let inodes = &session.inodes;
    let ids: BTreeSet<u64> = inodes.iter().map(|inode| inode.id).collect();
    let handles: BTreeSet<u64> = session.handles.iter().map(|handle| handle.id).collect();
    let nameless = FIRST..FIRST.checked_add(session.nameless_made)?;
    // None of the counters comes so far.
    let is_counted = |id: &u64, next| (1..next).contains(id) || nameless.contains(id);
    let is_valid = session.init.len() <= INIT_BYTES
        && session.next_inode < FIRST
        && session.next_handle < FIRST
        && session.nameless_made < FIRST
        && ids.len() == inodes.len()
        && ids.iter().all(|id| is_counted(id, session.next_inode))
        && inodes.iter().all(is_valid_inode)
        && inodes.iter().any(|inode| inode.id == ROOT_ID)
        && handles.len() == session.handles.len()
        && (handles.iter()).all(|id| is_counted(id, session.next_handle) || *id == 0)
        && (session.handles.iter()).all(|handle| ids.contains(&handle.inode))
        && session.watches.len() <= MAX_WATCHES
        && session.kept.len() <= MAX_KEPT
        && (session.kept.iter()).all(|(queue, _)| *queue < QUEUE_SIZES.len());
    is_valid.then_some(session)
}

fn is_valid_inode(inode: &Inode) -> bool {
    let is_root = inode.id == ROOT_ID;
    let is_counted = (1..FIRST).contains(&inode.references);
    match &inode.place {
        Place::Root => is_root && is_counted,
        Place::Path(path) | Place::Nameless(path, _) => !is_root && is_counted && is_path(path),
        Place::Lost => !is_root && is_counted,
    }
}

/// Whether it is a path of names below a directory.
fn is_path(path: &[u8]) -> bool {
    let is_name = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.contains(&0);
    path.split(|&byte| byte == b'/').all(is_name)
}
