//! What the fuzzer's targets have in common: bytes as the source of all that a hostile peer
//! decides, and the replay of their corpora in the ordinary tests of the crates that they are in.
//!
//! The programs that are shipped do not link it.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "serves tests and a fuzzer alone"
)]

mod corpus;
mod json;

pub use corpus::{Target, replay};
pub use json::edited;

/// A config.json with most of the fields there are.
pub const CONFIG: &str = include_str!("config.json");

/// What values of its fields mean something.
pub const CONFIG_WORDS: [&str; 72] = [
    "",
    "/",
    ".",
    "..",
    "../..",
    "a/../b",
    "rootfs",
    "volume",
    "/proc",
    "/proc/1/ns/net",
    "/dev/null",
    "/sys/fs/cgroup",
    "bind",
    "rbind",
    "ro",
    "rw",
    "rro",
    "tmpfs",
    "proc",
    "sysfs",
    "devpts",
    "mqueue",
    "cgroup",
    "overlay",
    "ext4",
    "erofs",
    "rshared",
    "rslave",
    "unbindable",
    "idmap",
    "ridmap",
    "mode=1777",
    "size=1g",
    "lowerdir=/a:/b",
    "copy",
    "user",
    "pid",
    "network",
    "ipc",
    "uts",
    "mount",
    "time",
    "CAP_SYS_ADMIN",
    "CAP_ALL",
    "RLIMIT_CPU",
    "RLIMIT_NICE",
    "SCHED_FIFO",
    "SCHED_DEADLINE",
    "SCHED_BATCH",
    "IOPRIO_CLASS_RT",
    "IOPRIO_CLASS_IDLE",
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_LOG",
    "SCMP_ARCH_X86",
    "SCMP_CMP_LT",
    "SCMP_CMP_GE",
    "SCMP_CMP_NE",
    "openat2",
    "socketcall",
    "0-8191",
    "0-4294967295",
    "1,,2",
    "a",
    "b",
    "c",
    "u",
    "rwm",
    "1GB",
    "64KB",
];

/// The bytes that have not been used. Past their end every number is 0.
#[derive(Clone, Debug)]
pub struct Decisions<'a>(pub &'a [u8]);

impl<'a> Decisions<'a> {
    /// Whether all bytes have been used.
    pub fn are_over(&self) -> bool {
        self.0.is_empty()
    }

    fn little_endian<const BYTES: usize>(&mut self) -> [u8; BYTES] {
        let taken = self.take(BYTES);
        let mut bytes = [0; BYTES];
        bytes[..taken.len()].copy_from_slice(taken);
        bytes
    }

    /// The next byte.
    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.little_endian())
    }

    /// A number of two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.little_endian())
    }

    /// A number of four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.little_endian())
    }

    /// A number of eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.little_endian())
    }

    /// One of `count` choices.
    pub fn choose(&mut self, count: u8) -> u8 {
        self.u8() % count
    }

    /// One of a list, of at most 256.
    pub fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[usize::from(self.u8()) % list.len()]
    }

    /// The next `length` bytes, or those that are left.
    pub fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// At most 255 bytes, after their number.
    pub fn bytes(&mut self) -> Vec<u8> {
        let length = usize::from(self.u8());
        self.take(length).to_vec()
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
}
