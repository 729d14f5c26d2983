//! Devices that are asked for what they should not do, by the rules of their queues.

use crate::cpu::{SERIAL, get64, out8, put8, put16, put32, put64};
use crate::guest::Guest;
use crate::virtio::{BUFFERS, NEXT, Queue, WRITE, device_id, reg};

/// What a terminal must not get from a log.
const ESCAPES: &[u8] = b"\x1b]0;owned\x07\x1b[2J\x1b[31m\xe2\x80\xae\x9b31m\0\r\n";

/// Bytes of a buffer of the console.
const OUTPUT: u32 = 0x1_0000;

/// Posts as many buffers as the queue holds, and waits for them.
fn post_all(queue: &mut Queue, length: u32, flags: u16) {
    post(queue, queue.entries, length, flags);
}

fn post(queue: &mut Queue, count: u16, length: u32, flags: u16) {
    for index in 0..count {
        queue.describe(index, BUFFERS, length, flags, 0);
        queue.post(index);
    }
    queue.notify();
    for _ in 0..count {
        if queue.wait().is_none() {
            return;
        }
    }
}

/// Has the device started anew if it has not answered: it may wait for a reset.
fn give_up_without<T>(guest: &mut Guest, answer: Option<T>) {
    if answer.is_none() {
        guest.driven = None;
    }
}

/// Output to the console without end.
pub fn console(guest: &mut Guest) {
    if guest.driven.is_none() {
        for (place, byte) in (0..u64::from(OUTPUT)).zip(ESCAPES.iter().cycle()) {
            put8(BUFFERS + place, *byte);
        }
    }
    post_all(&mut guest.drive(device_id::CONSOLE)[1], OUTPUT, 0);
}

/// Output to the serial port without end.
pub fn serial(_: &mut Guest) {
    for byte in ESCAPES {
        out8(SERIAL, *byte);
    }
}

/// Pages that are given to the host and taken back: in use, again and again, and none of the
/// guest's.
pub fn balloon(guest: &mut Guest) {
    let number = guest.dice.below(2) as usize;
    let base = guest.dice.one_of(&[
        0x800_u32,
        0x1800,
        0x5f00,
        0x6000,
        0xd_0000,
        0xf_fff0,
        u32::MAX,
    ]);
    for index in 0..0x400 {
        // Not the pages of this program.
        let page = base.wrapping_add(index % 0x100).max(0x800);
        let page = if (0x800..0xf00).contains(&page) {
            0x2000
        } else {
            page
        };
        put32(BUFFERS + 0x80_0000 + 4 * u64::from(index), page);
    }
    let answer = guest.drive(device_id::BALLOON)[number].ask((BUFFERS + 0x80_0000, 0x1000), (0, 0));
    give_up_without(guest, answer);
}

/// Reports of free pages that are in use, of the queue itself, of none, and of all.
pub fn reports(guest: &mut Guest) {
    let dice = &mut guest.dice;
    let ranges = [(); 8].map(|()| {
        let start = dice.one_of(&[
            BUFFERS,
            0x200_0000,
            0x5f0_0000,
            0x600_0000,
            0xd000_0000,
            !0xfff,
        ]);
        (
            start,
            dice.one_of(&[0, 1, 0x1000, 0x20_0000, 0x1000_0000, u32::MAX]),
        )
    });
    let queues = guest.drive(device_id::BALLOON);
    let Some(queue) = queues.iter_mut().rfind(|queue| queue.entries > 0) else {
        return;
    };
    for (index, (start, length)) in (0..).zip(ranges) {
        let flags = if index < 7 { WRITE | NEXT } else { WRITE };
        queue.describe(index, start, length, flags, index + 1);
    }
    queue.post(0);
    queue.notify();
    let answer = queue.wait();
    give_up_without(guest, answer);
}

/// Memory that is plugged and unplugged as the host has not asked, and that is not there. Machines
/// have the device once they have grown.
pub fn memory_plug(guest: &mut Guest) {
    /// The place of `addr` in struct virtio_mem_config.
    const REGION: u64 = reg::CONFIG + 16;
    let region = get64(guest.wait_for(device_id::MEM).window + REGION);
    let dice = &mut guest.dice;
    let block = region + 0x20_0000 * dice.below(128);
    let (kind, blocks) = (dice.below(6), dice.one_of(&[0, 1, 2, 64, u16::MAX]));
    let start = dice.one_of(&[block, block, block + 1, 0, BUFFERS, 1 << 32, !0]);
    put16(BUFFERS, kind as u16);
    put64(BUFFERS + 8, start);
    put16(BUFFERS + 16, blocks);
    let answer = guest.drive(device_id::MEM)[0].ask((BUFFERS, 24), (BUFFERS + 64, 10));
    give_up_without(guest, answer);
}

/// Requests to a disk: of every kind and of none, for sectors that it does not have, with more and
/// less than they need.
pub fn sectors(guest: &mut Guest) {
    let dice = &mut guest.dice;
    let kind = dice.one_of(&[0, 1, 4, 8, 11, 13, 14, 99]);
    let sector = dice.one_of(&[0, 1, 2047, 2048, 1 << 32, 1 << 55, u64::MAX]);
    let length = dice.one_of(&[0, 1, 16, 511, 512, 4096, 0x10_0000, 0x100_0000]);
    let flags = dice.one_of(&[NEXT, NEXT | WRITE]);
    put32(BUFFERS, kind);
    put64(BUFFERS + 8, sector);
    // The range of a request to discard.
    put64(BUFFERS + 0x1000, sector);
    put64(BUFFERS + 0x1008, dice.roll());
    let queue = &mut guest.drive(device_id::BLOCK)[0];
    queue.describe(0, BUFFERS, 16, NEXT, 1);
    queue.describe(1, BUFFERS + 0x1000, length, flags, 2);
    queue.describe(2, BUFFERS + 0x800, 1, WRITE, 0);
    queue.post(0);
    queue.notify();
    let answer = queue.wait();
    give_up_without(guest, answer);
}

/// Random numbers without end.
pub fn random(guest: &mut Guest) {
    post(&mut guest.drive(device_id::RNG)[0], 8, 0x1_0000, WRITE);
}

/// Packets of every length to the network, and a console's input that nobody asked for.
pub fn packets(guest: &mut Guest) {
    let length = guest
        .dice
        .one_of(&[0, 1, 11, 12, 13, 26, 1514, 65_550, 65_551, 0x10_0000]);
    let kind = guest.dice.roll();
    put64(BUFFERS, kind);
    post_all(&mut guest.drive(device_id::NET)[1], length, 0);
}
