//! Numbers by which the guest knows versions of files. It asks whether one is still the file's by
//! reading an I/O port: the value that it reads is the number's, or another.
//!
//! A port belongs to one file at a time, and each number has a value of its own. So a number of a
//! former version, or of another file that had the port before, is answered with another value.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How many ports there are.
pub const PORTS: u16 = 0x4000;

/// What is read from a port whose number is nobody's.
pub const NO_VALUE: u32 = 0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Number {
    /// Below [`PORTS`], counted from the first.
    pub port: u16,
    /// Neither [`NO_VALUE`] nor what a port without a device reads as, which is all ones.
    pub value: u32,
}

impl Number {
    /// As the guest is told of it.
    pub fn encode(self) -> u64 {
        u64::from(self.value) << 32 | u64::from(self.port)
    }
}

#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Numbers {
    next_port: u16,
    last_value: u32,
    /// The inodes that have numbers, by port.
    #[serde(skip)]
    inodes: BTreeMap<u16, u64>,
}

impl Numbers {
    /// A new number for an inode, and the inode that had its port before. `None` if all values have
    /// been given.
    pub fn give(&mut self, inode: u64) -> Option<(Number, Option<u64>)> {
        let value = self
            .last_value
            .checked_add(1)
            .filter(|&it| it != u32::MAX)?;
        let port = self.next_port % PORTS;
        self.next_port = (port + 1) % PORTS;
        self.last_value = value;
        let former = self.inodes.insert(port, inode);
        Some((Number { port, value }, former))
    }

    pub fn inode(&self, port: u16) -> Option<u64> {
        self.inodes.get(&port).copied()
    }

    /// An inode has no number any more.
    pub fn take_back(&mut self, port: u16, inode: u64) {
        if self.inode(port) == Some(inode) {
            self.inodes.remove(&port);
        }
    }

    /// Takes back every number. None is given again.
    pub fn clear(&mut self) {
        self.inodes.clear();
    }

    /// Those of a saved state, which may be damaged.
    pub fn restored(self, numbered: impl Iterator<Item = (u64, Number)>) -> Self {
        let mut inodes = BTreeMap::new();
        let mut last_value = self.last_value;
        for (inode, number) in numbered.filter(|(_, number)| number.port < PORTS) {
            inodes.insert(number.port, inode);
            last_value = last_value.max(number.value);
        }
        Self {
            last_value,
            inodes,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_is_given_twice() {
        let mut numbers = Numbers::default();
        let (first, _) = numbers.give(1).unwrap();
        numbers.take_back(first.port, 1);
        numbers.clear();
        for inode in 0..u64::from(PORTS) * 2 {
            let (next, _) = numbers.give(inode).unwrap();
            assert!(next.value > first.value && next.port < PORTS);
        }
    }

    #[test]
    fn a_port_is_taken_from_the_inode_that_had_it_first() {
        let mut numbers = Numbers::default();
        for inode in 0..u64::from(PORTS) {
            assert_eq!(numbers.give(inode).unwrap().1, None);
        }
        let (number, former) = numbers.give(9).unwrap();
        assert_eq!((number.port, former), (0, Some(0)));
        assert_eq!(numbers.inode(0), Some(9));
        numbers.take_back(0, 0);
        assert_eq!(numbers.inode(0), Some(9), "inode 0 has it no more");
    }

    #[test]
    fn values_end_before_they_repeat() {
        let mut numbers = Numbers {
            last_value: u32::MAX - 2,
            ..Numbers::default()
        };
        assert_eq!(numbers.give(1).unwrap().0.value, u32::MAX - 1);
        assert_eq!(numbers.give(2), None);
    }

    #[test]
    fn a_damaged_state_gives_no_value_that_the_guest_may_have() {
        let damaged = [(1, 7), (u16::MAX, 9)].map(|(port, value)| (5, Number { port, value }));
        let mut numbers = Numbers::default().restored(damaged.into_iter());
        assert_eq!(numbers.inode(1), Some(5));
        assert_eq!(numbers.inode(u16::MAX), None);
        assert!(numbers.give(6).unwrap().0.value > 7);
    }
}
