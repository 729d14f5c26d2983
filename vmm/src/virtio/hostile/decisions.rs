//! What a driver does, as bytes decide.

use rvm_fuzz_input::Decisions;

use super::Act;
use crate::virtio::fake_driver::{BUFFERS_START, QUEUES_START};

/// An address in the buffers, in the rings, around the end of memory, or anywhere.
fn address(decisions: &mut Decisions<'_>) -> u64 {
    match decisions.choose(8) {
        0..4 => BUFFERS_START + u64::from(decisions.choose(64)) * 0x800,
        4 => QUEUES_START + u64::from(decisions.u16() % 0x4000),
        5 => (31 << 20) + u64::from(decisions.u32() % (2 << 20)),
        6 => u64::from(decisions.u32()),
        _ => decisions.u64(),
    }
}

fn descriptor(decisions: &mut Decisions<'_>) -> (u64, u32, u16, u16) {
    let length = match decisions.choose(6) {
        0..4 => u32::from(decisions.choose(100)),
        4 => decisions.u32() % 100_000,
        _ => decisions.u32(),
    };
    let (flags, next) = (decisions.choose(8), decisions.choose(20));
    (address(decisions), length, flags.into(), next.into())
}

fn queue(decisions: &mut Decisions<'_>) -> usize {
    decisions.choose(4).into()
}

pub(super) fn act(decisions: &mut Decisions<'_>) -> Act {
    match decisions.choose(20) {
        0 | 1 => Act::Write(address(decisions), decisions.words()),
        2..5 => {
            let (queue, head) = (queue(decisions), u16::from(decisions.choose(16)));
            let count = 1 + decisions.choose(5);
            Act::Publish(
                queue,
                head,
                (0..count).map(|_| descriptor(decisions)).collect(),
            )
        }
        5..8 => Act::Request(
            queue(decisions),
            decisions.words(),
            usize::from(decisions.u16() % 600),
        ),
        8 => Act::Request(
            queue(decisions),
            decisions.bytes(),
            usize::from(decisions.u16() % 600),
        ),
        9..13 => Act::Notify(queue(decisions)),
        13 => Act::ReadConfig(
            usize::from(decisions.u16() % 300),
            decisions.choose(9).into(),
        ),
        14 => Act::WriteConfig(usize::from(decisions.u16() % 300), decisions.words()),
        15 => Act::Host(decisions.words()),
        16 => Act::Restart,
        17 => Act::Restore(None),
        18 => Act::Restore(Some(decisions.bytes())),
        _ => Act::Host(decisions.bytes()),
    }
}
