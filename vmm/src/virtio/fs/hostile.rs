//! A guest that sends any FUSE request: it may make no request panic, and change nothing but the
//! directory that it was given.

use std::cell::RefCell;
use std::fs;
use std::path::Path;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, set_capabilities, unshare_unsafe,
};

use super::client::Client;
use super::message::opcode;
use super::spec::{HIPRIO_QUEUE, REQUEST_QUEUE};
use rvm_fuzz_input::Decisions;

/// A file beside the served directory, and what it holds.
const NEIGHBOUR: &str = "neighbour";
const SECRET: &str = "none of the guest's";

const OPERATIONS: [u32; 16] = [
    opcode::SETATTR,
    opcode::OPEN,
    opcode::READ,
    opcode::WRITE,
    opcode::RELEASE,
    opcode::FLUSH,
    opcode::GETLK,
    opcode::SETLK,
    opcode::SETLKW,
    opcode::CREATE,
    opcode::IOCTL,
    opcode::FALLOCATE,
    opcode::TMPFILE,
    opcode::STATX,
    opcode::WATCH,
    opcode::EVENTS,
];

/// No operation of FUSE's: the device is saved, and another one goes on.
const GO_ON: u32 = 55;

const NAMES: [&str; 8] = ["a", "b", "..", ".", "a/b", "../neighbour", "/etc", ""];

/// Where this thread alone has a file system of its own, so that nothing of it is left.
const PLACE: &str = "/mnt";

thread_local! {
    /// One for all inputs: the threads of a device end with its process.
    static CLIENT: RefCell<Option<Client>> = const { RefCell::new(None) };
}

/// Serves an empty directory and sends requests as the bytes decide. The caller is root; from its
/// first call on, its thread has a mount namespace of its own, and few capabilities.
pub fn requests(input: &[u8]) {
    CLIENT.with_borrow_mut(|client| play(client.get_or_insert_with(prepare), input));
}

/// A small file system for this thread alone: what a guest may write would fill a disk.
#[allow(unsafe_code, reason = "unshare can break what relies on shared state")]
fn prepare() -> Client {
    // SAFETY: the mount namespace, the root and the working directory of this thread become its
    // own; none of the other threads is affected.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.unwrap();
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .unwrap();
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    let size = Some(c"size=64m,nr_inodes=10000");
    mount("tmpfs", PLACE, "tmpfs", flags, size).unwrap();
    fs::write(Path::new(PLACE).join(NEIGHBOUR), SECRET).unwrap();
    // As the jail's, without device nodes, which it cannot make.
    let kept = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::DAC_READ_SEARCH
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::SETFCAP
        | CapabilitySet::SETGID
        | CapabilitySet::SETUID;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).unwrap();
    Client::serving(tempfile::tempdir_in(PLACE).unwrap())
}

fn play(client: &mut Client, input: &[u8]) {
    client.driver.restart();
    client.init();
    let mut decisions = Decisions(input);
    while !decisions.are_over() {
        if send(client, &mut decisions).is_err() {
            client.driver.restart();
        }
    }
    client.driver.restart();
    for entry in fs::read_dir(client.dir.path()).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => fs::remove_dir_all(entry.path()).unwrap(),
            false => fs::remove_file(entry.path()).unwrap(),
        }
    }
    let names: Vec<_> = fs::read_dir(PLACE).unwrap().collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let neighbour = fs::read_to_string(Path::new(PLACE).join(NEIGHBOUR)).unwrap();
    assert_eq!(neighbour, SECRET);
}

fn send(client: &mut Client, decisions: &mut Decisions<'_>) -> Result<(), super::DeviceError> {
    let opcode = match decisions.choose(4) {
        0 => OPERATIONS[usize::from(decisions.choose(OPERATIONS.len() as u8))],
        1 | 2 => decisions.choose(56).into(),
        _ => return client.driver.wake(),
    };
    if opcode == GO_ON {
        return go_on(client, decisions);
    }
    let inode = match decisions.choose(4) {
        0 | 1 => 1,
        2 => decisions.choose(8).into(),
        _ => decisions.u64(),
    };
    client.uid = decisions.choose(2).into();
    let body = body(decisions);
    let message = client.message(opcode, inode, &body);
    let queue = match decisions.choose(8) {
        0 => HIPRIO_QUEUE,
        other => REQUEST_QUEUE + usize::from(other % 2),
    };
    let room = [0, 8, 16, 160, 8192][usize::from(decisions.choose(5))];
    client.driver.post(queue, &message, room);
    client.driver.notify(queue)
}

/// Goes on from a state that may be damaged in one place.
fn go_on(client: &mut Client, decisions: &mut Decisions<'_>) -> Result<(), super::DeviceError> {
    let Ok(mut state) = client.save() else {
        return Ok(());
    };
    let place = usize::from(decisions.u16()) % state.len().max(1);
    if let Some(byte) = state.get_mut(place) {
        *byte ^= decisions.u8();
    }
    let root = client.dir.path().to_owned();
    client.go_on(&root, &state)
}

/// Numbers and names, as most requests have them.
fn body(decisions: &mut Decisions<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    for _ in 0..decisions.choose(6) {
        match decisions.choose(4) {
            0 => {
                let name = NAMES[usize::from(decisions.choose(NAMES.len() as u8))];
                body.extend(name.as_bytes());
                body.push(0);
            }
            1 => body.extend(decisions.bytes()),
            _ => body.extend(decisions.words()),
        }
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn any_request_survives() {
        // A thread of its own, for its capabilities and mounts.
        let played = std::thread::spawn(|| {
            proptest!(|(input in proptest::collection::vec(any::<u8>(), 0..500))| {
                requests(&input);
            });
        });
        played.join().unwrap();
    }
}
