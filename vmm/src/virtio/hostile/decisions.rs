//! Bytes as the source of all that a driver decides.

use super::Act;
use crate::virtio::fake_driver::{BUFFERS_START, QUEUES_START};

/// The bytes that have not been used. Past their end every number is 0.
pub struct Decisions<'a>(pub &'a [u8]);

impl Decisions<'_> {
    pub fn are_over(&self) -> bool {
        self.0.is_empty()
    }

    fn little_endian<const BYTES: usize>(&mut self) -> [u8; BYTES] {
        let (taken, rest) = self.0.split_at(BYTES.min(self.0.len()));
        self.0 = rest;
        let mut bytes = [0; BYTES];
        bytes[..taken.len()].copy_from_slice(taken);
        bytes
    }

    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.little_endian())
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.little_endian())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.little_endian())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.little_endian())
    }

    /// One of `count` choices.
    pub fn choose(&mut self, count: u8) -> u8 {
        self.u8() % count
    }

    /// At most 255 bytes.
    pub fn bytes(&mut self) -> Vec<u8> {
        let length = usize::from(self.u8()).min(self.0.len());
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken.to_vec()
    }

    /// An address in the buffers, in the rings, around the end of memory, or anywhere.
    fn address(&mut self) -> u64 {
        match self.choose(8) {
            0..4 => BUFFERS_START + u64::from(self.choose(64)) * 0x800,
            4 => QUEUES_START + u64::from(self.u16() % 0x4000),
            5 => (31 << 20) + u64::from(self.u32() % (2 << 20)),
            6 => u64::from(self.u32()),
            _ => self.u64(),
        }
    }

    /// Numbers of operations, lengths and flags, small for the most part.
    pub fn words(&mut self) -> Vec<u8> {
        let width = [2, 4, 8][usize::from(self.choose(3))];
        let count = self.choose(8);
        let word = |_| match self.choose(6) {
            0..3 => u64::from(self.choose(8)),
            3 => u64::from(self.u16() % 5000),
            4 => u64::from(self.choose(20)) << 21,
            _ => self.u64(),
        };
        let words: Vec<u64> = (0..count).map(word).collect();
        let cut = |word: u64| word.to_le_bytes().into_iter().take(width);
        words.into_iter().flat_map(cut).collect()
    }

    fn descriptor(&mut self) -> (u64, u32, u16, u16) {
        let length = match self.choose(6) {
            0..4 => u32::from(self.choose(100)),
            4 => self.u32() % 100_000,
            _ => self.u32(),
        };
        let (flags, next) = (self.choose(8), self.choose(20));
        (self.address(), length, flags.into(), next.into())
    }

    fn queue(&mut self) -> usize {
        self.choose(4).into()
    }

    pub(super) fn act(&mut self) -> Act {
        match self.choose(20) {
            0 | 1 => Act::Write(self.address(), self.words()),
            2..5 => {
                let (queue, head) = (self.queue(), u16::from(self.choose(16)));
                let count = 1 + self.choose(5);
                Act::Publish(queue, head, (0..count).map(|_| self.descriptor()).collect())
            }
            5..8 => Act::Request(self.queue(), self.words(), usize::from(self.u16() % 600)),
            8 => Act::Request(self.queue(), self.bytes(), usize::from(self.u16() % 600)),
            9..13 => Act::Notify(self.queue()),
            13 => Act::ReadConfig(usize::from(self.u16() % 300), self.choose(9).into()),
            14 => Act::WriteConfig(usize::from(self.u16() % 300), self.words()),
            15 => Act::Host(self.words()),
            16 => Act::Restart,
            17 => Act::Restore(None),
            18 => Act::Restore(Some(self.bytes())),
            _ => Act::Host(self.bytes()),
        }
    }
}
