//! Queues that break every rule, and registers.

use crate::cpu::{get8, get16, get32, get64, put8, put16, put32, put64};
use crate::guest::Guest;
use crate::second;
use crate::virtio::{
    BUFFERS, Device, ENTRIES, INDIRECT, NEEDS_RESET, NEXT, QUEUES, Queue, WRITE, describe,
    device_id, reg,
};

/// Addresses that are no place for a buffer: nothing, odd ones, the end of memory, devices, the
/// interrupt controllers, and what wraps around. None of them is of this program.
pub const ADDRESSES: [u64; 20] = [
    0,
    1,
    0xfff,
    0x9_fc00,
    BUFFERS,
    BUFFERS + 1,
    0x5ff_fff8,
    0x600_0000,
    0x1fff_fff8,
    0xd000_0000,
    0xd000_0050,
    0xfeb0_0000,
    0xfec0_0000,
    0xfee0_0000,
    0xffff_fff8,
    1 << 32,
    1 << 52,
    u64::MAX >> 1,
    u64::MAX - 0xfff,
    u64::MAX,
];

pub const LENGTHS: [u32; 10] = [
    0,
    1,
    15,
    16,
    0xfff,
    0x1000,
    0x10_0000,
    0x7fff_ffff,
    0xffff_fff0,
    u32::MAX,
];

const SIZES: [u32; 9] = [0, 1, 2, 3, 128, 255, 1024, 0x8000, u32::MAX];

/// Queues of any size anywhere.
pub fn bad_queues(guest: &mut Guest) {
    let device = guest.victim();
    device.begin();
    let dice = &mut guest.dice;
    for number in 0..QUEUES {
        let addresses = [(); 3].map(|()| dice.one_of(&ADDRESSES));
        device.set_queue(number, dice.one_of(&SIZES), addresses);
    }
    device.go();
    for number in 0..QUEUES {
        device.notify(number);
    }
}

/// A queue of any device, which is started anew unless it is still the one of before.
fn queue(guest: &mut Guest) -> Option<Queue> {
    let needs_reset = |device: Device| device.get(reg::STATUS) & NEEDS_RESET != 0;
    let is_over = guest.driven.is_none_or(|(device, _)| needs_reset(device));
    if is_over || guest.dice.below(64) == 0 {
        let device = guest.victim();
        guest.driven = Some((device, device.start()));
    }
    let (_, queues) = guest.driven?;
    let queue = guest.dice.one_of(&queues);
    (queue.entries > 0).then_some(queue)
}

/// Descriptors of any contents.
pub fn bad_chains(guest: &mut Guest) {
    let Some(queue) = queue(guest) else { return };
    let dice = &mut guest.dice;
    for index in 0..16 {
        let (address, length) = (dice.one_of(&ADDRESSES), dice.one_of(&LENGTHS));
        let (flags, next) = (dice.roll() as u16 & 7, dice.below(20) as u16);
        queue.describe(index, address, length, flags, next);
        put16(
            queue.available() + 4 + 2 * u64::from(index),
            dice.below(20) as u16,
        );
    }
    // Usually some, sometimes more than there are.
    let index = get16(queue.available() + 2);
    let more = dice.one_of(&[1, 2, 16, ENTRIES, ENTRIES + 1, 0x8000]);
    put16(queue.available() + 2, index.wrapping_add(more));
    queue.notify();
}

/// Chains in which every descriptor leads to the next, for ever.
pub fn loops(guest: &mut Guest) {
    let Some(queue) = queue(guest) else { return };
    let length = guest.dice.one_of(&[1, 16, 0x1000]);
    let step = guest.dice.one_of(&[0, 1, 2, 127]);
    let write = guest.dice.one_of(&[0, WRITE]);
    for index in 0..queue.entries {
        let next = (index + step) % queue.entries;
        queue.describe(index, BUFFERS, length, NEXT | write, next);
    }
    publish(queue, 8);
}

/// Indirect tables: nested, in themselves, of odd lengths, very long, and anywhere.
pub fn indirect(guest: &mut Guest) {
    let Some(queue) = queue(guest) else { return };
    let dice = &mut guest.dice;
    for index in 0..ENTRIES.into() {
        let flags = dice.one_of(&[NEXT, NEXT, NEXT | WRITE, INDIRECT, INDIRECT | NEXT]);
        let next = dice.one_of(&[index as u16 + 1, 0, u16::MAX]);
        describe(
            BUFFERS + 16 * index,
            BUFFERS,
            dice.one_of(&LENGTHS),
            flags,
            next,
        );
    }
    for index in 0..queue.entries.min(16) {
        let address = dice.one_of(&[
            BUFFERS,
            BUFFERS,
            BUFFERS + 8,
            ADDRESSES[usize::from(index) % ADDRESSES.len()],
        ]);
        let length = dice.one_of(&[16, 32, 4096, 4097, 0x10_0000, u32::MAX]);
        let flags = dice.one_of(&[INDIRECT, INDIRECT, INDIRECT | NEXT, INDIRECT | WRITE]);
        queue.describe(index, address, length, flags, index);
    }
    publish(queue, 8);
}

/// Makes the first descriptors available.
fn publish(queue: Queue, count: u16) {
    let count = count.min(queue.entries);
    let index = get16(queue.available() + 2);
    for number in 0..count {
        let place = index.wrapping_add(number) % queue.entries;
        put16(queue.available() + 4 + 2 * u64::from(place), number);
    }
    put16(queue.available() + 2, index.wrapping_add(count));
    queue.notify();
}

/// Good requests: for the device to read, and to write.
fn describe_well(queue: Queue) {
    for pair in 0..queue.entries / 2 {
        let place = BUFFERS + u64::from(pair) * 0x1000;
        queue.describe(2 * pair, place, 64, NEXT, 2 * pair + 1);
        queue.describe(2 * pair + 1, place + 64, 512, WRITE, 0);
    }
}

/// Requests and rings that change while the device works on them.
pub fn rewrites(guest: &mut Guest) {
    let Some(queue) = queue(guest) else { return };
    describe_well(queue);
    publish(queue, 16);
    let dice = &mut guest.dice;
    for _ in 0..2000 {
        let index = dice.below(u64::from(queue.entries)) as u16;
        match dice.below(4) {
            0 => queue.describe(index, dice.one_of(&ADDRESSES), dice.one_of(&LENGTHS), 3, 0),
            1 => put16(queue.available() + 2, dice.roll() as u16),
            2 => put16(queue.used() + 2, dice.roll() as u16),
            _ => put64(BUFFERS + 8 * dice.below(0x1000), dice.roll()),
        }
    }
    describe_well(queue);
    let used = get16(queue.used() + 2);
    put16(queue.available() + 2, used);
}

/// Good requests, which a second processor changes all the time.
pub fn second_processor(guest: &mut Guest) {
    second::start(guest);
    let Some(queue) = queue(guest) else { return };
    second::aim(&queue);
    for _ in 0..16 {
        describe_well(queue);
        publish(queue, 16);
    }
}

/// Resets while requests are in flight.
pub fn resets(guest: &mut Guest) {
    let device = guest.victim();
    for queue in device.start().into_iter().filter(|queue| queue.entries > 0) {
        describe_well(queue);
        publish(queue, queue.entries);
    }
    device.put(reg::STATUS, 0);
}

/// Notifications of queues that have nothing, and of none, in every width.
pub fn doorbells(guest: &mut Guest) {
    let device = guest.victim();
    let dice = &mut guest.dice;
    let (place, queue) = (device.window + reg::QUEUE_NOTIFY, dice.below(10));
    for _ in 0..16 {
        match dice.below(6) {
            0 => put8(place, queue as u8),
            1 => put16(place, queue as u16),
            2 => put64(place, queue),
            3 => put32(place, dice.roll() as u32),
            _ => put32(place, queue as u32),
        }
    }
}

/// Bits that are a status, a size and features at a time.
const WORD: u64 = 0x0001_0003_0007_000f;

/// Any access to any register.
pub fn registers(guest: &mut Guest) {
    let device = guest.victim();
    let dice = &mut guest.dice;
    for _ in 0..16 {
        let place = device.window + dice.below(0x200);
        access(
            place,
            dice.below(8),
            dice.one_of(&[0, 1, 2, 15, WORD, u64::MAX]),
        );
    }
    // Interrupts without a cause, and their end.
    device.put(reg::INTERRUPT_ACK, u32::MAX);
    device.get(reg::INTERRUPT_STATUS);
}

/// One of the accesses of each width.
pub fn access(place: u64, kind: u64, value: u64) {
    match kind {
        0 => _ = get8(place),
        1 => _ = get16(place),
        2 => _ = get32(place),
        3 => _ = get64(place),
        4 => put8(place, value as u8),
        5 => put16(place, value as u16),
        6 => put32(place, value as u32),
        _ => put64(place, value),
    }
}

/// The configuration space, at every offset in every width.
pub fn config_space(guest: &mut Guest) {
    let device = guest.dice.one_of(guest.devices.all());
    // The agent's device has no field that could be written.
    let first = if device.id() == device_id::VSOCK {
        0
    } else {
        4
    };
    for offset in (0..0xf00).step_by(61) {
        let (kind, value) = (guest.dice.below(4 + first), guest.dice.roll());
        access(
            device.window + reg::CONFIG + offset % (0x200 - 8),
            kind,
            value,
        );
    }
}
