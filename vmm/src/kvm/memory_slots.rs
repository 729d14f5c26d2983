//! The table of KVM's memory slots (KVM_SET_USER_MEMORY_REGION): which slot maps which memory.
//!
//! | slot | memory |
//! |---|---|
//! | 0 | memory of the boot below the device hole |
//! | 1 | memory of the boot above it |
//! | 8 and up | hotplug memory, one slot for each time it grew |

/// The number of a memory slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySlot(u32);

impl MemorySlot {
    /// The slots of the memory of the boot, lowest address first.
    pub const BOOT: [Self; 2] = [Self(0), Self(1)];

    const FIRST_HOTPLUG: u32 = 8;

    /// The slot of the piece of hotplug memory with this index. KVM refuses a number past its
    /// limit.
    pub fn hotplug(index: usize) -> Self {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        Self(Self::FIRST_HOTPLUG.saturating_add(index))
    }

    pub(super) fn number(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hotplug_memory_never_takes_a_slot_of_the_boot() {
        for index in [0, 1, usize::MAX] {
            assert!(!MemorySlot::BOOT.contains(&MemorySlot::hotplug(index)));
        }
    }
}
