//! Requests for shared files.

use crate::cpu::Dice;
use crate::files::{Files, Request, TOP, fuse};
use crate::guest::Guest;
use crate::second;
use crate::virtio::device_id;

/// O_RDWR, and O_CREAT.
const READ_WRITE: u32 = 2;
const CREATE: u32 = 0o100;

/// The longest name that is tried: it is longer than a page, and than any that the host takes.
const LONGEST: usize = 5000;

/// Calls `round` with the device.
fn with_files(guest: &mut Guest, round: impl FnOnce(&mut Files, &mut Guest)) {
    let mut files = match guest.files.take() {
        Some(files) => files,
        None => Files::new(guest.wait_for(device_id::FS)),
    };
    round(&mut files, guest);
    // A device that does not answer may wait for a reset.
    guest.files = (!files.is_silent).then_some(files);
}

/// Names that are there, and that are not, without an end; nothing is ever forgotten.
pub fn lookups(guest: &mut Guest) {
    with_files(guest, |files, guest| {
        let mut name = *b"/absent-0000000000000000";
        for digit in &mut name[8..] {
            *digit = b'a' + guest.dice.below(16) as u8;
        }
        files.lookup(files.root, &name[1..]);
        files.lookup(
            files.root,
            guest.dice.one_of(&[b"bin" as &[u8], b"etc", b"."]),
        );
        files.lookup(TOP, guest.dice.one_of(&[b"box" as &[u8], b"..", b""]));
    });
}

/// Requests whose headers a second processor changes while they are read.
pub fn second_processor(guest: &mut Guest) {
    second::start(guest);
    lookups(guest);
    names(guest);
}

/// A name: of any length, of any bytes, one that leads elsewhere, or one of a few.
fn name<'a>(guest: &mut Guest, room: &'a mut [u8; LONGEST]) -> &'a [u8] {
    let length = match guest.dice.below(4) {
        0 => guest.dice.below(LONGEST as u64) as usize,
        1 => guest.dice.one_of(&[0, 1, 254, 255, 256, 4095, 4096]),
        2 => {
            return guest.dice.one_of(&[
                b".." as &[u8],
                b".",
                b"/",
                b"../../etc/passwd",
                b"/etc/passwd",
                b"a/../../b",
                b"bin/busybox",
                b"..\0",
            ]);
        }
        _ => {
            room[0] = b'a' + guest.dice.below(16) as u8;
            return &room[..1];
        }
    };
    let seed = guest.dice.roll();
    for (place, byte) in room[..length].iter_mut().enumerate() {
        *byte = (seed.rotate_left(place as u32 * 7) as u8).max(1);
    }
    &room[..length]
}

/// Every operation that takes a name, with every name.
pub fn names(guest: &mut Guest) {
    with_files(guest, |files, guest| {
        let (mut one, mut other) = ([0; LONGEST], [0; LONGEST]);
        let (one, other) = (name(guest, &mut one), name(guest, &mut other));
        let directory = guest
            .dice
            .one_of(&[files.root, files.root, TOP, 0, 12345, u64::MAX]);
        let new = Request::new();
        let (operation, request) = match guest.dice.below(12) {
            0 => (fuse::LOOKUP, new.name(one)),
            1 => (fuse::SYMLINK, new.name(one).name(other)),
            2 => (
                fuse::MKNOD,
                new.word(guest.dice.roll() as u32)
                    .word(0x103)
                    .long(0)
                    .name(one),
            ),
            3 => (fuse::MKDIR, new.word(0o40_777).word(0).name(one)),
            4 => (fuse::UNLINK, new.name(one)),
            5 => (fuse::RMDIR, new.name(one)),
            6 => (fuse::RENAME, new.long(directory).name(one).name(other)),
            7 => (
                fuse::RENAME2,
                new.long(files.root).word(2).word(0).name(one).name(other),
            ),
            8 => (fuse::LINK, new.long(files.root).name(one)),
            9 => (
                fuse::CREATE,
                new.word(READ_WRITE | CREATE)
                    .word(0o100_777)
                    .long(0)
                    .name(one),
            ),
            // Without the zero at the end.
            10 => (fuse::GETXATTR, new.word(100).word(0).bytes(one)),
            _ => (fuse::SETXATTR, new.word(4).word(0).name(one).bytes(other)),
        };
        files.ask(operation, directory, request);
    });
}

/// Messages of any contents, whose lengths are lies.
pub fn messages(guest: &mut Guest) {
    with_files(guest, |files, guest| {
        let mut request = Request::new();
        for _ in 0..guest.dice.below(32) {
            request = request.long(guest.dice.roll());
        }
        // Not those that wait, as for a lock, nor the end.
        let operation = match guest.dice.below(64) as u32 {
            27 | 31..=33 | 36 | 38 => 100,
            operation => operation,
        };
        let node = guest.dice.one_of(&[TOP, files.root, 0, u64::MAX]);
        let length = guest.dice.one_of(&[0, 1, 39, 40, 41, 0x1000, u32::MAX]);
        if guest.dice.below(4) == 0 {
            files.ask_lying(operation, node, request, length);
        } else {
            files.ask(operation, node, request);
        }
    });
}

/// Files that are opened and never closed.
pub fn open_files(guest: &mut Guest) {
    with_files(guest, |files, guest| {
        let name = [b'f', b'0' + guest.dice.below(10) as u8];
        let create = Request::new()
            .word(READ_WRITE | CREATE)
            .word(0o100_666)
            .long(0);
        files.ask(fuse::CREATE, files.root, create.name(&name));
        if let Some(node) = files.lookup(files.root, &name) {
            files.ask(fuse::OPEN, node, Request::new().word(READ_WRITE).word(0));
        }
    });
}

/// FIFOs, sockets, devices and links that are opened, which waits, or works on what is not a file.
pub fn special_files(guest: &mut Guest) {
    with_files(guest, |files, guest| {
        let name = [b's', b'0' + guest.dice.below(10) as u8];
        let new = Request::new();
        let kind = guest
            .dice
            .one_of(&[0o10_666, 0o140_666, 0o20_666, 0o60_666]);
        match guest.dice.below(4) {
            0 => files.ask(
                fuse::SYMLINK,
                files.root,
                new.name(&name).name(b"/dev/zero"),
            ),
            _ => files.ask(
                fuse::MKNOD,
                files.root,
                new.word(kind).word(0x103).long(0).name(&name),
            ),
        };
        let node = files.lookup(files.root, &name);
        let flags = guest
            .dice
            .one_of(&[0, 1, READ_WRITE, 0o1000, 0o4000, 0o10000]);
        if let Some(handle) = node.and_then(|node| files.open(node, flags)) {
            let read = Request::new()
                .long(handle)
                .long(0)
                .word(4096)
                .word(0)
                .long(0)
                .long(0);
            files.ask(fuse::READ, node.unwrap_or(TOP), read);
        }
        // What is there already, and for reading alone.
        let create = Request::new().word(CREATE | flags).word(0o100_666).long(0);
        files.ask(fuse::CREATE, files.root, create.name(&name));
        if guest.dice.below(4) == 0 {
            files.ask(fuse::UNLINK, files.root, Request::new().name(&name));
        }
    });
}

/// A request for an open file, at some limit.
fn at_limits(dice: &mut Dice, node: u64, handle: u64) -> (u32, Request) {
    let new = Request::new().long(handle);
    let limits = [
        0,
        1,
        4095,
        1 << 31,
        1 << 40,
        i64::MAX as u64 - 4096,
        i64::MAX as u64,
        !0,
    ];
    let (offset, length) = (dice.one_of(&limits), dice.one_of(&limits));
    match dice.below(5) {
        0 => (
            fuse::READ,
            new.long(offset).word(length as u32).word(0).long(0).long(0),
        ),
        1 => {
            let write = new.long(offset).word(length as u32).word(0).long(0).long(0);
            (fuse::WRITE, write.long(!0))
        }
        // Holes alone: what takes no room.
        2 => (
            fuse::FALLOCATE,
            new.long(offset).long(length).word(3).word(0),
        ),
        3 => (
            fuse::LSEEK,
            new.long(offset).word(dice.below(6) as u32).word(0),
        ),
        _ => {
            // Not the whole of a file that a write has made as long as it can be: that would
            // fill the disk, which a guest may do.
            let length = if offset > 1 << 40 {
                length
            } else {
                length.min(4095)
            };
            let copy = new.long(offset).long(node).long(handle);
            (
                fuse::COPY_FILE_RANGE,
                copy.long(dice.one_of(&limits)).long(length).long(0),
            )
        }
    }
}

/// Offsets and lengths at every limit, in a file that has almost nothing.
pub fn offsets(guest: &mut Guest) {
    with_files(guest, |files, guest| {
        let create = Request::new()
            .word(READ_WRITE | CREATE)
            .word(0o100_666)
            .long(0);
        files.ask(fuse::CREATE, files.root, create.name(b"offsets"));
        let Some(node) = files.lookup(files.root, b"offsets") else {
            return;
        };
        let Some(handle) = files.open(node, READ_WRITE) else {
            return;
        };
        let (operation, request) = at_limits(&mut guest.dice, node, handle);
        files.ask(operation, node, request);
        let release = Request::new().long(handle).long(0).long(0);
        files.ask(fuse::RELEASE, node, release);
    });
}

/// Locks that others hold, for which every owner waits, and which nobody gives back.
pub fn locks(guest: &mut Guest) {
    with_files(guest, |files, _| {
        /// F_WRLCK
        const EXCLUSIVE: u32 = 1;
        let (node, handle) = match files.locked {
            Some(locked) => locked,
            None => {
                let create = Request::new()
                    .word(READ_WRITE | CREATE)
                    .word(0o100_666)
                    .long(0);
                files.ask(fuse::CREATE, files.root, create.name(b"locked"));
                let node = files.lookup(files.root, b"locked").unwrap_or(TOP);
                (node, files.open(node, READ_WRITE).unwrap_or(0))
            }
        };
        let lock = |owner| {
            let range = Request::new()
                .long(handle)
                .long(owner)
                .long(0)
                .long(i64::MAX as u64);
            range.word(EXCLUSIVE).word(1).long(0)
        };
        if files.locked.is_none() {
            files.ask(fuse::SETLK, node, lock(1));
            files.locked = Some((node, handle));
        }
        files.flood(fuse::SETLKW, node, lock);
    });
}

/// Directories, links and files that change places while the host looks at them.
pub fn renames(guest: &mut Guest) {
    with_files(guest, |files, guest| {
        let one = [b'r', b'0' + guest.dice.below(4) as u8];
        let other = [b'r', b'0' + guest.dice.below(4) as u8];
        let new = Request::new();
        let (operation, request) = match guest.dice.below(6) {
            0 => (fuse::MKDIR, new.word(0o40_777).word(0).name(&one)),
            1 => (fuse::SYMLINK, new.name(&one).name(b"../../../../etc")),
            // RENAME_EXCHANGE
            2 => (
                fuse::RENAME2,
                new.long(files.root).word(2).word(0).name(&one).name(&other),
            ),
            3 => (fuse::RENAME, new.long(files.root).name(&one).name(&other)),
            4 => (fuse::UNLINK, new.name(&one)),
            _ => (
                fuse::RENAME2,
                new.long(TOP).word(0).word(0).name(&one).name(b"box"),
            ),
        };
        files.ask(operation, files.root, request);
    });
}
