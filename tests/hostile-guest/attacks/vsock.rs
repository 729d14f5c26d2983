//! Streams, and what the agent says over them.

use rvm_protocol::{AGENT_PORT, STREAM_PORT};

use crate::agent::{DATA, RESPONSE, packet};
use crate::guest::Guest;
use crate::streams::{Credit, MAX_DATA, Packet, op};

/// The first port of the host's programs.
const FIRST_HOST_PORT: u32 = 1 << 16;

/// Connections to every port of the host.
pub fn connections(guest: &mut Guest) {
    for _ in 0..64 {
        let (host_port, guest_port) = (guest.dice.below(70_000), guest.dice.below(1 << 32));
        let request = packet(op::REQUEST, host_port as u32, guest_port as u32, 0);
        guest.agent.streams.prepare(request, &[], 0);
    }
    guest.agent.streams.flush();
}

/// A packet of a stream that is not there, of any kind.
fn stray(guest: &mut Guest) -> Packet {
    let dice = &mut guest.dice;
    let host_port = FIRST_HOST_PORT + 1000 + dice.below(100_000) as u32;
    let mut stray = packet(dice.below(9) as u16, host_port, dice.below(5000) as u32, 0);
    stray.flags = dice.roll() as u32;
    stray
}

/// Every packet of streams that are not there.
pub fn half_open(guest: &mut Guest) {
    for _ in 0..64 {
        let stray = stray(guest);
        guest.agent.streams.prepare(stray, &[7; 100], 100);
    }
    guest.agent.streams.flush();
}

/// Packets whose lengths are lies, in a device that is started again and again.
pub fn short_packets(guest: &mut Guest) {
    let stray = stray(guest);
    let length = guest
        .dice
        .one_of(&[0, 1, 100, 101, MAX_DATA as u32, u32::MAX]);
    guest.agent.streams.prepare(stray, &[7; 100], length);
    guest.agent.streams.flush();
    guest.agent.streams.restart_deaf();
}

/// The place of a connection to this port.
fn connection(guest: &mut Guest, guest_port: u32) -> Option<usize> {
    let connections = &guest.agent.connections;
    let start = guest.dice.below(connections.len() as u64) as usize;
    (start..connections.len())
        .chain(0..start)
        .find(|it| connections[*it].guest_port == guest_port)
}

/// Output of a process without end, beyond every credit of the host.
pub fn output(guest: &mut Guest) {
    if let Some(place) = connection(guest, STREAM_PORT) {
        guest.agent.say(place, op::RW, &[b'#'; 4000]);
    }
}

/// Ends of processes of others, of none, and with statuses that are none.
pub fn forged_ends(guest: &mut Guest) {
    let Some((place, stream)) = guest.agent.events else {
        return;
    };
    let (pid, status) = (
        guest.dice.roll() as u8 & 0x7f,
        guest.dice.roll() as u8 & 0x7f,
    );
    let name = guest.dice.one_of(&[b"other", b"../..", b"\x1b[2J\0"]);
    // Event.exit of a container, an exec, its pid, its status and a time.
    let mut event = [
        10, 18, 10, 5, 0, 0, 0, 0, 0, 18, 1, b'x', 24, pid, 32, 0xff, 0x7f, 40, 1, status,
    ];
    event[4..9].copy_from_slice(name);
    event[1] = event.len() as u8 - 2;
    guest.agent.frame(place, stream, DATA, &event);
}

/// Answers that nobody waits for.
pub fn answers(guest: &mut Guest) {
    if let Some(place) = connection(guest, AGENT_PORT) {
        let stream = guest.dice.roll() as u32;
        guest.agent.frame(place, stream, RESPONSE, &[0xff; 100]);
    }
}

/// Bytes that are no frames.
pub fn garbage(guest: &mut Guest) {
    guest.agent.serve();
    if let Some(place) = connection(guest, AGENT_PORT) {
        let bytes: [u8; 512] = std::array::from_fn(|_| guest.dice.roll() as u8);
        guest.agent.say(place, op::RW, &bytes);
    }
}

/// Lies about what was read, and data that the host has no room for.
pub fn credit(guest: &mut Guest) {
    let count = guest.agent.connections.len();
    let place = guest.dice.below(count as u64) as usize;
    let connection = guest.agent.connections[place];
    let dice = &mut guest.dice;
    let mut lie = packet(
        dice.one_of(&[
            op::RW,
            op::CREDIT_UPDATE,
            op::CREDIT_REQUEST,
            op::SHUTDOWN,
            op::RESPONSE,
        ]),
        connection.host_port,
        connection.guest_port,
        0,
    );
    lie.credit = Credit {
        buf_alloc: dice.one_of(&[0, 1, 0x1000, 1 << 31, u32::MAX]),
        fwd_cnt: dice.one_of(&[0, 1, 0x1000, 1 << 31, u32::MAX]),
    };
    lie.flags = dice.below(2) as u32;
    guest.agent.streams.send(lie, &[b'#'; 4000]);
}

/// Packets that want an answer, from a guest that takes none.
pub fn deaf(guest: &mut Guest) {
    if guest.driven.is_none() {
        guest.agent.streams.restart_deaf();
        guest.driven = guest
            .devices
            .all()
            .first()
            .map(|device| (*device, device.queues()));
    }
    let host_port = FIRST_HOST_PORT + guest.dice.below(1 << 20) as u32;
    let what = guest
        .dice
        .one_of(&[op::RW, op::REQUEST, op::CREDIT_REQUEST]);
    guest
        .agent
        .streams
        .send(packet(what, host_port, STREAM_PORT, 0), &[0; 64]);
}
