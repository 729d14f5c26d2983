//! NUMA memory policies of threads: set_mempolicy(2) and get_mempolicy(2).

use rustix::io;

use crate::check;

/// One more than the highest number of a memory node (`MAX_NUMNODES` of x86-64).
pub const MAX_NODES: u32 = 1024;

/// The kernel takes one more than the number of bits.
const MASK_BITS: usize = MAX_NODES as usize + 1;

const WORDS: usize = MAX_NODES as usize / 64;

/// Modes and flags of `<linux/mempolicy.h>`.
pub mod mode {
    /// The system's own policy.
    pub const DEFAULT: i32 = 0;
    /// Memory of these nodes first.
    pub const PREFERRED: i32 = 1;
    /// Memory of these nodes alone.
    pub const BIND: i32 = 2;
    /// Pages alternate between the nodes.
    pub const INTERLEAVE: i32 = 3;
    /// Memory of the node whose CPU asks.
    pub const LOCAL: i32 = 4;
    /// As [`PREFERRED`], for several nodes.
    pub const PREFERRED_MANY: i32 = 5;
    /// As [`INTERLEAVE`], by the weights of /sys/kernel/mm/mempolicy.
    pub const WEIGHTED_INTERLEAVE: i32 = 6;
    /// Pages may move to the node that uses them.
    pub const NUMA_BALANCING: i32 = 1 << 13;
    /// The nodes are relative to those that the cpuset allows.
    pub const RELATIVE_NODES: i32 = 1 << 14;
    /// The nodes stay the same when the cpuset changes.
    pub const STATIC_NODES: i32 = 1 << 15;
}

/// The policy of a thread, which its children inherit, and programs that it executes keep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    mode: i32,
    nodes: [u64; WORDS],
}

impl Policy {
    /// A policy of this [`mode`], with its flags, for these nodes. None if there is no such node.
    pub fn new(mode: i32, nodes: impl IntoIterator<Item = u32>) -> Option<Self> {
        let mut policy = Self {
            mode,
            ..Self::default()
        };
        for node in nodes {
            let word = policy.nodes.get_mut(node as usize / 64)?;
            *word |= 1 << (node % 64);
        }
        Some(policy)
    }

    /// The calling thread's.
    #[expect(unsafe_code, reason = "a system call that rustix lacks")]
    pub fn current() -> io::Result<Self> {
        let mut policy = Self::default();
        // SAFETY: the call writes an int and as many bits as it is told, and `policy` lives across
        // it; without flags it reads no address.
        check(unsafe {
            libc::syscall(
                libc::SYS_get_mempolicy,
                &raw mut policy.mode,
                policy.nodes.as_mut_ptr(),
                MASK_BITS,
                0_usize,
                0_usize,
            )
        })?;
        Ok(policy)
    }

    /// Makes it the calling thread's.
    #[expect(unsafe_code, reason = "a system call that rustix lacks")]
    pub fn apply(&self) -> io::Result<()> {
        // SAFETY: the call reads as many bits as it is told, and `self` lives across it.
        check(unsafe {
            libc::syscall(
                libc::SYS_set_mempolicy,
                self.mode,
                self.nodes.as_ptr(),
                MASK_BITS,
            )
        })
        .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_the_policy_that_it_was_given() {
        let policy = Policy::new(mode::BIND | mode::STATIC_NODES, [0]).unwrap();
        let test = || match policy.apply() {
            // A kernel without NUMA.
            Err(io::Errno::NOSYS) => {}
            applied => {
                applied.unwrap();
                assert_eq!(Policy::current().unwrap(), policy);
            }
        };
        std::thread::scope(|scope| scope.spawn(test).join().unwrap());
    }

    #[test]
    fn nodes_are_bounded() {
        assert!(Policy::new(mode::BIND, [MAX_NODES - 1]).is_some());
        assert_eq!(Policy::new(mode::BIND, [0, MAX_NODES]), None);
    }
}
